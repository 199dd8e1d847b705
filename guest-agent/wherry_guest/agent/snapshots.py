"""`container.changes`, `container.layer`, `container.export`: what is in a container, as a stream.

Rules: a child of the agent does the work, in a mount namespace of its own, so that nothing of it
stays mounted and the agent's loop goes on; the layers are held until it has ended; a container is
thawed by whom it was frozen, also when the agent was killed meanwhile.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent import difference, treetar
from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.containers import Containers
from wherry_guest.agent.layers import LayerError, Layers
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.worker import Job, JobError, Worker
from wherry_guest.channel import CallError, Channel
from wherry_guest.core.overlay import MAX_LOWERS, SAFE_OPTIONS
from wherry_guest.core.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_RDONLY, MS_REC, Kernel
from wherry_guest.loop import Loop

FREEZE_SECONDS: Final = 10.0
"""What a container's processes are given to stop: one may be in the middle of disk I/O."""

OPEN_FILES: Final = 8192
"""Two for each level of a tree: PATH_MAX allows 2,048."""

_RLIMIT_NOFILE: Final = 7  # asm-generic/resource.h

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os
_select: Final[Any] = select


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a container's files are.

    Attributes:
        upper: its upper directory; None when it has none (it never ran).
        lowers: the layers' mount points below `layers`, topmost first.
        scratch: an empty directory below which the child may mount.
        cgroup: to be frozen meanwhile, or None.
    """

    upper: Path | None
    lowers: tuple[str, ...]
    layers: Path
    scratch: Path
    cgroup: Path | None


class Snapshots:
    """The three calls.

    Args:
        channel: gives the channel, once there is one.
    """

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        paths: Paths,
        layers: Layers,
        containers: Containers,
        channel: Callable[[], Channel],
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._paths = paths
        self._layers = layers
        self._containers = containers
        self._channel = channel
        self._count = 0
        self._workers: dict[str, dict[str, Worker]] = {}

    def changes(self, params: Params) -> Answer:
        """`container.changes`."""
        return self._begin(params, send_changes)

    def layer(self, params: Params) -> Answer:
        """`container.layer`."""
        return self._begin(params, send_layer)

    def export(self, params: Params) -> Answer:
        """`container.export`."""
        return self._begin(params, send_export)

    def container_removed(self, id: str) -> None:
        """Its files are being deleted: what reads them gives up."""
        for worker in list(self._workers.get(id, {}).values()):
            worker.abandon("the container was removed")

    def _begin(self, params: Params, send: Callable[[Kernel, Tree, int], None]) -> Answer:
        id = params.identifier("id")
        stream = self._channel().stream(params.number("stream"))
        self._count += 1
        holder = f"snapshot:{self._count}"
        try:
            lowers = self._layers.hold(holder, params.items("layers", str))
        except LayerError as error:
            raise CallError("conflict", str(error)) from error
        tree = self._tree(id, lowers, params.flag("pause"))
        kernel = self._kernel

        def ended() -> None:
            self._layers.release(holder)
            workers = self._workers[id]
            del workers[holder]
            if not workers:
                del self._workers[id]

        def job(out: int) -> None:
            send(kernel, tree, out)

        try:
            worker = Worker(self._loop, kernel, stream, _told(job), ended)
        except OSError:
            self._layers.release(holder)
            raise
        self._workers.setdefault(id, {})[holder] = worker
        return None

    def _tree(self, id: str, lowers: tuple[str, ...], pause: bool) -> Tree:
        container = self._paths.container(id)
        running = any(other.id == id and other.running for other in self._containers.alive())
        scratch = self._paths.run / "snapshot"
        for name in ("lower", "merged"):
            (scratch / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        return Tree(
            upper=container.upper if container.upper.is_dir() else None,
            lowers=lowers,
            layers=self._paths.layers,
            scratch=scratch,
            cgroup=container.cgroup if pause and running else None,
        )


def send_changes(kernel: Kernel, tree: Tree, out: int) -> None:
    """For each change its kind, its path from the root and a NUL."""
    if tree.upper is None:
        return
    with _prepared(kernel, tree):
        lower = _mount_lower(kernel, tree)
        for change in difference.differences(os.fsencode(tree.upper), lower):
            _write_all(out, b"%s/%s\0" % (change.kind, change.path))


def send_layer(kernel: Kernel, tree: Tree, out: int) -> None:
    """The upper directory as a layer's tar."""
    with _prepared(kernel, tree):
        changes: Iterator[difference.Change] = iter(())
        if tree.upper is not None:
            lower = _mount_lower(kernel, tree)
            changes = difference.differences(os.fsencode(tree.upper), lower, for_layer=True)
        treetar.write_tar(changes, out)


def send_export(kernel: Kernel, tree: Tree, out: int) -> None:
    """All files of the container as a tar; what is mounted in it (volumes, /proc) is left out."""
    with _prepared(kernel, tree):
        merged = _mount_merged(kernel, tree)
        changes: Iterator[difference.Change] = iter(())
        if merged is not None:
            changes = difference.differences(merged, None, for_layer=True, placeholders=frozenset())
        treetar.write_tar(changes, out)


@contextmanager
def _prepared(kernel: Kernel, tree: Tree) -> Iterator[None]:
    """In the child: own mounts, enough descriptors, and the container standing still."""
    kernel.setrlimit(_RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    kernel.unshare(CLONE_NEWNS)
    kernel.mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    if tree.cgroup is None:
        yield
        return
    with frozen(tree.cgroup):
        yield


@contextmanager
def frozen(cgroup: Path, seconds: float = FREEZE_SECONDS) -> Iterator[None]:
    """Keep the processes of a cgroup still; one that was frozen before stays so.

    Raises:
        JobError: they do not stop within `seconds`.
    """
    control = cgroup / "cgroup.freeze"
    if control.read_text().strip() == "1":
        yield
        return
    control.write_text("1")
    try:
        _wait_until_frozen(cgroup / "cgroup.events", seconds)
        yield
    finally:
        control.write_text("0")


def _wait_until_frozen(events: Path, seconds: float) -> None:
    """Documentation/admin-guide/cgroup-v2.rst: a change of the file is a POLLPRI."""
    deadline = time.monotonic() + seconds
    fd = os.open(events, os.O_RDONLY)
    try:
        poller = _select.poll()
        poller.register(fd, _select.POLLPRI)
        while b"frozen 1" not in _os.pread(fd, 4096, 0):
            left = deadline - time.monotonic()
            if left <= 0:
                raise JobError(f"the container's processes do not stop within {seconds:.0f} s")
            poller.poll(left * 1000)
    finally:
        os.close(fd)


def _mount_lower(kernel: Kernel, tree: Tree) -> bytes | None:
    """All layers as one read-only tree."""
    if not tree.lowers:
        return None
    if len(tree.lowers) == 1:
        return os.fsencode(tree.layers / tree.lowers[0])
    target = str(tree.scratch / "lower")
    _mount_overlay(kernel, tree, ":".join(tree.lowers), target)
    return os.fsencode(target)


def _mount_merged(kernel: Kernel, tree: Tree) -> bytes | None:
    """The container's root. The upper directory is stacked as one more layer: it may be in use."""
    if tree.upper is None or not tree.lowers:
        lower = _mount_lower(kernel, tree)
        return lower if tree.upper is None else os.fsencode(tree.upper)
    lowers = ":".join(tree.lowers)
    if len(tree.lowers) >= MAX_LOWERS:  # one more would be too many: stack on their overlay
        _mount_overlay(kernel, tree, lowers, str(tree.scratch / "lower"))
        lowers = str(tree.scratch / "lower")
    target = str(tree.scratch / "merged")
    _mount_overlay(kernel, tree, f"{tree.upper}:{lowers}", target)
    return os.fsencode(target)


def _mount_overlay(kernel: Kernel, tree: Tree, lowers: str, target: str) -> None:
    kernel.chdir(str(tree.layers))
    kernel.mount("overlay", target, "overlay", MS_RDONLY, f"lowerdir={lowers},{SAFE_OPTIONS}")


def _told(job: Job) -> Job:
    """What the tree's readers refuse, in their words."""

    def told(out: int) -> None:
        try:
            job(out)
        except difference.DifferenceError as error:
            raise JobError(str(error)) from error

    return told


def _write_all(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]
