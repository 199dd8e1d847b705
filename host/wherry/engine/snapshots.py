"""What is in a container: its changes and its tree as they stream from the guest, and images of it.

The machine is started when it is off. While somebody reads, the layers stay plugged in and the
guest keeps the container's files, also those of a container that is removed meanwhile.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from wherry.engine.config import merged_config
from wherry.engine.events import EventBus, container_event
from wherry.engine.guest import START_TIMEOUT, Guest, image_of
from wherry.engine.images import Images
from wherry.engine.ports import StreamPort
from wherry.engine.registry import Entry, Registry
from wherry.errors import LinkError
from wherry.images.changes import apply_changes
from wherry.images.committing import Commit
from wherry.images.platform import parse_platform
from wherry.images.reference import parse_tagged
from wherry.images.store import Image
from wherry.link import StreamReset

READ_SIZE = 256 * 1024


class ChangeKind(enum.Enum):
    """What happened to a path; the values are the guest's letters."""

    CHANGED = b"C"
    ADDED = b"A"
    DELETED = b"D"


@dataclass(frozen=True, slots=True)
class PathChange:
    """One path that a container changed. `path` is absolute; bytes that are no UTF-8 are escaped
    as Python does (`surrogateescape`)."""

    kind: ChangeKind
    path: str


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """How to make an image of a container.

    Attributes:
        name: what it is called, with a tag; None: nothing.
        config: Docker's `Config`, over the container's own.
        changes: Dockerfile instructions for it.
        pause: let the container stand still while its files are read.
    """

    name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[str] = ()
    author: str = ""
    comment: str = ""
    pause: bool = True


class Snapshots:
    """Reads the files of containers. `ref` is an id, a name, or a prefix of an id."""

    def __init__(self, registry: Registry, events: EventBus, guest: Guest, images: Images) -> None:
        self._registry = registry
        self._events = events
        self._guest = guest
        self._images = images
        self._numbers = itertools.count(1)

    async def changes(self, ref: str) -> list[PathChange]:
        """What differs from the image; a directory before what is in it.

        Raises:
            NotFound. LinkError: the guest could not read the files.
        """
        entry = self._registry.find(ref)
        parts = []
        async with self.opened(entry, "container.changes") as stream:
            while data := await stream.read(READ_SIZE):
                parts.append(data)
        return parse_changes(b"".join(parts))

    def export(self, ref: str) -> AsyncIterator[bytes]:
        """All its files as a tar; what is mounted in it is left out. Raises as `changes`."""
        return self._export(self._registry.find(ref))

    async def _export(self, entry: Entry) -> AsyncIterator[bytes]:
        async with self.opened(entry, "container.export") as stream:
            while data := await stream.read(READ_SIZE):
                yield data
        self._events.publish_late(container_event(entry.container, "export"))

    async def commit(self, ref: str, request: CommitRequest) -> Image:
        """Make an image of a container: its image's layers, and one of what it changed.

        Raises:
            NotFound. InvalidInput: a change or the name is malformed, or the container's files are
                not what a layer can hold. LinkError: the guest could not read them.
        """
        entry = self._registry.find(ref)
        container = entry.container
        config = _image_config(merged_config(request.config, container.config))
        new = Commit(
            config=apply_changes(config, request.changes),
            platform=parse_platform(container.platform),
            created_ns=time.time_ns(),
            created_by=" ".join(container.config.get("Cmd") or ()),
            comment=request.comment,
            author=request.author,
        )
        name = str(parse_tagged(request.name)) if request.name is not None else None
        image = await self.make_image(entry, new, name, pause=request.pause)
        facts = {"comment": request.comment, "imageID": image.id, "imageRef": request.name or ""}
        self._events.publish_late(container_event(container, "commit", **facts))
        return image

    async def make_image(
        self, entry: Entry, new: Commit, name: str | None, *, pause: bool
    ) -> Image:
        """Read the container's layer and store an image with it."""
        loop = asyncio.get_running_loop()
        async with self.opened(entry, "container.layer", pause=pause) as stream:
            return await asyncio.to_thread(
                self._images.commit,
                image_of(entry.container),
                blocking_chunks(stream, loop),
                new,
                name,
            )

    @asynccontextmanager
    async def layer_of(self, ref: str) -> AsyncIterator[StreamPort]:
        """What a container changed, as the tar of a layer. Raises as `changes`."""
        async with self.opened(self._registry.find(ref), "container.layer") as stream:
            yield stream

    @asynccontextmanager
    async def opened(
        self, entry: Entry, method: str, *, pause: bool = False
    ) -> AsyncIterator[StreamPort]:
        """The stream of one of the guest's calls that read a container's files.

        Raises (also while the stream is read in the block):
            LinkError: the guest could not read them; says why.
        """
        container = entry.container
        holder = f"snapshot:{container.id}:{next(self._numbers)}"
        with entry.reading():
            try:
                link, layers = await self._guest.prepare(container, holder)
                stream = link.open_stream()
                try:
                    params = {"id": container.id, "layers": layers, "pause": pause}
                    params["stream"] = stream.id
                    await link.call(method, params, timeout=START_TIMEOUT)
                    yield stream
                finally:
                    stream.reset("nobody reads on")
            except StreamReset as error:
                name = container.name
                raise LinkError(f"the files of container {name}: {error.reason}") from error
            finally:
                self._guest.unpin(holder)


_IMAGE_CONFIG = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels",
    "StopSignal", "Healthcheck", "OnBuild", "Shell", "ArgsEscaped",
)  # fmt: skip
"""OCI image-spec, config.md, and what Docker adds: the rest is the container's own affair."""


def _image_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _IMAGE_CONFIG if config.get(key)}


def parse_changes(data: bytes) -> list[PathChange]:
    """The stream of `container.changes`.

    Raises:
        LinkError: it is malformed.
    """
    if data and not data.endswith(b"\0"):
        raise LinkError("the guest sent a torn list of changes")
    try:
        return [
            PathChange(ChangeKind(item[:1]), item[1:].decode("utf-8", "surrogateescape"))
            for item in data.split(b"\0")[:-1]
        ]
    except ValueError as error:
        raise LinkError("the guest sent a change that is none") from error


def blocking_chunks(stream: StreamPort, loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """The stream's bytes for a thread; `loop` is where the stream lives.

    Raises as the stream does; a reset of the stream ends the thread's wait.
    """
    while data := asyncio.run_coroutine_threadsafe(stream.read(READ_SIZE), loop).result():
        yield data
