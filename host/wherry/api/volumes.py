"""Routes under /volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wherry.api import views
from wherry.api.http import Request, Response, Route, json_response
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_CREATE_FIELDS = {"Name": str, "Driver": str, "DriverOpts": dict, "Labels": dict}


async def create(engine: Engine, request: Request) -> Response:
    body = request.json()
    for name, kind in _CREATE_FIELDS.items():
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise InvalidInput(f"{name} has a value of the wrong type: {body[name]!r}")
    if unknown := [name for name, value in body.items() if value and name not in _CREATE_FIELDS]:
        raise InvalidInput(f"unknown field: {unknown[0]}")
    volume = engine.volumes.create(
        body.get("Name") or "",
        labels={str(key): str(value) for key, value in (body.get("Labels") or {}).items()},
        driver=body.get("Driver") or "",
        options=body.get("DriverOpts"),
    )
    return json_response(views.volume_inspect(volume), 201)


async def listing(engine: Engine, request: Request) -> Response:
    found = engine.volumes.list(request.filters())
    return json_response(
        {"Volumes": [views.volume_inspect(volume) for volume in found], "Warnings": None}
    )


async def inspect(engine: Engine, request: Request) -> Response:
    return json_response(views.volume_inspect(engine.volumes.get(request.args["name"])))


async def remove(engine: Engine, request: Request) -> Response:
    engine.volumes.remove(request.args["name"], force=request.flag("force"))
    return Response(204)


async def prune(engine: Engine, request: Request) -> Response:
    filters = request.filters()
    if request.version < (1, 42):  # older clients mean all of them, and cannot say so
        filters.setdefault("all", ["true"])
    names, reclaimed = await engine.volumes.prune(filters)
    engine.trims.soon()
    answer: dict[str, Any] = {"VolumesDeleted": names, "SpaceReclaimed": reclaimed}
    return json_response(answer)


TABLE: list[Route] = [
    ("GET", "/volumes", listing),
    ("POST", "/volumes/create", create),
    ("POST", "/volumes/prune", prune),
    ("GET", "/volumes/{name}", inspect),
    ("DELETE", "/volumes/{name}", remove),
]
