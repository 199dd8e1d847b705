"""The packets between PID 1 and the agent, over a real socket pair (Linux: SEQPACKET, memfd)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry_guest.zygote import (
    INLINE_BODY,
    Rootfs,
    SpawnFailed,
    Zygote,
    ZygoteError,
    code_digest,
    receive_packet,
    send_packet,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="SEQPACKET and memfd are Linux's")


@pytest.fixture
def ends() -> Iterator[tuple[Zygote, socket.socket]]:
    """The agent's end, and PID 1's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = Zygote(theirs.detach())
    ours.setblocking(False)
    yield zygote, ours
    zygote.close()
    ours.close()


@linux_only
@settings(max_examples=30)
@given(st.sampled_from([0, 1, INLINE_BODY, INLINE_BODY + 1, 3_000_000]), st.integers(0, 4))
def test_packets_of_any_size_and_their_descriptors_arrive(size: int, count: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Path(os.devnull).open() as null:
        body = bytes(size)
        assert send_packet(ours, {"op": "x", "n": size}, body, [null.fileno()] * count)
        packet = receive_packet(theirs)
        assert packet is not None
        assert (packet.header, packet.body) == ({"op": "x", "n": size}, body)
        assert len(packet.fds) == count
        for fd in packet.fds:
            os.close(fd)


@linux_only
def test_a_pid_1_that_remembers_shapes_gets_them_once_and_what_to_keep_with_the_spawn(
    ends: tuple[Zygote, socket.socket],
) -> None:
    zygote, pid1 = ends
    hello = {"event": "hello", "version": "1", "directory": "/x", "shapes": 1}
    assert send_packet(pid1, hello)
    zygote.receive()
    spec = {"ociVersion": "1.2.0", "process": {"args": ["a"], "cwd": "/"}}
    rootfs = Rootfs(("1",), "/u", "/w")
    with Path(os.devnull).open() as null:
        fd = null.fileno()
        for key in ("k", "l"):
            zygote.spawn(key, spec, rootfs, (fd,) * 3, False, "c", {"out": [fd, fd], "in": [fd]})
    packets = [receive_packet(pid1) for _ in range(3)]
    headers = [packet.header for packet in packets if packet is not None]
    spawn = {"op": "spawn", "tty": False, "cgroup": "c", "shape": 0}
    assert headers == [
        {"op": "shape", "number": 0},
        {**spawn, "key": "k", "keep": [["out", 2], ["in", 1]]},
        {**spawn, "key": "l", "keep": [["out", 2], ["in", 1]]},
    ]
    assert [len(packet.fds) for packet in packets if packet is not None] == [0, 6, 6]
    for packet in packets:
        assert packet is not None
        for fd in packet.fds:
            os.close(fd)
    zygote.forget("k", ["out", "in"])
    packet = receive_packet(pid1)
    assert packet is not None
    assert packet.header == {"op": "forget", "key": "k", "drop": ["out", "in"]}


@linux_only
def test_spawn_says_all_and_leaves_the_callers_descriptors(
    ends: tuple[Zygote, socket.socket],
) -> None:
    zygote, pid1 = ends
    with Path(os.devnull).open() as null:
        fd = null.fileno()
        zygote.spawn(
            "k", {"ociVersion": "1.2.0"}, Rootfs(("1",), "/u", "/w"), (fd,) * 3, False, "c"
        )
        os.fstat(fd)
    packet = receive_packet(pid1)
    assert packet is not None
    assert packet.header == {"op": "spawn", "key": "k", "tty": False, "cgroup": "c"}
    assert b'"lowerdirs": ["1"]' in packet.body and len(packet.fds) == 3
    for fd in packet.fds:
        os.close(fd)


@linux_only
def test_terminal_and_stdio_exclude_each_other(ends: tuple[Zygote, socket.socket]) -> None:
    with pytest.raises(ValueError, match="stdio is given when tty is not"):
        ends[0].spawn("k", {}, Rootfs(("1",)), (0, 1, 2), True, "c")


@linux_only
def test_nothing_there_is_an_empty_list(ends: tuple[Zygote, socket.socket]) -> None:
    assert ends[0].receive() == []


@linux_only
def test_failure_is_decoded(ends: tuple[Zygote, socket.socket]) -> None:
    zygote, pid1 = ends
    report = {"step": "mount", "errno": 1, "exit_code": 125, "message": "mount: no"}
    send_packet(pid1, {"event": "failed", "key": "k", **report})
    assert zygote.receive() == [SpawnFailed("k", "mount", 1, 125, "mount: no")]


@linux_only
def test_end_of_pid_1_is_an_error_on_both_ways(ends: tuple[Zygote, socket.socket]) -> None:
    zygote, pid1 = ends
    pid1.close()
    with pytest.raises(ZygoteError, match="closed"):
        zygote.receive()
    with pytest.raises(ZygoteError, match="closed"):
        zygote.forget("k")


@linux_only
def test_a_full_socket_takes_nothing_rather_than_half() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        sent = 0
        while send_packet(ours, {"n": sent}, bytes(1000)):
            sent += 1
        theirs.setblocking(False)
        received: list[Any] = []
        while (packet := receive_packet(theirs)) is not None:
            received.append(packet.header["n"])
        assert received == list(range(sent))


def test_code_digest_depends_on_names_and_bytes(tmp_path: Path) -> None:
    package = tmp_path / "wherry_guest"
    package.mkdir()
    digests = set()
    for name, text in (("a.py", "1"), ("b.py", "1"), ("a.py", "2"), ("note.txt", "3")):
        (package / name).write_text(text)
        digests.add(code_digest(tmp_path))
    assert len(digests) == 3  # note.txt is no code
