"""Routes under /containers of what goes on while one runs: pause, update, stats, top."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from wherry.api import fields
from wherry.api.http import Request, Response, Route, json_response
from wherry.api.stats import docker_stats, empty_stats

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.engine.stats import Sample


async def pause(engine: Engine, request: Request) -> Response:
    await engine.lives.pause(request.args["id"])
    return Response(204)


async def unpause(engine: Engine, request: Request) -> Response:
    await engine.lives.unpause(request.args["id"])
    return Response(204)


async def update(engine: Engine, request: Request) -> Response:
    changes = request.json()
    fields.check(fields.UPDATE, changes)
    await engine.lives.update(request.args["id"], changes)
    return json_response({"Warnings": []})


async def top(engine: Engine, request: Request) -> Response:
    titles, rows = await engine.lives.top(request.args["id"], request.text("ps_args"))
    return json_response({"Titles": titles, "Processes": rows})


async def stats(engine: Engine, request: Request) -> Response:
    """`stream` (the default): an object a second, for ever; else one, with the one before it unless
    `one-shot`."""
    container = engine.containers.get(request.args["id"])
    if request.flag("stream", True):
        return Response(200, _stream(engine, container.id), "application/json")
    source = engine.sampler.stream(container.id)
    before: Sample | None = None
    try:
        container, sample = await anext(source)
        if sample is not None and not request.flag("one-shot"):
            before = sample
            container, sample = await anext(source)
    finally:
        await source.aclose()
    if sample is None:
        return json_response(empty_stats(container))
    return json_response(docker_stats(container, sample, before))


async def _stream(engine: Engine, container_id: str) -> AsyncIterator[bytes]:
    before: Sample | None = None
    async for container, sample in engine.sampler.stream(container_id):
        shape: dict[str, Any]
        if sample is None:
            shape, before = empty_stats(container), None
        else:
            shape = docker_stats(container, sample, before)
            before = sample
        yield json.dumps(shape, separators=(",", ":")).encode() + b"\n"


TABLE: list[Route] = [
    ("POST", "/containers/{id}/pause", pause),
    ("POST", "/containers/{id}/unpause", unpause),
    ("POST", "/containers/{id}/update", update),
    ("GET", "/containers/{id}/top", top),
    ("GET", "/containers/{id}/stats", stats),
]
