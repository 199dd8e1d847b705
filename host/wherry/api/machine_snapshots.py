"""Routes of the machine's snapshots, under /wherry/v1/machine/snapshots; and its disk, trimmed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wherry.api.http import Request, Response, Route, json_response
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine


async def ls(engine: Engine, _request: Request) -> Response:
    """{"snapshots": [{"name", "saved_ns", "memory", "running", "containers", "bytes", …}]}."""
    return json_response({"snapshots": await engine.machine_snapshots.all()})


async def save(engine: Engine, request: Request) -> Response:
    """Body: {"name"}. The machine's containers run on. Answers with the snapshot's facts."""
    body = request.json()
    name = body.get("name")
    if set(body) - {"name"} or not isinstance(name, str):
        raise InvalidInput("the body must be {name: that of the snapshot}")
    return json_response(await engine.machine_snapshots.save(name), 201)


async def restore(engine: Engine, request: Request) -> Response:
    """Go back to it. After the answer all connections end; a new engine answers new ones, and has
    the machine go on."""
    name = request.args["name"]
    then = await engine.machine_snapshots.restore(name)
    return replace(json_response({"restored": name}), then=then)


async def remove(engine: Engine, request: Request) -> Response:
    await engine.machine_snapshots.remove(request.args["name"])
    return Response(204)


async def trim(engine: Engine, _request: Request) -> Response:
    """Give back to the host what the guest has deleted: {"bytes"}."""
    return json_response({"bytes": await engine.trims.now()})


TABLE: list[Route] = [
    ("GET", "/wherry/v1/machine/snapshots", ls),
    ("POST", "/wherry/v1/machine/snapshots", save),
    ("POST", "/wherry/v1/machine/snapshots/{name}/restore", restore),
    ("DELETE", "/wherry/v1/machine/snapshots/{name}", remove),
    ("POST", "/wherry/v1/machine/trim", trim),
]
