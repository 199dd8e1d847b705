"""Routes of image archives: save, load, import. Bodies of any size, both ways."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from wherry.api.bodies import blocking, from_thread
from wherry.api.http import Request, Response, Route, Streamed, json_lines
from wherry.api.images import progress_message, pull
from wherry.api.progress import Message, Report, with_progress
from wherry.engine.upkeep import DOCKER_ARCHIVE, BlobPart, SavedArchive
from wherry.errors import InvalidInput, NotImplementedYet, WherryError

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.images.progress import PullEvent

_TAR = "application/x-tar"
log = logging.getLogger(__name__)


async def get_one(engine: Engine, request: Request) -> Response:
    return await _saved(engine, request, [request.args["name"]])


async def get_many(engine: Engine, request: Request) -> Response:
    """`names` stands once for each image. `format` is ours: docker-archive or oci-archive."""
    names = [name for name in request.query.get("names", []) if name]
    if not names:
        raise InvalidInput("names is empty")
    return await _saved(engine, request, names)


async def _saved(engine: Engine, request: Request, names: list[str]) -> Response:
    if request.text("platform"):
        raise NotImplementedYet("platform is not implemented for images/get")
    saved = await engine.upkeep.save(names, request.text("format") or DOCKER_ARCHIVE)
    if request.method == "HEAD":
        saved.close()
        return Response(200, b"", _TAR)
    return Response(200, from_thread(_told(saved)), _TAR, length=saved.size)


async def plan(engine: Engine, request: Request) -> Response:
    """For a client on this host, which copies the files itself: one line of JSON, {Size, Parts:
    [{Data: base64} or {Path, Size}]}. What it names is kept until the client closes."""
    names = [name for name in request.query.get("names", []) if name]
    if not names:
        raise InvalidInput("names is empty")
    saved = await engine.upkeep.save(names, request.text("format") or DOCKER_ARCHIVE)

    async def line() -> AsyncIterator[bytes]:
        try:
            parts = [
                {"Path": os.fspath(part.path), "Size": part.size}
                if isinstance(part, BlobPart)
                else {"Data": base64.b64encode(part).decode()}
                for part in saved.parts()
            ]
            yield json.dumps({"Size": saved.size, "Parts": parts}).encode() + b"\n"
            await asyncio.Event().wait()  # cancelled when the client closes
        finally:
            await asyncio.to_thread(saved.close)

    return Response(200, line(), "application/json")


def _told(saved: SavedArchive) -> Iterator[bytes]:
    """The archive. An error in its middle can only cut the connection, which clients notice."""
    try:
        yield from saved.pieces()
    except WherryError as error:
        log.warning("a save was cut short: %s", error)
        raise ConnectionAbortedError(error.message) from error
    finally:
        saved.close()


async def load(engine: Engine, request: Request) -> Response:
    """The answer's lines come while the body is read; `quiet` leaves the progress out."""
    chunks = blocking(request.incoming())
    quiet, platform = request.flag("quiet"), request.text("platform") or None

    async def work(report: Report) -> Message | None:
        def event(loading: PullEvent) -> None:
            report(progress_message(loading))

        loaded = await engine.upkeep.load(chunks, platform, None if quiet else event)
        for image in loaded:
            for name in image.renamed:
                report(
                    {"stream": f"The image {name} already exists: the old one loses that name\n"}
                )
            for name in image.names:
                report({"stream": f"Loaded image: {name}\n"})
            if not image.names:
                report({"stream": f"Loaded image ID: {image.id}\n"})
        return None

    return json_lines(with_progress(work))


async def import_rootfs(engine: Engine, request: Request) -> Response:
    """`fromSrc=-`: the tar of a root file system is the body."""
    if request.text("fromSrc") != "-":
        raise NotImplementedYet(
            "fromSrc with a URL is not implemented", hint="fetch the file, and import that"
        )
    chunks = blocking(request.incoming())
    repository, tag = request.text("repo"), request.text("tag")
    if repository and tag:
        repository = f"{repository}:{tag}"

    async def work(_report: Report) -> Message:
        image = await engine.upkeep.import_rootfs(
            chunks,
            name=repository or None,
            changes=[change for change in request.query.get("changes", []) if change],
            message=request.text("message"),
            platform=request.text("platform") or None,
        )
        return {"status": image.id}

    return json_lines(with_progress(work))


async def create(engine: Engine, request: Request) -> Response:
    """`fromSrc` imports, `fromImage` pulls; a pull's body says nothing."""
    if request.text("fromSrc"):
        return await import_rootfs(engine, request)
    async for _ in request.incoming():
        pass
    return await pull(engine, request)


TABLE: list[Route] = [
    ("POST", "/images/create", Streamed(create)),
    ("GET", "/images/get", get_many),
    ("GET", "/images/{name:path}/get", get_one),
    ("POST", "/images/load", Streamed(load)),
    ("GET", "/wherry/v1/images/save", plan),
]
