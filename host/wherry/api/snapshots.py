"""Routes that read a container's files: changes, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wherry.api.http import Request, Response, Route, byte_response, json_response
from wherry.engine.snapshots import ChangeKind

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_KINDS = {ChangeKind.CHANGED: 0, ChangeKind.ADDED: 1, ChangeKind.DELETED: 2}
"""Engine API, ChangeType."""


async def changes(engine: Engine, request: Request) -> Response:
    found = await engine.snapshots.changes(request.args["id"])
    return json_response([{"Path": change.path, "Kind": _KINDS[change.kind]} for change in found])


async def export(engine: Engine, request: Request) -> Response:
    return await byte_response(engine.snapshots.export(request.args["id"]), "application/x-tar")


TABLE: list[Route] = [
    ("GET", "/containers/{id}/changes", changes),
    ("GET", "/containers/{id}/export", export),
]
