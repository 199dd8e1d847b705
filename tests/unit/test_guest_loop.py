"""The guest's event loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from wherry_guest.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def test_a_reader_is_called_until_it_is_removed(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    seen = []

    def readable() -> None:
        seen.append(one.recv(1))
        if len(seen) == 2:
            assert loop.remove_reader(one.fileno())
            loop.call_later(0.01, loop.stop)

    loop.add_reader(one.fileno(), readable)
    other.send(b"abc")
    loop.run()
    assert seen == [b"a", b"b"]
    assert not loop.remove_reader(one.fileno())


def test_reader_and_writer_of_one_descriptor_are_independent(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    seen: list[str] = []

    def writable() -> None:
        seen.append("writable")
        loop.remove_writer(one.fileno())
        other.send(b"x")

    def readable() -> None:
        seen.append("readable")
        loop.stop()

    loop.add_reader(one.fileno(), readable)
    loop.add_writer(one.fileno(), writable)
    loop.run()
    assert seen == ["writable", "readable"]


def test_a_callback_that_was_removed_in_this_round_is_not_called(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    called = []

    def first(mine: socket.socket, others: socket.socket) -> None:
        called.append(mine)
        loop.remove_reader(others.fileno())
        loop.stop()

    one.send(b"x")
    other.send(b"x")
    loop.add_reader(one.fileno(), lambda: first(one, other))
    loop.add_reader(other.fileno(), lambda: first(other, one))
    loop.run()
    assert len(called) == 1


def test_timers_fire_in_the_order_of_their_time(loop: Loop) -> None:
    seen: list[int] = []
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.01, lambda: seen.append(2))
    loop.call_later(0, lambda: seen.append(1))
    loop.call_later(0.005, lambda: seen.append(3)).cancel()
    loop.run()
    assert seen == [1, 2]


def test_call_soon_runs_in_the_same_round_as_the_callback_that_asked(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    seen: list[str] = []

    def readable(name: str) -> None:
        seen.append(name)
        loop.call_soon(lambda: seen.append("flush"))
        loop.stop()

    one.send(b"x")
    other.send(b"x")
    loop.add_reader(one.fileno(), lambda: readable("reader"))
    loop.add_reader(other.fileno(), lambda: readable("reader"))
    loop.run()
    assert seen == ["reader", "reader", "flush", "flush"]


def test_call_soon_from_call_soon_waits_for_the_next_round(loop: Loop) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(1)
        if len(seen) < 3:
            loop.call_soon(again)
        else:
            loop.stop()

    loop.call_soon(again)
    loop.run()
    assert seen == [1, 1, 1]


def test_stop_before_run_is_kept(loop: Loop) -> None:
    loop.stop()
    loop.run()


def test_an_exception_leaves_run(loop: Loop) -> None:
    loop.call_soon(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_an_exception_goes_to_the_hook_and_the_rest_goes_on() -> None:
    errors: list[Exception] = []
    loop = Loop(on_error=errors.append)
    loop.call_soon(lambda: 1 // 0)
    loop.call_soon(loop.stop)
    loop.run()
    loop.close()
    assert [type(error) for error in errors] == [ZeroDivisionError]
