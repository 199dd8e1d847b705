"""Routes of what Docker has no endpoint for, under /wherry/v1: the machine and the engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wherry.api.http import Request, Response, Route, json_lines, json_response
from wherry.api.progress import Message, Report, with_progress

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_CONSOLE_LINES = 1000


async def inspect(engine: Engine, _request: Request) -> Response:
    return json_response(engine.machine.inspect())


async def start(engine: Engine, request: Request) -> Response:
    """JSON lines: {"phase", "done", "total"}, …, then {"machine": its inspect}.

    `template`: restore a saved machine when there is a good one (the default).
    """
    template = request.flag("template", True)

    async def work(report: Report) -> Message:
        def progress(phase: str, done: int, total: int) -> None:
            report({"phase": phase, "done": done, "total": total})

        await engine.images.ensure_builtin(progress)
        await engine.machine.ensure_running(progress, template=template)
        return {"machine": engine.machine.inspect()}

    return json_lines(with_progress(work))


async def upgrade(engine: Engine, _request: Request) -> Response:
    """JSON lines: progress, then {"changed": [{"name", "old", "new"}]}."""

    async def work(report: Report) -> Message:
        def progress(phase: str, done: int, total: int) -> None:
            report({"phase": phase, "done": done, "total": total})

        changes = await engine.machine.upgrade(progress)
        return {"changed": changes}

    return json_lines(with_progress(work))


async def emulators(engine: Engine, _request: Request) -> Response:
    """Have the emulators for other architectures on this host: JSON lines, then {"ready": true}."""

    async def work(report: Report) -> Message:
        def progress(phase: str, done: int, total: int) -> None:
            report({"phase": phase, "done": done, "total": total})

        await engine.emulation.fetch(progress)
        return {"ready": True}

    return json_lines(with_progress(work))


async def template(engine: Engine, _request: Request) -> Response:
    """Have a saved machine for the next start: {"key", "status", "reason", "bytes", …}."""
    return json_response(await engine.machine.save_template())


async def stop(engine: Engine, request: Request) -> Response:
    """`session`: it ends with the session; nobody wants it off."""
    if not request.flag("session"):
        engine.presence.machine_stopped_on_request()
    await engine.machine.stop()
    return json_response(engine.machine.inspect())


async def console(engine: Engine, request: Request) -> Response:
    """The last lines of the serial console, as text. `lines`: how many."""
    wanted = request.number("lines", _CONSOLE_LINES) or _CONSOLE_LINES
    text = await asyncio.to_thread(engine.machine.console_tail, wanted)
    return Response(200, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")


async def timeline(engine: Engine, _request: Request) -> Response:
    """{"starts": [{"began_ns", "kind", "phases": [{"name", "seconds"}], "failed", "reason"}]}."""
    return json_response({"starts": await asyncio.to_thread(engine.timeline)})


async def guest(engine: Engine, _request: Request) -> Response:
    """The agent's `system.info` with figures: counts and memory that must not grow."""
    return json_response(await engine.guest_info())


async def engine_facts(engine: Engine, _request: Request) -> Response:
    facts: dict[str, Any] = engine.facts()
    return json_response(facts)


async def engine_stop(engine: Engine, _request: Request) -> Response:
    """End the engine process; the machine and its containers go on."""
    return Response(204, then=engine.request_exit)


async def engine_yield(engine: Engine, request: Request) -> Response:
    """End the engine process for a newer one, unless that would cut off somebody (409).

    Query: `python`, the interpreter that would run the newer one. The answer: `{"activated"}`,
    whether the session's manager holds the socket and starts the next engine.
    """
    engine.presence.give_way(f"{request.method} {request.path}", request.text("python"))
    answer = json_response({"activated": engine.presence.activated})
    return replace(answer, then=engine.request_exit)


TABLE: list[Route] = [
    ("GET", "/wherry/v1/machine", inspect),
    ("POST", "/wherry/v1/machine/start", start),
    ("POST", "/wherry/v1/machine/stop", stop),
    ("POST", "/wherry/v1/machine/template", template),
    ("POST", "/wherry/v1/machine/upgrade", upgrade),
    ("POST", "/wherry/v1/machine/emulators", emulators),
    ("GET", "/wherry/v1/machine/console", console),
    ("GET", "/wherry/v1/machine/guest", guest),
    ("GET", "/wherry/v1/machine/timeline", timeline),
    ("GET", "/wherry/v1/engine", engine_facts),
    ("POST", "/wherry/v1/engine/stop", engine_stop),
    ("POST", "/wherry/v1/engine/yield", engine_yield),
]
