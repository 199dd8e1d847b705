"""`container.archive`: a container's files, stat, out as a tar, and in.

Rules: a child of the agent does it, whose root is the container's (`agent.rootview`); nothing that
a container says about its files is believed outside of that. A stream begins with a head: 4 bytes
of length, big-endian, and JSON; of a write it comes last, and is all. Paths mean what they mean to
Docker (moby: daemon/archive.go): a slash or `/.` at the end follows a link, a bare name does not.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent import difference, rootview, treetar
from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.children import sleep
from wherry_guest.agent.containers import Containers
from wherry_guest.agent.difference import Change
from wherry_guest.agent.kernel import big_pipe
from wherry_guest.agent.layers import LayerError, Layers
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.stdio import Stdin
from wherry_guest.agent.unpack import Unpacker, UnpackError
from wherry_guest.agent.worker import JobError, Worker
from wherry_guest.channel import CallError, Channel, GuestStream
from wherry_guest.core.spec import User
from wherry_guest.core.steps import SetupError
from wherry_guest.core.syscalls import O_PATH, RESOLVE_NO_MAGICLINKS, Kernel
from wherry_guest.core.users import parse_group, parse_passwd, read_file, resolve
from wherry_guest.loop import Loop

STAT, READ, WRITE = "stat", "read", "write"

_LENGTH: Final = 4

_ENDING_PAUSE: Final = 0.01
_ENDING_TRIES: Final = 500
"""Seconds, and how often: what an abandoned worker is given to unmount and end."""

_MISSING: Final = (errno.ENOENT, errno.ELOOP)
_O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
_O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)

Enter = Callable[[], None]

_os: Final[Any] = os  # names that exist on POSIX only; mypy checks all platforms


@dataclass(frozen=True, slots=True)
class _Write:
    """How an archive is unpacked; `user`: as Docker's --user, whose everything becomes."""

    keep_kind: bool
    user: str


class _Refusal(Exception):
    """What the head says instead: one of the agent's codes, and words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Archives:
    """The call.

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
        self._mounted: list[str] = []

    def archive(self, params: Params) -> Answer:
        """`container.archive`."""
        id, operation, path = params.identifier("id"), params.text("op"), params.text("path")
        stream = self._channel().stream(params.number("stream"))
        name = os.fsencode(path)
        if operation == WRITE:
            wanted = _Write(params.flag("keep_kind"), params.optional_text("user"))
            self._begin(id, params, stream, lambda kernel, out, feed: _write(
                kernel, name, wanted, out, feed))  # fmt: skip
        elif operation in (STAT, READ):
            self._begin(id, params, stream, lambda kernel, out, feed: _read(
                kernel, name, out, operation == READ))  # fmt: skip
        else:
            raise CallError("invalid", f"op {operation!r} is not {STAT}, {READ} or {WRITE}")
        return None

    async def until_still(self, id: str) -> None:
        """Before a start: its root may be mounted here, and two overlays would share a directory.

        Raises:
            CallError: `conflict`: somebody still reads or writes, or whoever did does not end.
        """
        for _ in range(_ENDING_TRIES):
            workers = self._workers.get(id, {}).values()
            if id not in self._mounted or not all(it.abandoned for it in workers):
                break
            await sleep(self._loop, _ENDING_PAUSE)
        if id in self._mounted:
            raise CallError("conflict", f"files of container {id} are being copied")

    def container_removed(self, id: str) -> None:
        """Its files are being deleted: who works on them gives up."""
        for worker in list(self._workers.get(id, {}).values()):
            worker.kill()
            worker.abandon("the container was removed")

    def _begin(
        self,
        id: str,
        params: Params,
        stream: GuestStream,
        work: Callable[[Kernel, int, int], None],
    ) -> None:
        self._count += 1
        holder = f"archive:{self._count}"
        try:
            lowers = self._layers.hold(holder, params.items("layers", str))
        except LayerError as error:
            raise CallError("conflict", str(error)) from error
        kernel = self._kernel
        feed, feeder = big_pipe() if params.text("op") == WRITE else (-1, -1)
        feeding: list[Stdin] = []

        def ended() -> None:
            for stdin in feeding:
                stdin.close()
            self._layers.release(holder)
            if not running:
                self._mounted.remove(id)
            workers = self._workers[id]
            del workers[holder]
            if not workers:
                del self._workers[id]

        try:
            enter, keep = self._view(id, params, lowers)
            running = bool(keep)

            def job(out: int) -> None:
                try:
                    enter()
                    work(kernel, out, feed)
                except _Refusal as error:
                    _put_head(out, {"code": error.code, "message": str(error)})
                except difference.DifferenceError as error:
                    raise JobError(str(error)) from error

            worker = Worker(self._loop, kernel, stream, job, ended, keep=[*keep, *_real(feed)])
        except BaseException:
            self._layers.release(holder)
            _close_all(_real(feed, feeder))
            raise
        _close_all([*keep, *_real(feed)])
        if not running:
            self._mounted.append(id)
        if feeder >= 0:
            feeding.append(Stdin(self._loop, feeder, True))
            feeding[0].connect(stream)
            worker.on_abandon = feeding[0].close  # it waits for what will not come
        self._workers.setdefault(id, {})[holder] = worker

    def _view(self, id: str, params: Params, lowers: tuple[str, ...]) -> tuple[Enter, list[int]]:
        """How the child gets into the container, and what it needs for that."""
        kernel = self._kernel
        container = self._containers.find(id)
        if container is not None and container.running:
            pidfd: int = _os.pidfd_open(container.pid)
            own_users = _has_user_namespace(container.pid)
            return lambda: rootview.enter_running(kernel, pidfd, own_users), [pidfd]
        if container is not None and container.alive:
            raise CallError("conflict", f"container {id} is starting or ending: try again")
        rootfs, mounts = self._containers.stopped_root(id, lowers, params.items("mounts", dict))
        target = self._paths.run / "archive"
        target.mkdir(mode=0o700, exist_ok=True)
        readonly = params.flag("readonly")
        view = rootview.Stopped(rootfs, self._paths.layers, target, mounts, readonly)
        return lambda: rootview.enter_stopped(kernel, view), []


def _has_user_namespace(pid: int) -> bool:
    """Whether it is another one than ours, namespaces(7)."""
    own, theirs = (Path(f"/proc/{it}/ns/user").stat() for it in ("self", pid))
    return (own.st_dev, own.st_ino) != (theirs.st_dev, theirs.st_ino)


# In the child. The root is the container's.


def _read(kernel: Kernel, path: bytes, out: int, contents: bool) -> None:
    """The head with the file's status; with `contents` a tar of it, and of all that is in it."""
    clean, follow = _meaning(path)
    parent, name, status = _locate(kernel, clean, follow)
    _put_head(out, {"stat": _described(clean, path, name, status)})
    if not contents:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.chdir(parent)
        changes: Iterator[Change] = iter(
            [Change(difference.ADDED, name, status, difference.read_xattrs(name))]
        )
    else:
        changes = _tree(kernel, parent, name, _base(clean, path))
    treetar.write_tar(changes, out, whiteouts=False)


def _tree(kernel: Kernel, parent: int, name: bytes, base: bytes) -> Iterator[Change]:
    """A directory and what is in it, under the name that was asked for; the root has none."""
    flags = os.O_RDONLY | _O_DIRECTORY
    top = kernel.openat2(parent, name, flags, RESOLVE_NO_MAGICLINKS)
    os.chdir(top)
    if base != b"/":
        yield Change(difference.ADDED, base, os.fstat(top), difference.read_xattrs(b"."))
    for change in difference.differences(b".", None, placeholders=frozenset()):
        yield replace(change, path=b"%s/%s" % (base.rstrip(b"/"), change.path))


def _write(kernel: Kernel, path: bytes, wanted: _Write, out: int, feed: int) -> None:
    clean, _ = _meaning(path)
    try:
        target = rootview.open_in_root(kernel, clean, os.O_RDONLY | _O_DIRECTORY)
    except NotADirectoryError as error:
        raise _Refusal("invalid", "extraction point is not a directory") from error
    except OSError as error:
        raise _missing(clean, error) from error
    flags = _os.fstatvfs(target).f_flag
    if flags & _os.ST_RDONLY:
        in_root = os.fstat(target).st_dev == os.lstat("/").st_dev
        what = "container rootfs" if in_root else "mounted volume"
        raise _Refusal("invalid", f"{what} is marked read-only")
    owner = _owner(kernel, wanted.user)

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = os.read(feed, count - len(data))
            if not piece:
                raise JobError("the archive was cut short")
            data += piece
        return data

    unpacker = Unpacker(kernel, target, exactly, keep_kind=wanted.keep_kind, owner=owner)
    try:
        count = unpacker.run()
    except UnpackError as error:
        raise _Refusal("invalid", str(error)) from error
    _put_head(out, {"count": count})


def _owner(kernel: Kernel, user: str) -> tuple[int, int] | None:
    if not user:
        return None
    accounts = parse_passwd(read_file(kernel, "/etc/passwd"))
    groups = parse_group(read_file(kernel, "/etc/group"))
    try:
        identity = resolve(User(username=user), accounts, groups)
    except SetupError as error:
        raise _Refusal("invalid", error.message) from error
    return identity.uid, identity.gid


def _meaning(path: bytes) -> tuple[bytes, bool]:
    """An absolute, clean path, and whether a link at its end is followed."""
    clean = b"/" + posixpath.normpath(b"/" + path).lstrip(b"/")
    return clean, clean == b"/" or path.endswith((b"/", b"/."))


def _base(clean: bytes, path: bytes) -> bytes:
    """What the top of the tar is called; Go's filepath.Base of what was asked for."""
    if path.endswith(b"/.") and clean != b"/":
        return b"."
    return clean.rpartition(b"/")[2] or b"/"


def _locate(kernel: Kernel, clean: bytes, follow: bool) -> tuple[int, bytes, os.stat_result]:
    """(open parent, name in it, status): of the directory itself the name is `.`"""
    directory, _, name = clean.rpartition(b"/")
    try:
        if follow:
            flags = O_PATH | _O_DIRECTORY
            parent, name = rootview.open_in_root(kernel, clean, flags), b"."
        else:
            parent = rootview.open_in_root(kernel, directory or b"/", O_PATH | _O_DIRECTORY)
        return parent, name, os.stat(name, dir_fd=parent, follow_symlinks=False)
    except NotADirectoryError as error:
        raise _Refusal("invalid", f"{_shown(clean)} is not a directory") from error
    except OSError as error:
        raise _missing(clean, error) from error


def _described(clean: bytes, path: bytes, name: bytes, status: os.stat_result) -> dict[str, object]:
    target = b""
    if stat.S_ISLNK(status.st_mode):
        target = os.path.realpath(clean)  # only words: nobody here follows it
    return {
        "name": _shown(_base(clean, path)),
        "size": status.st_size,
        "mode": status.st_mode,
        "mtime_ns": status.st_mtime_ns,
        "link_target": _shown(target),
    }


def _missing(path: bytes, error: OSError) -> _Refusal:
    if error.errno in _MISSING:
        return _Refusal("not_found", f"Could not find the file {_shown(path)}")
    return _Refusal("failed", f"{_shown(path)}: {error.strerror}")


def _put_head(out: int, head: dict[str, object]) -> None:
    data = json.dumps(head).encode()
    view = memoryview(len(data).to_bytes(_LENGTH, "big") + data)
    while view:
        view = view[os.write(out, view) :]


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _real(*fds: int) -> list[int]:
    return [fd for fd in fds if fd >= 0]


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
