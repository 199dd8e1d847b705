"""The keeper's parts: whose a connection is, what a monitor's clients see. Any system."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from wherry.keeper.channels import Channel, Monitor
from wherry.keeper.owners import TcpRow, find_inode, judge, owned_by, parse_table
from wherry.keeper.plan import Plan, dump, load_plan
from wherry.osutil.local import open_local

PROC_NET_TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when ... inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0
"""


def place(tmp_path: Path, name: str) -> Path:
    """Where a channel can be served on this system."""
    if sys.platform == "win32":
        return Path(rf"\\.\pipe\wherry-test-{os.getpid()}-{name}")
    return tmp_path / name


def test_the_table_of_windows_names_the_owner() -> None:
    row = struct.pack("=6I", 5, 0x0100007F, socket.htons(50000), 0x0100007F, socket.htons(80), 42)
    assert list(parse_table(struct.pack("=I", 1) + row)) == [TcpRow(50000, 80, 42)]


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([TcpRow(50000, 80, 42)], True),
        ([TcpRow(50000, 80, 43)], False),
        ([TcpRow(50000, 80, 0)], None),
        ([TcpRow(50001, 80, 42), TcpRow(80, 50000, 42)], False),
        ([], False),
    ],
)
def test_only_the_named_process_has_the_connection(rows: list[TcpRow], answer: bool | None) -> None:
    assert judge(rows, 42, peer_port=50000, our_port=80) is answer


def test_the_table_of_linux_gives_the_far_ends_inode() -> None:
    assert find_inode(PROC_NET_TCP, peer_port=50000, our_port=8080) == 222
    assert find_inode(PROC_NET_TCP, peer_port=50001, our_port=8080) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="no keeper is needed there")
def test_a_connection_of_ours_is_ours() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        connection, peer = listener.accept()
        client.sendall(b"x")
        with connection:
            port = listener.getsockname()[1]
            assert owned_by(os.getpid(), peer_port=peer[1], our_port=port) in (True, None)


def test_a_plan_survives_the_way() -> None:
    plan = Plan(["q", "@qmp@"], {"A": "ü"}, {"qmp": "a"}, {"agent": "b"})
    assert load_plan(dump(plan)) == plan


class Qemu:
    """The far end of a channel."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self._theirs = theirs

    async def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=self._theirs)

    async def here(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=self.ours)


def test_a_channel_serves_one_client_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        qemu = Qemu()
        path = place(tmp_path, "agent")
        channel = Channel(*await qemu.streams(), path)
        await channel.serve()
        running = asyncio.create_task(channel.run())
        far_reader, far_writer = await qemu.here()
        for text in (b"one", b"two"):
            reader, writer = await open_local(path)
            writer.write(text)
            assert await far_reader.readexactly(3) == text
            far_writer.write(text)
            assert await reader.readexactly(3) == text
            writer.close()
            await writer.wait_closed()
        far_writer.close()
        await far_writer.wait_closed()
        await running

    asyncio.run(scenario())


def test_each_client_of_a_monitor_is_greeted_and_gets_no_older_answer(tmp_path: Path) -> None:
    async def serve_qmp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        negotiated = False  # as QEMU's: once per connection
        writer.write(b'{"QMP": {}}\r\n')
        while line := await reader.readline():
            if line == b"\xff\n":
                writer.write(b'{"error": {"class": "GenericError", "desc": "not JSON"}}\r\n')
                continue
            command = json.loads(line)
            answer: dict[str, object] = {"return": {}}
            if command["execute"] == "qmp_capabilities":
                if negotiated:
                    answer = {"error": {"class": "CommandNotFound", "desc": "already"}}
                negotiated = True
            writer.write(json.dumps({**answer, "id": command["id"]}).encode() + b"\r\n")
            if command["execute"] == "slow":
                writer.write(b'{"return": "late", "id": 1}\r\n')

    async def scenario() -> None:
        qemu = Qemu()
        path = place(tmp_path, "qmp")
        monitor = Monitor(*await qemu.streams(), path)
        far_reader, far_writer = await qemu.here()
        serving = asyncio.create_task(serve_qmp(far_reader, far_writer))
        await monitor.negotiate()
        await monitor.serve()
        running = asyncio.create_task(monitor.run())
        for _ in range(2):
            reader, writer = await open_local(path)
            assert json.loads(await reader.readline()) == {"QMP": {}}
            writer.write(b'{"execute": "qmp_capabilities", "id": 1}\n')
            assert json.loads(await reader.readline()) == {"return": {}, "id": 1}
            writer.write(b'{"execute": "slow", "id": 2}\n')
            assert json.loads(await reader.readline()) == {"return": {}, "id": 2}
            writer.close()
            await writer.wait_closed()
        far_writer.close()
        await far_writer.wait_closed()
        await running
        serving.cancel()

    asyncio.run(scenario())
