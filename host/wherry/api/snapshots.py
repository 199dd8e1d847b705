"""Routes that read a container's files: changes, export, commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wherry.api import fields
from wherry.api.http import Request, Response, Route, byte_response, json_response
from wherry.engine.snapshots import ChangeKind, CommitRequest
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_KINDS = {ChangeKind.CHANGED: 0, ChangeKind.ADDED: 1, ChangeKind.DELETED: 2}
"""Engine API, ChangeType."""


async def changes(engine: Engine, request: Request) -> Response:
    found = await engine.snapshots.changes(request.args["id"])
    return json_response([{"Path": change.path, "Kind": _KINDS[change.kind]} for change in found])


async def export(engine: Engine, request: Request) -> Response:
    return await byte_response(engine.snapshots.export(request.args["id"]), "application/x-tar")


async def commit(engine: Engine, request: Request) -> Response:
    config = {} if request.body.strip() == b"null" else request.json()
    fields.check(fields.CONFIG, config)
    container, repository = request.text("container"), request.text("repo")
    if not container:
        raise InvalidInput("container is empty")
    wanted = CommitRequest(
        name=f"{repository}:{request.text('tag') or 'latest'}" if repository else None,
        config=config,
        changes=request.query.get("changes", []),
        author=request.text("author"),
        comment=request.text("comment"),
        pause=request.flag("pause", True),
    )
    image = await engine.snapshots.commit(container, wanted)
    return json_response({"Id": image.id}, 201)


TABLE: list[Route] = [
    ("GET", "/containers/{id}/changes", changes),
    ("GET", "/containers/{id}/export", export),
    ("POST", "/commit", commit),
]
