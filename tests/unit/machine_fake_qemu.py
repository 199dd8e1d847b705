"""A QEMU that is a script; stdlib only, since it runs as a process of its own.

It takes the real command line, listens on the descriptors that it inherited, speaks QMP,
and prints on its serial port what the scenario (its `-append`) says:

    exit:STATUS:TEXT   print TEXT on stderr and end before QMP answers
    lines:a|b|c        print these lines once it is told to `cont`
    then:end           end after that (then:hang, the default: live on)
    incoming:refuse    end when a state is loaded, as QEMU does with one that it cannot read

It takes and gives saved states: the word "state" in a file.

The command x-disk-full is a write of the guest's that finds the disk full.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 8, "minor": 0, "micro": 0}}, "capabilities": []}}


def _main(argv: list[str]) -> None:
    options = dict(itertools.pairwise(argv))
    told = options.get("-append", "").removesuffix(" mitigations=off no_timer_check")
    scenario = dict(part.split(":", 1) for part in told.split(";") if part)
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


_STAMP = {"seconds": 0, "microseconds": 0}
_nodes: set[str] = set()
_received: list[int] = []
_files: dict[str, int] = {}
_status = "prelaunch"


def _serve_qmp(connection: socket.socket, serial: socket.socket, scenario: dict[str, str]) -> None:
    global _status

    def say(message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\r\n")

    say(GREETING)
    for message in _messages(connection):
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
        elif command == "getfd":
            _files[arguments["fdname"]] = _received.pop()
        elif command in ("migrate", "migrate-incoming"):
            descriptor = _files.pop(arguments["uri"].removeprefix("fd:"))
            saving = command == "migrate"
            if saving:
                os.write(descriptor, b"state")
            elif os.read(descriptor, 16) != b"state" or scenario.get("incoming") == "refuse":
                sys.stderr.write("load of migration failed\n")
                sys.stderr.flush()
                os._exit(1)
            os.close(descriptor)
            stamp = {"seconds": 0, "microseconds": 0}
            say({"event": "MIGRATION", "data": {"status": "completed"}, "timestamp": stamp})
            _status = "postmigrate" if saving else "paused"
        elif command == "device_del":
            data = {"device": arguments["id"], "path": ""}
            say({"event": "DEVICE_DELETED", "data": data, "timestamp": _STAMP})
        elif command == "stop" or command == "x-disk-full":
            _pause(say, full=command != "stop")
        elif command == "cont" and _status in ("paused", "io-error"):
            say({"event": "RESUME", "timestamp": _STAMP})
        say({"return": answer} | ({"id": message["id"]} if "id" in message else {}))
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
    connection.close()


def _pause(say: Callable[[dict[str, Any]], None], *, full: bool) -> None:
    """As QEMU does, by hand or for a failed write (qapi/block-core.json, BLOCK_IO_ERROR)."""
    global _status
    if full:
        data = {"device": "", "operation": "write", "action": "stop", "nospace": True}
        say({"event": "BLOCK_IO_ERROR", "data": data, "timestamp": _STAMP})
    say({"event": "STOP", "timestamp": _STAMP})
    _status = "io-error" if full else "paused"


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects one behind the other, with or without line ends, as QEMU takes them."""
    decoder = json.JSONDecoder()
    text = ""
    while True:
        data, descriptors, _flags, _address = socket.recv_fds(connection, 65536, 4)
        _received.extend(descriptors)
        if not data:
            return
        text += data.decode()
        while text := text.lstrip():
            try:
                message, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break  # not whole yet
            text = text[end:]
            yield message


if __name__ == "__main__":
    _main(sys.argv)
