"""Routes that lead to the machine's SSH server, under /wherry/v1/machine/ssh."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from wherry.api.http import Hijack, RawConnection, Request, Response, Route, json_response
from wherry.api.streams import RAW
from wherry.errors import LinkError

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_READ_BYTES = 65536


async def facts(engine: Engine, _request: Request) -> Response:
    """{"user", "alias", "identity", "known_hosts"}: what a client needs; the machine may be off."""
    return json_response(await asyncio.to_thread(engine.machine.ssh.facts))


async def connect(engine: Engine, _request: Request) -> Hijack:
    """The connection becomes one to the SSH server; the machine is started when it is off.

    When the answer's head is sent, `known_hosts` names the server's key.
    """
    link = await engine.machine.ensure_running()
    await engine.machine.ssh.prepare(link)

    async def run(connection: RawConnection) -> None:
        stream = await engine.machine.ssh.connect(link)
        await _relay(stream, connection)

    return Hijack(run, RAW)


async def _relay(stream: Any, connection: RawConnection) -> None:
    """Until the server has ended, or the client is gone."""

    async def outwards() -> None:
        while data := await stream.read(_READ_BYTES):
            await connection.write(data)

    async def inwards() -> None:
        while data := await connection.read():
            await stream.write(data)
        await stream.end()

    tasks = [asyncio.ensure_future(outwards()), asyncio.ensure_future(inwards())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    except (ConnectionError, LinkError):
        pass  # one side is gone: the other is told by the end
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stream.reset("the connection is over")


TABLE: list[Route] = [
    ("GET", "/wherry/v1/machine/ssh", facts),
    ("POST", "/wherry/v1/machine/ssh", connect),
]
