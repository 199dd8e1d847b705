"""Stand-ins for the machine's neighbours: a QEMU that is a Python script, and a link.

The fake QEMU takes the real command line, listens on the descriptors that it inherited, speaks QMP,
and prints on its serial port what the scenario (its `-append`) says:

    exit:STATUS:TEXT   print TEXT on stderr and end before QMP answers
    lines:a|b|c        print these lines once it is told to `cont`
    then:end           end after that (then:hang, the default: live on)
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wherry.errors import LinkClosed
from wherry.machine.find import Qemu

GREETING = {"QMP": {"version": {"qemu": {"major": 8, "minor": 0, "micro": 0}}, "capabilities": []}}


def fake_qemu(directory: Path) -> Qemu:
    """A `Qemu` whose binary is this file."""
    binary = directory / "qemu-system-x86_64"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" "$@"\n')
    binary.chmod(0o755)
    return Qemu(binary=binary, version=(8, 0, 0), arch="amd64")


class FakeStream:
    def __init__(self, content: bytes) -> None:
        self.id = 7
        self.content = content
        self.written = b""

    async def read(self, limit: int, /) -> bytes:
        part, self.content = self.content[:limit], self.content[limit:]
        return part

    async def write(self, data: bytes, /) -> None:
        self.written += data

    async def end(self) -> None:
        pass

    def reset(self, reason: str, /) -> None:
        pass


class FakeLink:
    """Answers calls from `answers`: a value, an exception, or a function of the params."""

    def __init__(self, connection: asyncio.StreamWriter | None = None) -> None:
        self.peer: dict[str, Any] = {"agent": {"digest": "d1"}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "system.setup": {"disk": "created"},
            "layers.list": {"layers": [], "highest_lun": -1},
        }
        self.closed = False
        self.streams: list[FakeStream] = []
        self._connection = connection
        self._connect_callbacks: list[Callable[[dict[str, Any]], None]] = []

    async def call(
        self, method: str, params: dict[str, Any] | None = None, /, *, timeout: float | None = 30.0
    ) -> dict[str, Any]:
        if self.closed:
            raise LinkClosed("closed")
        self.calls.append((method, params or {}))
        await asyncio.sleep(0)
        answer = self.answers.get(method, {})
        if callable(answer):
            answer = answer(params)
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def reconnected(self, peer: dict[str, Any]) -> None:
        self.peer = peer
        for callback in self._connect_callbacks:
            callback(peer)

    def on_connect(self, callback: Callable[[dict[str, Any]], None], /) -> None:
        self._connect_callbacks.append(callback)

    def open_stream(self) -> FakeStream:
        stream = FakeStream(b"070701" + b"\0" * 506)
        self.streams.append(stream)
        return stream

    async def aclose(self) -> None:
        self.closed = True
        if self._connection is not None:
            self._connection.close()

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]


def _main(argv: list[str]) -> None:
    options = dict(itertools.pairwise(argv))
    scenario = dict(part.split(":", 1) for part in options.get("-append", "").split(";") if part)
    if "exit" in scenario:
        status, _, text = scenario["exit"].partition(":")
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
        os._exit(int(status))
    listeners = {}
    for word in argv:
        if word.startswith("socket,id="):
            fields = dict(field.split("=") for field in word.split(",")[1:])
            listeners[fields["id"]] = socket.socket(fileno=int(fields["fd"]))
    serial = listeners["serial"].accept()[0]
    agents: list[socket.socket] = []
    accept = threading.Thread(target=lambda: agents.append(listeners["agent"].accept()[0]))
    accept.daemon = True
    accept.start()
    while True:  # like QEMU: one QMP client after the other
        _serve_qmp(listeners["qmp"].accept()[0], serial, scenario)


_nodes: set[str] = set()
_status = "prelaunch"


def _serve_qmp(connection: socket.socket, serial: socket.socket, scenario: dict[str, str]) -> None:
    global _status
    file = connection.makefile("rwb")

    def say(message: dict[str, Any]) -> None:
        file.write(json.dumps(message).encode() + b"\r\n")
        file.flush()

    say(GREETING)
    for line in file:
        message = json.loads(line)
        command, arguments = message["execute"], message.get("arguments", {})
        answer: Any = {}
        if command == "query-status":
            answer = {"status": _status, "running": _status == "running"}
        elif command == "query-named-block-nodes":
            answer = [{"node-name": name} for name in sorted(_nodes)]
        elif command == "blockdev-add":
            _nodes.add(arguments["node-name"])
        elif command == "blockdev-del":
            _nodes.discard(arguments["node-name"])
        elif command == "device_del":
            stamp = {"seconds": 0, "microseconds": 0}
            data = {"device": arguments["id"], "path": ""}
            say({"event": "DEVICE_DELETED", "data": data, "timestamp": stamp})
        say({"return": answer, "id": message["id"]})
        if command == "quit":
            os._exit(0)
        if command == "cont":
            first = _status == "prelaunch"
            _status = "running"
            if first:
                for text in scenario.get("lines", "").split("|"):
                    serial.sendall(text.encode() + b"\r\n")
                if scenario.get("then") == "end":
                    os._exit(0)
    file.close()
    connection.close()


if __name__ == "__main__":
    _main(sys.argv)
