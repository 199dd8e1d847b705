"""`cp`: files of containers out as a tar and in from one, running or not.

The host reads the archive, the guest makes the files (`wherry_guest.entries`). A container that
does not run is not started, and nobody starts or removes it meanwhile; the machine is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from wherry.engine.events import EventBus, container_event
from wherry.engine.guest import START_TIMEOUT, Guest
from wherry.engine.ports import StreamPort
from wherry.engine.registry import Entry, Registry
from wherry.engine.spec_mounts import runtime_mounts
from wherry.engine.stillness import CountedStream, Hold, giving_way
from wherry.engine.volumes import VolumeTable
from wherry.errors import InvalidInput, LinkError, NotFound, WherryError
from wherry.images.compress import decompress
from wherry.images.pieces import Pieces
from wherry.images.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    TarEntry,
    TarReader,
)
from wherry.link import StreamReset
from wherry_guest import entries

READ_SIZE = 256 * 1024
_LENGTH = 4
_HEAD_LIMIT = 1 << 20
_WHAT = "the archive"
_KINDS = {
    REGULAR: entries.FILE,
    DIRECTORY: entries.DIRECTORY,
    SYMLINK: entries.SYMLINK,
    HARD_LINK: entries.LINK,
    CHARACTER: entries.CHARACTER,
    BLOCK_DEVICE: entries.BLOCK,
    FIFO: entries.FIFO,
}


@dataclass(frozen=True, slots=True)
class PathStatus:
    """A file in a container.

    Attributes:
        name: the last part of the path that was asked for.
        mode: as in struct stat, with the kind of file.
        link_target: where a symbolic link leads, an absolute path in the container.
    """

    name: str
    size: int
    mode: int
    mtime_ns: int
    link_target: str


class Copying:
    """Files in and out of the containers of one machine."""

    def __init__(
        self, registry: Registry, events: EventBus, guest: Guest, volumes: VolumeTable
    ) -> None:
        self._registry = registry
        self._events = events
        self._guest = guest
        self._directory: Callable[[str], str] = lambda name: volumes.find(name).directory
        self._numbers = itertools.count(1)

    async def status(self, ref: str, path: str) -> PathStatus:
        """Raises NotFound for a path that there is not, too."""
        entry = self._registry.find(ref)
        async with self._open(entry, "stat", path) as reply:
            return _path_status(await reply.head(entry))

    def read(self, ref: str, path: str) -> AsyncIterator[PathStatus | bytes]:
        """The status of what is at `path`, then the pieces of a tar of it.

        Raises (the first step): NotFound, InvalidInput.
        """
        return self._read(self._registry.find(ref), path)

    async def write(
        self, ref: str, path: str, archive: Iterator[bytes], *, keep_kind: bool, as_user: bool
    ) -> None:
        """Unpack a tar, plain or compressed, in the directory at `path`.

        Args:
            archive: iterated in a thread.
            keep_kind: no directory is replaced by something else, nor the other way round.
            as_user: everything is the container's configured user's.

        Raises:
            NotFound: there is no such directory.
            InvalidInput: it is none, is read-only, or the archive is damaged or leads out of it.
        """
        entry = self._registry.find(ref)
        user = entry.container.config.get("User") or "" if as_user else ""
        more = {"keep_kind": keep_kind, "user": user}
        async with self._open(entry, "write", path, **more) as reply:
            loop = asyncio.get_running_loop()

            def send(data: bytes) -> None:
                asyncio.run_coroutine_threadsafe(reply.stream.write(data), loop).result()

            head = asyncio.ensure_future(reply.head(entry))
            sending = asyncio.ensure_future(asyncio.to_thread(send_entries, archive, send))
            try:
                await asyncio.wait([head, sending], return_when=asyncio.FIRST_COMPLETED)
                if not head.done():  # all is sent, or the archive is no good, which is said here
                    await sending
                    await reply.stream.end()
                await head
            except StreamReset:
                await head  # the guest's own words, when it has said something
                raise
            finally:
                head.cancel()
                reply.stream.reset("the archive is at its end")
                await asyncio.gather(head, sending, return_exceptions=True)
        self._events.publish_late(container_event(entry.container, "extract-to-dir"))

    async def _read(self, entry: Entry, path: str) -> AsyncIterator[PathStatus | bytes]:
        async with self._open(entry, "read", path) as reply:
            yield _path_status(await reply.head(entry))
            if reply.rest:
                yield bytes(reply.rest)
            while data := await reply.stream.read(READ_SIZE):
                yield data
        self._events.publish_late(container_event(entry.container, "archive-path"))

    @asynccontextmanager
    async def _open(self, entry: Entry, op: str, path: str, **more: Any) -> AsyncIterator[_Reply]:
        """The stream of one `container.archive`.

        Raises (also while it is used):
            LinkError: the guest could not do it; says why.
        """
        container = entry.container
        holder = f"archive:{container.id}:{next(self._numbers)}"
        async with _still(entry) as hold, _reading(entry):
            container = entry.container
            mounts = runtime_mounts(container, self._directory)
            params: dict[str, Any] = {
                "id": container.id,
                "op": op,
                "path": path,
                "mounts": [mount for mount in mounts if mount["type"] == "volume"],
                "readonly": bool(container.host_config.get("ReadonlyRootfs")),
                **more,
            }
            try:
                link, params["layers"] = await self._guest.prepare(container, holder)
                stream = CountedStream(link.open_stream())
                try:
                    params["stream"] = stream.id
                    await link.call("container.archive", params, timeout=START_TIMEOUT)
                    async with giving_way(hold, stream):
                        yield _Reply(stream)
                finally:
                    stream.reset("nobody goes on")
            except StreamReset as error:
                words = f"the files of container {container.name}: {error.reason}"
                raise LinkError(words) from error
            finally:
                self._guest.unpin(holder)


class _Reply:
    """What the guest says on the stream: a head, and perhaps more. `rest` came behind the head."""

    def __init__(self, stream: StreamPort) -> None:
        self.stream = stream
        self.rest = bytearray()

    async def head(self, entry: Entry) -> dict[str, Any]:
        """Raises the refusal that it may be: NotFound, InvalidInput, LinkError."""
        await self._fill(_LENGTH)
        length = int.from_bytes(self.rest[:_LENGTH], "big")
        if length > _HEAD_LIMIT:
            raise LinkError("the guest's answer about a container's files is malformed")
        await self._fill(_LENGTH + length)
        text = bytes(self.rest[_LENGTH : _LENGTH + length])
        del self.rest[: _LENGTH + length]
        try:
            head = json.loads(text)
        except ValueError as error:
            raise LinkError("the guest's answer about a container's files is no JSON") from error
        if not isinstance(head, dict):
            raise LinkError("the guest's answer about a container's files is no object")
        if "code" in head:
            raise _refusal(entry, str(head["code"]), str(head.get("message")))
        return head

    async def _fill(self, count: int) -> None:
        while len(self.rest) < count:
            data = await self.stream.read(READ_SIZE)
            if not data:
                raise LinkError("the guest's answer about a container's files is cut short")
            self.rest += data


def send_entries(archive: Iterator[bytes], send: Callable[[bytes], None]) -> None:
    """A tar, plain or compressed, as the guest's entries; blocks.

    Raises:
        LayerError: it is damaged, or none.
    """
    reader = TarReader(Pieces(decompress(archive, _WHAT)), what=_WHAT)
    batch = bytearray()
    while (item := reader.next()) is not None:
        entry = _entry(item)
        batch += entries.encode(entry)
        left = entry.stored
        while left:
            data = reader.read(min(left, READ_SIZE))
            left -= len(data)
            batch += data
            if len(batch) >= READ_SIZE:
                send(bytes(batch))
                batch.clear()
    batch += entries.END
    send(bytes(batch))
    for _ in archive:  # what stands behind its end: whoever sends it should get rid of it
        pass


def _entry(item: TarEntry) -> entries.Entry:
    kind = _KINDS[item.kind]
    segments = None
    if kind == entries.FILE and item.segments is not None:
        segments = tuple(item.segments)
    return entries.Entry(
        name=item.name,
        kind=kind,
        mode=item.mode,
        uid=_id(item, item.uid),
        gid=_id(item, item.gid),
        mtime_ns=item.mtime * 1_000_000_000 + item.mtime_ns,
        size=item.size if kind == entries.FILE else 0,
        link=item.link,
        device=(item.major, item.minor),
        xattrs=tuple(item.xattrs or ()),
        segments=segments,
    )


def _id(item: TarEntry, number: int) -> int:
    if not 0 <= number < 2**32 - 1:
        name = item.name.decode("utf-8", "backslashreplace")
        raise InvalidInput(f"{_WHAT} has an impossible owner: {number}, of {name[:200]!r}")
    return number


@asynccontextmanager
async def _still(entry: Entry) -> AsyncIterator[Hold]:
    """A container that does not run stays so: whoever starts or removes it waits."""
    await entry.lock.acquire()
    hold = Hold(entry.lock)
    if entry.container.running:
        hold.release()
    try:
        if entry.gone:
            raise NotFound(f"No such container: {entry.container.name}")
        yield hold
    finally:
        hold.release()


@asynccontextmanager
async def _reading(entry: Entry) -> AsyncIterator[None]:
    with entry.reading():
        yield


def _path_status(head: dict[str, Any]) -> PathStatus:
    try:
        found = head["stat"]
        return PathStatus(
            name=str(found["name"]),
            size=int(found["size"]),
            mode=int(found["mode"]),
            mtime_ns=int(found["mtime_ns"]),
            link_target=str(found["link_target"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LinkError("the guest sent a file's status that is none") from error


def _refusal(entry: Entry, code: str, message: str) -> WherryError:
    if code == "not_found":
        return NotFound(f"{message} in container {entry.container.name}")
    return InvalidInput(message) if code == "invalid" else LinkError(message)
