"""Routes that make, change, copy and remove this engine's machine, under /wherry/v1/machine.

A body has the fields of `MachineConfig`; the machine refuses what it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wherry.api.http import Request, Response, Route, json_lines, json_response
from wherry.api.progress import Message, Report, with_progress
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.engine.engine import Engine


async def create(engine: Engine, request: Request) -> Response:
    """Write the configuration of a machine that has none. `disk_from`: a machine whose disk was
    kept and will be moved here."""
    values = request.json()
    disk_from = values.pop("disk_from", None)
    if disk_from is not None and not isinstance(disk_from, str):
        raise InvalidInput(f"disk_from must be a name, not {disk_from!r}")
    await engine.machine.create(values, disk_from)
    return json_response(engine.machine.inspect(), 201)


async def change(engine: Engine, request: Request) -> Response:
    """The disk grows at once; all else counts from the next start on (`pending` of the answer)."""
    await engine.machine.change(request.json())
    return json_response(engine.machine.inspect())


async def clone(engine: Engine, request: Request) -> Response:
    """JSON lines: progress, then {"cloned": name}. The machine must be off."""
    body = request.json()
    name = body.get("name")
    if set(body) - {"name"} or not isinstance(name, str):
        raise InvalidInput("the body must be {name: that of the copy}")

    async def work(report: Report) -> Message:
        def progress(phase: str, done: int, total: int) -> None:
            report({"phase": phase, "done": done, "total": total})

        await engine.cloner.clone(name, progress)
        return {"cloned": name}

    return json_lines(with_progress(work))


async def remove(engine: Engine, request: Request) -> Response:
    """Stop the machine, give up the images that it holds, and end this process; the client removes
    the files then. `keep_disk`: hold the images, for whoever takes the disk up again."""
    await engine.remove_machine(keep_disk=request.flag("keep_disk"))
    return Response(204, then=engine.request_exit)


TABLE: list[Route] = [
    ("POST", "/wherry/v1/machine/create", create),
    ("POST", "/wherry/v1/machine/set", change),
    ("POST", "/wherry/v1/machine/clone", clone),
    ("POST", "/wherry/v1/machine/remove", remove),
]
