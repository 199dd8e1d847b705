"""The console: markers, bounds, what people see of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from wherry.machine.console import Console, ConsoleFile

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets in asyncio")


def test_the_file_never_grows_past_its_limit_and_keeps_the_end(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    file = ConsoleFile(path, limit=1000)
    for number in range(500):
        file.write(b"line %04d\n" % number)
        assert path.stat().st_size <= 1000
    file.close()
    lines = path.read_text().splitlines()
    assert lines[-1] == "line 0499"
    assert all(len(line) == 9 for line in lines)


def test_one_endless_line_is_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    file = ConsoleFile(path, limit=1000)
    for _ in range(50):
        file.write(b"x" * 300)
        assert path.stat().st_size <= 1000
    file.close()


def on_console(
    tmp_path: Path, work: Callable[[Console, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    """Run `work` with a console and QEMU's end of its socket."""

    async def main() -> None:
        connected: asyncio.Future[asyncio.StreamWriter] = asyncio.Future()
        server = await asyncio.start_unix_server(
            lambda _reader, writer: connected.set_result(writer), tmp_path / "s"
        )
        console = await Console.connect(tmp_path / "s", tmp_path / "console.log")
        writer = await connected
        try:
            async with asyncio.timeout(10):
                await work(console, writer)
        finally:
            writer.close()
            await console.aclose()
            server.close()

    asyncio.run(main())


def test_a_marker_is_found_in_any_split_and_behind_the_kernels_text(tmp_path: Path) -> None:
    async def work(console: Console, qemu: asyncio.StreamWriter) -> None:
        waiting = asyncio.create_task(console.wait_for("init"))
        for byte in b"[    1.2] clocksource: wherry: init\r\n":
            qemu.write(bytes([byte]))
            await qemu.drain()
            await asyncio.sleep(0)
        assert await waiting
        qemu.write(b"wherry: agent\n")
        assert await console.wait_for("agent")

    on_console(tmp_path, work)


def test_the_end_of_the_console_ends_the_waiting(tmp_path: Path) -> None:
    async def work(console: Console, qemu: asyncio.StreamWriter) -> None:
        qemu.write(b"Kernel panic - not syncing: No working init found.\r\n---[ end ]\r\n")
        qemu.close()
        assert not await console.wait_for("init")
        assert console.panic == "Kernel panic - not syncing: No working init found."
        assert console.tail()[-1] == "---[ end ]"

    on_console(tmp_path, work)


def test_a_fatal_error_of_pid_1_ends_the_waiting(tmp_path: Path) -> None:
    async def work(console: Console, qemu: asyncio.StreamWriter) -> None:
        qemu.write(b"wherry: init\r\nwherry: fatal: no module virtio_console\r\n")
        assert not await console.wait_for("agent")
        assert console.fatal == "no module virtio_console"

    on_console(tmp_path, work)


def test_a_guest_cannot_send_control_sequences_to_the_users_terminal(tmp_path: Path) -> None:
    async def work(console: Console, qemu: asyncio.StreamWriter) -> None:
        qemu.write(b"\x1b]0;owned\x07\x1b[2J\r\nwherry: init\r\n")
        await console.wait_for("init")
        assert "\x1b" not in "".join(console.tail())

    on_console(tmp_path, work)
