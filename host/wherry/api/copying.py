"""Routes of a container's files: HEAD, GET and PUT of /containers/{id}/archive."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

from wherry.api.bodies import blocking
from wherry.api.http import Request, Response, Route, Streamed, byte_response
from wherry.api.timefmt import rfc3339
from wherry.engine.copying import PathStatus
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_HEADER = "X-Docker-Container-Path-Stat"

# Go's os.FileMode, which is no struct stat's: io/fs, "FileMode".
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
}
_GO_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


async def status(engine: Engine, request: Request) -> Response:
    found = await engine.copying.status(request.args["id"], _path(request))
    return Response(200, b"", "application/json", {_HEADER: status_header(found)})


async def get(engine: Engine, request: Request) -> Response:
    parts = engine.copying.read(request.args["id"], _path(request))
    found = await anext(parts)
    assert isinstance(found, PathStatus)

    async def contents() -> AsyncIterator[bytes]:
        async for part in parts:
            assert isinstance(part, bytes)
            yield part

    response = await byte_response(contents(), "application/x-tar")
    return replace(response, headers={_HEADER: status_header(found)})


async def put(engine: Engine, request: Request) -> Response:
    await engine.copying.write(
        request.args["id"],
        _path(request),
        blocking(request.incoming()),
        keep_kind=request.flag("noOverwriteDirNonDir"),
        as_user=request.flag("copyUIDGID"),
    )
    return Response(200)


def status_header(found: PathStatus) -> str:
    """What clients learn of a path, as Docker encodes it."""
    fields = {
        "name": found.name,
        "size": found.size,
        "mode": go_mode(found.mode),
        "mtime": rfc3339(found.mtime_ns),
        "linkTarget": found.link_target,
    }
    return base64.b64encode(json.dumps(fields).encode()).decode("ascii")


def go_mode(mode: int) -> int:
    """A struct stat's mode as Go's."""
    bits = sum(value for bit, value in _GO_BITS.items() if mode & bit)
    return (mode & 0o777) | bits | _GO_KINDS.get(stat.S_IFMT(mode), 0)


def _path(request: Request) -> str:
    path = request.text("path")
    if not path:
        raise InvalidInput("missing parameter in query: path")
    return path


TABLE: list[Route] = [
    ("HEAD", "/containers/{id}/archive", status),
    ("GET", "/containers/{id}/archive", get),
    ("PUT", "/containers/{id}/archive", Streamed(put)),
]
