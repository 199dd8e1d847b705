"""What only the guest can fill in of a container's spec: volumes, devices, other containers.

The engine names these things, here they become paths: a mount of type `volume` a bind of its
directory, a namespace `container:ID` one of that container's process, a device its numbers, the
texts for /etc files that are mounted there. What cannot be found is `start_failed`, named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.container import Container
from wherry_guest.agent.kernel import is_safe_name, make_directory, write_file
from wherry_guest.agent.paths import ContainerPaths, Paths
from wherry_guest.agent.request import BLOCK_IO, FILES, Request, with_size
from wherry_guest.agent.volumes import Volumes
from wherry_guest.channel import CallError
from wherry_guest.core.syscalls import MNT_DETACH, MS_NODEV, MS_NOEXEC, MS_NOSUID, Kernel
from wherry_guest.zygote import Rootfs

GROUND: Final = "ground"
"""The name, among the layers' mount points, of the directory below all layers."""

_MOST_ABOVE_GROUND: Final = 400  # so many names fit the overlay's options beside it, and MAX_LOWERS

OF_CONTAINER: Final = "container:"
"""Begins a namespace's path, or a source, that is another container's."""

_NAMESPACE_FILES: Final = {"network": "net", "mount": "mnt"}
"""Where /proc/PID/ns names a namespace otherwise than the runtime spec."""

_NOT_DEVICES: Final = ("pts", "shm", "fd", "mqueue", "console")
"""What of /dev is a container's own, and not given with all devices of the machine."""

_KINDS: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}

Spec = dict[str, Any]

Owner = tuple[int, int]
"""A user and a group of the machine."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A device node of the machine's, and its `linux.devices[]`, where it is for the container."""

    source: Path
    device: Spec


_os: Final[Any] = os  # names that exist on POSIX only; mypy checks all platforms


class Preparer:
    """Completes specs.

    Args:
        find: a container by id, None when there is none.
        devices: where the machine's device nodes are.
    """

    def __init__(
        self,
        kernel: Kernel,
        paths: Paths,
        volumes: Volumes,
        find: Callable[[str], Container | None],
        devices: Path = Path("/dev"),
    ) -> None:
        self._kernel = kernel
        self._paths = paths
        self._volumes = volumes
        self._find = find
        self._devices = devices
        self._has_ground = False

    def rootfs(self, paths: ContainerPaths, lowerdirs: tuple[str, ...]) -> Rootfs:
        """The container's overlay; its writable directories are made when they are missing."""
        upper, work = str(paths.upper), str(paths.work)
        if make_directory(upper) and lowerdirs:
            # The upper directory is `/` itself: its mode and owner are what processes see.
            top = os.stat(f"{self._paths.layers}/{lowerdirs[0]}")  # noqa: PTH116 - as write_file
            if top.st_uid or top.st_gid:
                _os.chown(upper, top.st_uid, top.st_gid)
            paths.upper.chmod(top.st_mode & 0o7777)
        make_directory(work)
        return Rootfs(lowerdirs, upper, work)

    def with_ground(self, rootfs: Rootfs, request: Request) -> Rootfs:
        """Below all layers of the image one with places for what is mounted in every container, so
        that they need not be made in each, on the disk.

        Not in a user namespace, whose layers are mapped, nor where it would be one too many.
        """
        if not request.files or len(rootfs.lowerdirs) > _MOST_ABOVE_GROUND:
            return rootfs
        if root_owner(request.spec) is not None:
            return rootfs
        ground = f"{self._paths.layers}/{GROUND}"
        if not self._has_ground:
            for name in ("dev", "proc", "sys", "etc"):
                make_directory(f"{ground}/{name}", 0o755)
            for name in FILES:
                write_file(f"{ground}/etc/{name}", "", 0o644)
            self._has_ground = True
        return replace(rootfs, lowerdirs=(*rootfs.lowerdirs, GROUND))

    def volume_mounts(self, mounts: Sequence[Mapping[str, Any]], has_run: bool) -> list[Spec]:
        """Of a spec's mounts those of volumes, with their directories. CallError, OSError."""
        return [self._volume(item, has_run) for item in mounts if item.get("type") == "volume"]

    def spec(self, request: Request, container: Container) -> Spec:
        """The request's spec with everything in it.

        Raises:
            CallError: `start_failed`, what it refers to is not there. OSError.
        """
        spec = dict(request.spec)
        owner = root_owner(spec)
        if isinstance(process := spec.get("process"), dict):
            spec["process"] = with_size(process, request.size)
        mounts = [self._mount(item, container, owner) for item in spec.get("mounts") or []]
        spec["mounts"] = mounts + self._files(request, container.paths, owner or (0, 0))
        linux = dict(spec.get("linux") or {})
        linux["namespaces"] = [self._namespace(item) for item in linux.get("namespaces") or []]
        if request.devices or request.all_devices:
            nodes = self._add_devices(request, linux)
            if owner is None:
                devices = [node.device for node in nodes]
                linux["devices"] = [*(linux.get("devices") or []), *devices]
            else:  # nobody makes nodes in a user namespace: the machine's own are mounted
                spec["mounts"] += [_bound_device(node) for node in nodes]
        if request.block_io:
            self._add_block_io(request, linux)
        spec["linux"] = linux
        return spec

    def ended(self, paths: ContainerPaths) -> None:
        """The container's process is gone: let go of what was mounted for it."""
        if os.path.ismount(paths.shm):
            self._kernel.umount(os.fspath(paths.shm), MNT_DETACH)  # who shares it keeps it

    # Mounts.

    def _mount(self, item: Any, container: Container, owner: Owner | None) -> Any:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "volume":
            bound = self._volume(item, container.has_run)
            if owner is not None:  # on the disk root's files are 0's, whatever the mapping
                bound["options"].append("idmap")
            return bound
        if kind == "shm":
            source = self._shm(item, container, owner)
            options = [option for option in item.get("options") or [] if "=" not in option]
            return _bind(item, source, options)
        return item

    def _volume(self, item: Mapping[str, Any], has_run: bool) -> Spec:
        options = list(item.get("options") or [])
        if has_run and "copyup" in options:
            options.remove("copyup")  # what was copied once is the container's to delete
        return _bind(item, self._volumes.data(item.get("source")), options)

    def _shm(self, item: Spec, container: Container, user: Owner | None) -> Path:
        """A /dev/shm that containers share; it is the first one's."""
        owner = str(item.get("source") or "")
        if owner.startswith(OF_CONTAINER):
            path = self._neighbour(owner.removeprefix(OF_CONTAINER)).paths.shm
            if not os.path.ismount(path):
                raise _failed(f"join the ipc namespace: {owner} does not share its own")
            return path
        path = container.paths.shm
        self.ended(container.paths)
        path.mkdir(mode=0o700, exist_ok=True)
        options = [option for option in item.get("options") or [] if "=" in option]
        if user is not None:
            options += [f"uid={user[0]}", f"gid={user[1]}"]
        data = ",".join(options)
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        self._kernel.mount("shm", os.fspath(path), "tmpfs", flags, data)
        return path

    def _files(self, request: Request, paths: ContainerPaths, owner: Owner) -> list[Spec]:
        """The mounts of /etc/hosts and its kin."""
        directory, names = paths.run, tuple(request.files)
        for name, text in request.files.items():
            write_file(f"{directory}/{name}", text, 0o644)
            if owner != (0, 0):
                _os.chown(f"{directory}/{name}", *owner)
        if request.files_of is not None:
            directory = self._neighbour(request.files_of).paths.run
            names = tuple(name for name in FILES if (directory / name).exists())
        return [
            {
                "destination": f"/etc/{name}",
                "type": "bind",
                "source": os.fspath(directory / name),
                "options": ["bind", "rprivate"],
            }
            for name in names
        ]

    # Namespaces.

    def _namespace(self, item: Any) -> Any:
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str) or not path.startswith(OF_CONTAINER):
            return item
        kind = str(item.get("type"))
        neighbour = self._neighbour(path.removeprefix(OF_CONTAINER))
        if not neighbour.running:
            raise _failed(f"join the {kind} namespace: container {neighbour.id} is not running")
        return {**item, "path": f"/proc/{neighbour.pid}/ns/{_NAMESPACE_FILES.get(kind, kind)}"}

    def _neighbour(self, id: str) -> Container:
        neighbour = self._find(id) if is_safe_name(id) else None
        if neighbour is None:
            raise _failed(f"find container {id}: it has not been started")
        return neighbour

    # Devices.

    def _add_devices(self, request: Request, linux: Spec) -> list[_Node]:
        """The nodes; their rules are added to `linux`."""
        nodes: dict[str, _Node] = {}
        rules: list[Spec] = []
        if request.all_devices:
            nodes = {node.device["path"]: node for node in self._all_devices()}
        for wanted in request.devices:
            for node in self._wanted_devices(wanted):
                nodes[node.device["path"]] = node
                numbers = {name: node.device[name] for name in ("type", "major", "minor")}
                rules.append({"allow": True, **numbers, "access": wanted["permissions"]})
        resources = dict(linux.get("resources") or {})
        if resources.get("devices"):  # none: everything is allowed
            resources["devices"] = [*resources["devices"], *rules]
        linux["resources"] = resources
        return list(nodes.values())

    def _add_block_io(self, request: Request, linux: Spec) -> None:
        resources = dict(linux.get("resources") or {})
        limits = dict(resources.get("blockIO") or {})
        for wanted in request.block_io:
            path, limit = wanted["path"], wanted["limit"]
            try:
                status: Any = Path(path).stat()
            except OSError as error:
                words = f"limit the I/O of {path}: the machine has no such device"
                raise _failed(words, error.errno or 0) from error
            if not stat.S_ISBLK(status.st_mode):
                raise _failed(f"limit the I/O of {path}: not a block device")
            numbers = {"major": _os.major(status.st_rdev), "minor": _os.minor(status.st_rdev)}
            item = {**numbers, BLOCK_IO[limit]: wanted["value"]}
            limits[limit] = [*(limits.get(limit) or []), item]
        linux["resources"] = {**resources, "blockIO": limits}

    def _wanted_devices(self, wanted: Mapping[str, str]) -> Iterator[_Node]:
        """One node, or all in a directory, as with Docker."""
        source, target = wanted["path"], wanted["target"]
        try:
            if Path(source).is_dir():
                found = list(_nodes(Path(source), target))
            else:
                found = [_node(Path(source), target)]
        except OSError as error:
            raise _no_device(source, error.strerror or "error", error.errno or 0) from error
        if found == [None]:
            raise _no_device(source, "not a device node", 0)
        yield from filter(None, found)

    def _all_devices(self) -> Iterator[_Node]:
        for entry in sorted(self._devices.iterdir()):
            if entry.name in _NOT_DEVICES:
                continue
            target = f"/dev/{entry.name}"
            if entry.is_dir() and not entry.is_symlink():
                yield from filter(None, _nodes(entry, target))
            elif not entry.is_symlink() and (node := _node(entry, target)) is not None:
                yield node


def root_owner(spec: Mapping[str, Any]) -> Owner | None:
    """Who the container's root is in the machine, by its user namespace; None: it has none."""
    linux = spec.get("linux") or {}
    kinds = (item.get("type") for item in linux.get("namespaces") or () if isinstance(item, dict))
    if "user" not in kinds:
        return None
    uid, gid = (_of_root(linux.get(name)) for name in ("uidMappings", "gidMappings"))
    return uid, gid


def _of_root(mappings: Any) -> int:
    """What stands for 0. What is wrong with a mapping is for the spec's own parser to say."""
    for item in mappings if isinstance(mappings, list) else ():
        if isinstance(item, dict) and item.get("containerID", 0) == 0:
            outside = item.get("hostID", 0)
            return outside if isinstance(outside, int) else 0
    return 0


def _bind(item: Mapping[str, Any], source: Path, options: list[str]) -> Spec:
    bound = [*options, "bind", "rprivate"]
    return {**item, "type": "bind", "source": os.fspath(source), "options": bound}


def _nodes(directory: Path, target: str) -> Iterator[_Node | None]:
    for entry in sorted(directory.iterdir()):
        if entry.name in _NOT_DEVICES or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _nodes(entry, f"{target}/{entry.name}")
        else:
            yield _node(entry, f"{target}/{entry.name}")


def _node(path: Path, target: str) -> _Node | None:
    """None for another kind of file."""
    status: Any = path.stat()
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    device = {
        "path": target,
        "type": kind,
        "major": _os.major(status.st_rdev),
        "minor": _os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
    return _Node(path, device)


def _bound_device(node: _Node) -> Spec:
    mount = {"destination": node.device["path"]}
    return _bind(mount, node.source, ["nosuid", "noexec"])


def _no_device(path: str, reason: str, number: int) -> CallError:
    words = "error gathering device information while adding custom device"
    return _failed(f'{words} "{path}": {reason.lower()}', number)


def _failed(message: str, number: int = 0) -> CallError:
    data = {"step": message.partition(":")[0], "errno": number, "exit_code": 125}
    return CallError("start_failed", message, data)
