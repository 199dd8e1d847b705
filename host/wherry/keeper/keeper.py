"""Starts QEMU, takes its connections, and holds them until it ends.

A connection is QEMU's when nothing speaks against it and this for it: the kernel names its process
as the owner; on the control connection it knows a secret that stands on its command line alone; and
it says itself, on that connection, from which ports the others come.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from wherry.keeper.channels import CHUNK, LINE_LIMIT, Channel, Monitor
from wherry.keeper.owners import owned_by
from wherry.keeper.plan import HOST, Plan, Report, dump, port_mark
from wherry.osutil.jobs import die_with_us, no_window
from wherry.osutil.process import identify

START_SECONDS = 20.0
_PROOF_SECONDS = 10.0
_END_SECONDS = 5.0

_SECRET = "keeper"
_CHARDEV_PORTS = re.compile(r"tcp:127\.0\.0\.1:(\d+) <-> 127\.0\.0\.1:\d+")
"""What query-chardev says of a connection: our port comes last (chardev/char-socket.c)."""

T = TypeVar("T")

Proof = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[T]]
"""Makes of a connection, and of the port it comes from, what is wanted; raises ConnectionError or
ValueError when it is a stranger's."""


async def keep(plan: Plan, report: Callable[[bytes], None]) -> int:
    """Run QEMU to its end; its exit status.

    Args:
        report: told once, when all channels are served.
    """
    with ExitStack() as stack:
        names = [*plan.monitors, *plan.streams]
        listeners = {name: stack.enter_context(_listen()) for name in names}
        secret = secrets.token_hex(16)
        argv = _command_line(plan, listeners, secret)
        process = await asyncio.create_subprocess_exec(
            *argv, env=plan.env, stdin=subprocess.DEVNULL, creationflags=no_window()
        )
        die_with_us(process.pid)
        identity = identify(process.pid)
        ended = asyncio.create_task(process.wait())
        taking = asyncio.create_task(_take_all(plan, listeners, process.pid, secret))
        await asyncio.wait({ended, taking}, timeout=START_SECONDS, return_when="FIRST_COMPLETED")
        if identity is None or not taking.done() or taking.exception() is not None:
            taking.cancel()
            await asyncio.wait({taking})
            return await _end(process, ended)
        channels = taking.result()
    for channel in channels:
        await channel.serve()
    report(dump(Report(identity.pid, identity.start_time, argv)))
    running = [asyncio.create_task(channel.run()) for channel in channels]
    await asyncio.wait({ended, *running}, return_when="FIRST_COMPLETED")
    await asyncio.wait({ended, *running}, timeout=_END_SECONDS)  # its last words come before
    return await _end(process, ended)


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> int:
    """A QEMU without its connections is of no use."""
    if not ended.done():
        process.kill()
    return await ended


def _command_line(plan: Plan, listeners: dict[str, socket.socket], secret: str) -> list[str]:
    argv = []
    for word in plan.argv:
        for name, listener in listeners.items():
            word = word.replace(port_mark(name), str(listener.getsockname()[1]))
        argv.append(word)
    return [*argv, "-object", f"secret,id={_SECRET},data={secret}"]


async def _take_all(
    plan: Plan, listeners: dict[str, socket.socket], pid: int, secret: str
) -> list[Channel]:
    """The connections of QEMU `pid`, each proved; strangers are dropped, all the while."""
    first = next(iter(plan.monitors))
    ports: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()

    async def control(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _port: int
    ) -> Channel:
        monitor = Monitor(reader, writer, Path(plan.monitors[first]))
        await monitor.negotiate()
        where = {"path": f"/objects/{_SECRET}", "property": "data"}
        answer = await monitor.ask("qom-get", where)
        if not isinstance(answer, str) or not secrets.compare_digest(answer, secret):
            raise ConnectionError("it does not know the secret")
        ports.set_result(_ports(await monitor.ask("query-chardev")))
        return monitor

    def another(name: str) -> Proof[Channel]:
        async def prove(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
        ) -> Channel:
            if (await asyncio.shield(ports)).get(name) != port:
                raise ConnectionError("QEMU has no such connection")
            if name in plan.streams:
                return Channel(reader, writer, Path(plan.streams[name]))
            monitor = Monitor(reader, writer, Path(plan.monitors[name]))
            await monitor.negotiate()
            return monitor

        return prove

    async with asyncio.TaskGroup() as group:
        taking = [
            group.create_task(
                _take(
                    listener,
                    pid,
                    control if name == first else another(name),
                    limit=LINE_LIMIT if name in plan.monitors else CHUNK,
                )
            )
            for name, listener in listeners.items()
        ]
    return [task.result() for task in taking]


async def _take(listener: socket.socket, pid: int, prove: Proof[T], *, limit: int) -> T:
    """Accept until a connection is proved; all are looked at at once, so that one that says
    nothing keeps nobody waiting."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()
    our_port = listener.getsockname()[1]

    async def judge(connection: socket.socket, port: int) -> None:
        if owned_by(pid, peer_port=port, our_port=our_port) is False:
            connection.close()
            return
        reader, writer = await asyncio.open_connection(sock=connection, limit=limit)
        try:
            async with asyncio.timeout(_PROOF_SECONDS):
                taken = await prove(reader, writer, port)
        except (OSError, ValueError, TimeoutError):
            writer.transport.abort()
        else:
            found.set_result(taken)

    async def accept() -> None:
        while True:
            connection, peer = await loop.sock_accept(listener)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            judging.add(asyncio.create_task(judge(connection, peer[1])))

    judging: set[asyncio.Task[None]] = set()
    accepting = asyncio.create_task(accept())
    try:
        return await found
    finally:
        accepting.cancel()
        for task in judging:
            task.cancel()
        await asyncio.gather(accepting, *judging, return_exceptions=True)


def _ports(chardevs: object) -> dict[str, int]:
    """From query-chardev: a chardev's name to the port that its connection comes from."""
    ports = {}
    for chardev in chardevs if isinstance(chardevs, list) else []:
        if match := _CHARDEV_PORTS.search(str(chardev.get("filename"))):
            ports[str(chardev.get("label"))] = int(match[1])
    return ports


def _listen() -> socket.socket:
    """A listener on a port that nobody can share with us."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform == "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    listener.setblocking(False)
    listener.bind((HOST, 0))
    listener.listen(os.cpu_count() or 8)
    return listener
