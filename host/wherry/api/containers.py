"""Routes under /containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from wherry import detachkeys
from wherry.api import fields, views
from wherry.api.http import (
    Hijack,
    RawConnection,
    Request,
    Response,
    Route,
    byte_response,
    json_response,
)
from wherry.api.streams import content_type, log_bytes, multiplexed, relay
from wherry.api.timefmt import parse_time
from wherry.engine.logdetails import details_text, log_details
from wherry.errors import InvalidInput, WherryError

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.engine.model import ExitStatus


async def create(engine: Engine, request: Request) -> Response:
    body = request.json()
    host_config = body.pop("HostConfig", None) or {}
    networking = body.pop("NetworkingConfig", None)
    fields.check(fields.CONFIG, body)
    fields.check(fields.HOST_CONFIG, host_config, "HostConfig.")
    fields.check_networking(networking)
    if not body.get("Image"):
        raise InvalidInput("config: Image is empty", hint="name the image to run")
    platform = request.text("platform") or None
    container = await engine.containers.create(
        request.text("name") or None, body, host_config, platform=platform
    )
    warning = None if platform else engine.emulation.mismatch(container)
    # Ours: clients that know it fetch them now, and show how that goes.
    lacking = await asyncio.to_thread(engine.emulation.lacks_emulators, container)
    answer = {"Id": container.id, "Warnings": [warning] if warning else []}
    return json_response({**answer, "EmulatorsMissing": True} if lacking else answer, 201)


async def listing(engine: Engine, request: Request) -> Response:
    found = engine.containers.list(
        all=request.flag("all"), filters=request.filters(), limit=request.number("limit") or 0
    )
    sizes = await engine.sizes.of(found) if request.flag("size") else {}
    source = engine.volumes.mount_point
    return json_response(
        [views.container_summary(it, source, size=sizes.get(it.id)) for it in found]
    )


async def inspect(engine: Engine, request: Request) -> Response:
    container = await engine.lives.with_fresh_health(request.args["id"])
    sizes = await engine.sizes.of([container]) if request.flag("size") else {}
    size = sizes.get(container.id)
    answer = views.container_inspect(container, engine.volumes.mount_point, size)
    state = answer["State"]
    if not container.running and not state["Error"]:
        state["Error"] = engine.emulation.complaint(container, state["ExitCode"])
    return json_response(answer)


async def start(engine: Engine, request: Request) -> Response:
    await engine.containers.start(request.args["id"])
    return Response(204)


async def stop(engine: Engine, request: Request) -> Response:
    await engine.containers.stop(
        request.args["id"], timeout=request.number("t"), signal=request.text("signal") or None
    )
    return Response(204)


async def restart(engine: Engine, request: Request) -> Response:
    await engine.containers.restart(
        request.args["id"], timeout=request.number("t"), signal=request.text("signal") or None
    )
    return Response(204)


async def kill(engine: Engine, request: Request) -> Response:
    await engine.containers.kill(request.args["id"], request.text("signal") or "KILL")
    return Response(204)


async def remove(engine: Engine, request: Request) -> Response:
    if request.flag("link"):
        raise WherryError("link is not implemented", http_status=501)
    await engine.containers.remove(
        request.args["id"], force=request.flag("force"), volumes=request.flag("v")
    )
    return Response(204)


async def rename(engine: Engine, request: Request) -> Response:
    name = request.text("name")
    if not name:
        raise InvalidInput("name is empty")
    await engine.containers.rename(request.args["id"], name.removeprefix("/"))
    return Response(204)


async def resize(engine: Engine, request: Request) -> Response:
    rows, columns = request.number("h") or 0, request.number("w") or 0
    await engine.containers.resize(request.args["id"], rows, columns)
    return Response(200)


async def wait(engine: Engine, request: Request) -> Response:
    """The headers go out at once: clients wait before they start, and need them to go on."""
    condition = request.text("condition") or "not-running"
    container = engine.containers.get(request.args["id"])
    waiter = engine.containers.waiter(container.id, condition)

    async def answer() -> AsyncIterator[bytes]:
        status: ExitStatus = await waiter
        result: dict[str, Any] = {"StatusCode": status.code}
        if status.error:
            result["Error"] = {"Message": status.error}
        if complaint := engine.emulation.complaint(container, status.code):
            result["Hint"] = complaint  # ours; an Error would be a wait that failed
        yield json.dumps(result).encode() + b"\n"

    return Response(200, answer(), "application/json")


async def attach(engine: Engine, request: Request) -> Hijack:
    stdin = request.flag("stdin")
    keys = detachkeys.parse_keys(request.text("detachKeys") or detachkeys.DEFAULT)
    attachment = await engine.containers.attach(
        request.args["id"],
        stdin=stdin,
        stdout=request.flag("stdout"),
        stderr=request.flag("stderr"),
        logs=request.flag("logs"),
        stream=request.flag("stream"),
    )

    async def run(connection: RawConnection) -> None:
        await relay(attachment, connection, stdin=stdin, detach_keys=keys)

    return Hijack(run, content_type(attachment.tty, request.version))


async def logs(engine: Engine, request: Request) -> Response:
    container = engine.containers.get(request.args["id"])
    stdout, stderr = request.flag("stdout"), request.flag("stderr")
    if not (stdout or stderr):
        raise InvalidInput("Bad parameters: you must choose at least one stream")
    tail = request.text("tail") or "all"
    tty = bool(container.config.get("Tty"))
    frames = engine.containers.logs(
        container.id,
        stdout=stdout,
        stderr=stderr,
        follow=request.flag("follow"),
        since_ns=parse_time(request.text("since")),
        until_ns=parse_time(request.text("until")),
        tail=None if tail == "all" else request.number("tail"),
    )
    await engine.containers.prepare_logs(container.id)
    details = details_text(log_details(container)) if request.flag("details") else b""
    stamps = request.flag("timestamps")
    body = log_bytes(frames, tty=tty, timestamps=stamps, details=details)
    kind = content_type(tty, request.version)
    # Who follows a silent container needs the answer's head before there is anything else.
    return Response(200, body, kind) if request.flag("follow") else await byte_response(body, kind)


async def create_exec(engine: Engine, request: Request) -> Response:
    config = request.json()
    fields.check(fields.EXEC, config)
    if not config.get("Cmd"):
        raise InvalidInput("No exec command specified")
    execution = engine.execs.create(request.args["id"], config)
    return json_response({"Id": execution.id}, 201)


async def start_exec(engine: Engine, request: Request) -> Response | Hijack:
    """As Docker: the stream is opened first, and what then fails is said in it.

    Clients take the connection over when they have the head of the answer; docker-py loses what
    comes in the same packet, so a quick command's output must not be there already. They inspect
    the exec for its exit code, also for that of a start that failed (126, 127).
    """
    options = request.json()
    execution = engine.execs.get(request.args["id"])
    tty = bool(options.get("Tty"))
    if options.get("Detach") or execution.started:  # the latter is a conflict
        await engine.execs.start(execution.id, detach=True, tty=tty)
        return Response(200)
    stdin = bool(execution.config.get("AttachStdin"))
    keys = detachkeys.parse_keys(execution.config.get("DetachKeys") or detachkeys.DEFAULT)

    async def run(connection: RawConnection) -> None:
        try:
            attachment = await engine.execs.start(execution.id, detach=False, tty=tty)
        except WherryError as error:
            hint = f" ({error.hint})" if error.hint else ""
            text = f"{error.message}{hint}\r\n".encode()
            await connection.write(text if execution.tty else multiplexed(2, text))
            return
        if attachment is not None:
            await relay(attachment, connection, stdin=stdin, detach_keys=keys)

    return Hijack(run, content_type(execution.tty, request.version))


async def inspect_exec(engine: Engine, request: Request) -> Response:
    execution = engine.execs.get(request.args["id"])
    answer = views.exec_inspect(execution)
    if execution.exit_code is not None and not execution.running:
        container = engine.containers.get(execution.container_id)
        if complaint := engine.emulation.complaint(container, execution.exit_code):
            answer["Hint"] = complaint  # ours
    return json_response(answer)


async def resize_exec(engine: Engine, request: Request) -> Response:
    rows, columns = request.number("h") or 0, request.number("w") or 0
    await engine.execs.resize(request.args["id"], rows, columns)
    return Response(200)


TABLE: list[Route] = [
    ("GET", "/containers/json", listing),
    ("POST", "/containers/create", create),
    ("GET", "/containers/{id}/json", inspect),
    ("POST", "/containers/{id}/start", start),
    ("POST", "/containers/{id}/stop", stop),
    ("POST", "/containers/{id}/restart", restart),
    ("POST", "/containers/{id}/kill", kill),
    ("POST", "/containers/{id}/rename", rename),
    ("POST", "/containers/{id}/resize", resize),
    ("POST", "/containers/{id}/wait", wait),
    ("POST", "/containers/{id}/attach", attach),
    ("GET", "/containers/{id}/logs", logs),
    ("DELETE", "/containers/{id}", remove),
    ("POST", "/containers/{id}/exec", create_exec),
    ("POST", "/exec/{id}/start", start_exec),
    ("GET", "/exec/{id}/json", inspect_exec),
    ("POST", "/exec/{id}/resize", resize_exec),
]
