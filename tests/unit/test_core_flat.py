"""Flat programs by themselves: where results go, what is passed over, what is filled in."""

from __future__ import annotations

import errno
import struct

import pytest
from flat_machine import Call, FlatMachine
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest.core.flat import BASE, HEADER, OPERATION, Flat, Label, NotFlat


def ran(flat: Flat, answer: object = None) -> FlatMachine:
    machine = FlatMachine(flat.image().memory)
    if answer is not None:
        machine.answer = answer  # type: ignore[assignment]  # a callable of the test's
    machine.run()
    return machine


def numbered(machine: FlatMachine, call: Call) -> int:
    """Every call returns something else: how many there were so far, from 100."""
    return 99 + len(machine.calls)


def test_a_result_is_the_argument_of_every_later_call_that_has_it() -> None:
    flat = Flat("x86_64")
    first = flat.call("openat", 1)
    second = flat.call("openat", 2)
    flat.call("write", first, 5)
    flat.call("dup3", second, first)
    flat.call("close", first)
    flat.end()
    machine = ran(flat, numbered)
    assert [call.args[:2] for call in machine.calls] == [
        (1, 0), (2, 0), (100, 5), (101, 100), (100, 0),
    ]  # fmt: skip


def test_errors_that_are_taken_go_on_where_they_say() -> None:
    flat, past = Flat("x86_64"), Label()
    flat.call("mkdirat", 1, taken=(errno.EEXIST,))
    flat.call(
        "openat", 2, taken=(errno.EPERM, errno.EACCES, errno.ENOTDIR, errno.ENOENT), then=past
    )
    flat.call("close", 3)
    flat.place(past)
    flat.call("chdir", 4)
    flat.end()
    answers = {"mkdirat": -errno.EEXIST, "openat": -errno.ENOENT}
    machine = ran(flat, lambda machine, call: answers.get(call.name, 0))
    assert machine.names() == ["mkdirat", "openat", "chdir"]


def test_a_failure_goes_on_at_the_handler_once() -> None:
    flat, handler = Flat("x86_64"), Label()
    flat.handler(handler)
    flat.call("chdir", 1)
    flat.call("mount", 2)
    flat.place(handler)
    flat.call("sendto", 3)
    flat.end()
    machine = ran(flat, lambda machine, call: -errno.EPERM)
    assert machine.names() == ["chdir", "sendto"]  # which fails too, and ends it
    assert machine.failure == (errno.EPERM, 3)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_check_goes_on_where_the_masked_word_is_the_value(word: int, mask: int) -> None:
    flat, other = Flat("x86_64"), Label()
    place = flat.data(struct.pack("<Q", word))
    flat.check(place, mask, word & mask)
    flat.check(place, mask, (word & mask) ^ 1, other)
    flat.call("mount")
    flat.place(other)
    flat.call("chdir")
    flat.end()
    assert ran(flat).names() == ["chdir"]


def test_a_check_that_has_nowhere_to_go_fails_without_an_errno() -> None:
    flat = Flat("x86_64")
    flat.check(flat.data(b"/"), 0xFF, ord("("))
    assert ran(flat).failure == (0, 0)


def test_copies_and_pointers_make_arguments_of_what_stands_somewhere() -> None:
    flat = Flat("x86_64")
    texts = [flat.text("one"), flat.text("two")]
    array = flat.pointers([*texts, None])
    flat.copy(array, flat.pointers([texts[1]]))
    flat.call("execve", texts[0], array)
    machine = ran(flat)
    [call] = machine.calls
    assert call.texts[0] == "one"
    assert [machine.text(machine.word(call.args[1] + 8 * it)) for it in (0, 1)] == ["two", "two"]
    assert machine.word(call.args[1] + 16) == 0


@given(st.lists(st.binary(max_size=40).filter(lambda it: b"\0" not in it), min_size=1, max_size=5))
def test_variables_are_filled_in_for_each_use(values: list[bytes]) -> None:
    flat = Flat("x86_64")
    for value in values:
        flat.call("chdir", flat.variable(value[: len(value) // 2]))
    flat.end()
    program = flat.image().filled(values)
    room = [len(value) // 2 + 32 for value in values]
    if any(len(value) > space for value, space in zip(values, room, strict=True)):
        assert program is None
        return
    assert program is not None
    memory = bytes(program)
    for index, value in enumerate(values):
        at = BASE + HEADER + OPERATION * index
        address = struct.unpack_from("<Q", memory, at - BASE + 8)[0] - BASE
        assert memory[address : address + len(value) + 1] == value + b"\0"


def test_a_program_that_does_not_fit_is_refused() -> None:
    flat = Flat("x86_64")
    flat.data(bytes(200 * 1024))
    flat.scratch(100 * 1024)
    with pytest.raises(NotFlat, match="a program of 2"):
        flat.image()


def test_a_call_that_the_architecture_lacks_is_refused() -> None:
    with pytest.raises(NotFlat, match="mkdir"):
        Flat("aarch64").call("mkdir")
