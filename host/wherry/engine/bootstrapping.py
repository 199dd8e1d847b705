"""`wherry image bootstrap`: a Debian image from packages, configured in a container.

unpack on the host -> an image of that, without a name -> a container of it runs `dpkg --configure`
-> its layer is read -> both become one layer on the host. The container and the first image are
gone at the end, however it comes.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from wherry.build import bootstrap, configure
from wherry.build.tree import FileTree
from wherry.engine.containers import Containers
from wherry.engine.images import Images
from wherry.engine.snapshots import READ_SIZE, Snapshots
from wherry.errors import ImageBuildError, WherryError
from wherry.images.committing import Commit
from wherry.images.platform import Platform
from wherry.images.store import Image

log = logging.getLogger(__name__)

_SETTING_UP = b"Setting up "
"""What dpkg prints for each package that it configures."""

_TAIL_BYTES = 16 * 1024

Progress = Callable[[str, int, int], None]
"""progress(phase, done, total)"""


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """The result. `lock` names exactly the packages; `notices` are for a person."""

    image: Image
    lock: str
    notices: tuple[str, ...]


class Bootstrapper:
    """Args:
    scratch: a directory for files that have no names.
    """

    def __init__(
        self,
        containers: Containers,
        snapshots: Snapshots,
        images: Images,
        sources: bootstrap.Sources,
        scratch: Path,
    ) -> None:
        self._containers = containers
        self._snapshots = snapshots
        self._images = images
        self._sources = sources
        self._scratch = scratch

    async def bootstrap(
        self,
        recipe: bootstrap.Recipe,
        name: str | None,
        progress: Progress,
        *,
        lock: str | None = None,
        refresh: bool = False,
    ) -> Bootstrapped:
        """Make the image and give it `name`. `lock`, `refresh`: as `bootstrap.get_packages`.

        Raises:
            InvalidInput, ImageBuildError: as the steps do; a package cannot be configured.
        """
        packages = await asyncio.to_thread(
            bootstrap.get_packages,
            recipe,
            self._sources,
            lock_text=lock,
            refresh=refresh,
            progress=progress,
        )
        new = Commit(
            config=bootstrap.image_config(),
            platform=Platform("linux", recipe.architecture),
            created_ns=packages.lock.epoch * 1_000_000_000,
            created_by=recipe.describe(),
        )
        with FileTree(self._scratch) as tree:
            count = await asyncio.to_thread(bootstrap.fill, tree, recipe, packages, progress)
            with _unnamed_file(self._scratch) as layer:
                async with self._unfinished(tree, new) as image:
                    await self._configure(image, packages.lock.epoch, count, layer, progress)
                progress("finish", 0, 1)
                await asyncio.to_thread(bootstrap.finish, tree, layer, packages.lock.epoch)
            image = await asyncio.to_thread(self._images.commit, None, tree.tar(), new, name)
            progress("finish", 1, 1)
        return Bootstrapped(image, bootstrap.lock_text(packages.lock), packages.notices)

    @asynccontextmanager
    async def _unfinished(self, tree: FileTree, new: Commit) -> AsyncIterator[Image]:
        """An image of the unpacked packages, without a name, for as long as the block lasts."""
        image = await asyncio.to_thread(self._images.commit, None, tree.tar(), new, None)
        try:
            yield image
        finally:
            try:
                await self._images.remove(image.id, force=True)
            except WherryError as error:
                log.warning("image %s stays behind: %s", image.id, error)

    async def _configure(
        self, image: Image, epoch: int, count: int, layer: BinaryIO, progress: Progress
    ) -> None:
        """Run the script in a container; what it changed goes to `layer`."""
        config: dict[str, Any] = {
            "Image": image.id,
            "Entrypoint": [],
            "Cmd": configure.command(),
            "Env": configure.environment(epoch),
        }
        container = await self._containers.create(None, config, {"NetworkMode": "none"})
        try:
            ended = self._containers.waiter(container.id, "next-exit")
            progress("configure", 0, count)
            await self._containers.start(container.id)
            tail = await self._watch(container.id, count, progress)
            status = await ended
            if status.code:
                log.error("a package cannot be configured: %s", tail.decode("utf-8", "replace"))
                raise ImageBuildError(
                    f"a package cannot be configured: {_complaint(tail)}",
                    hint="the engine's log has more of dpkg's output",
                )
            async with self._snapshots.layer_of(container.id) as stream:
                while data := await stream.read(READ_SIZE):
                    layer.write(data)
            layer.seek(0)
        finally:
            await self._containers.remove(container.id, force=True)

    async def _watch(self, container_id: str, count: int, progress: Progress) -> bytes:
        """Follow the output to its end; the last of it."""
        done, tail = 0, b""
        frames = self._containers.logs(container_id, follow=True)
        async for frame in frames:
            done += frame.payload.count(_SETTING_UP)
            tail = (tail + frame.payload)[-_TAIL_BYTES:]
            progress("configure", min(done, count), count)
        return tail


def _unnamed_file(directory: Path) -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile(dir=directory))


def _complaint(tail: bytes) -> str:
    """dpkg's own words: the line that begins with its name, else the last one."""
    lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("dpkg: error")]
    return (errors or lines or ["it says nothing"])[-1]
