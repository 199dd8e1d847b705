"""The machine that flat programs are for, in Python: it runs one against a made-up kernel.

What `core.cradle` does in machine code. Strings and numbers that a call has as arguments are
remembered; what a call returns, or fails with, is up to the test.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from wherry_guest.core.flat import BASE, CHECK, COPY, END, HANDLER, HEADER, OPERATION, SIZE
from wherry_guest.core.syscall_numbers import numbers

MOST = 10_000
"""Operations until a program is taken to go round and round."""

CHILD = 4242


@dataclass(frozen=True)
class Call:
    """A call that was made: arguments as numbers; those that are addresses also as text."""

    name: str
    args: tuple[int, ...]
    texts: tuple[str, ...]
    number: int


@dataclass
class FlatMachine:
    """Runs a program up to an exec or an exit.

    Args:
        answer: what a call returns; below zero an errno. It may write to `memory`.
        parent: go the cradle's way, not the child's.
    """

    program: bytes
    answer: Callable[[FlatMachine, Call], int] = field(default=lambda machine, call: 7)
    architecture: str = "x86_64"
    parent: bool = False
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = bytearray(self.program).ljust(SIZE, b"\0")
        self._names = {number: name for name, number in numbers(self.architecture).items()}

    def names(self) -> list[str]:
        return [call.name for call in self.calls]

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def word(self, address: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, address - BASE)[0])

    def put(self, address: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, address - BASE, value % 2**64)

    def text(self, address: int) -> str:
        start = address - BASE
        return bytes(self.memory[start : self.memory.index(0, start)]).decode(errors="replace")

    def run(self) -> str:
        """How it ended: `exec`, `exit`, or `end` (the cradle is ready for the next)."""
        at, handler = BASE + HEADER, 0
        for count in range(MOST):
            words = struct.unpack_from("<10Q", self.memory, at - BASE)
            if words[0] < CHECK:
                call = self._call(words, count)
                if call.name == "exit_group":
                    return "exit"
                result = self._answered(call)
                if call.name == "execve" and result >= 0:
                    return "exec"
                if result >= 0:
                    if words[7]:
                        self.put(words[7], result)
                    at += OPERATION
                    continue
                if -result in struct.unpack("<4H", words[8].to_bytes(8, "little")):
                    at = words[9]
                    continue
            elif words[0] == CHECK:
                if self.word(words[1]) & words[2] & 0xFFFFFFFF == words[3]:
                    at += OPERATION
                    continue
                result = 0
                if words[9]:
                    at = words[9]
                    continue
            elif words[0] == COPY:
                self.put(words[1], self.word(words[2]))
                at += OPERATION
                continue
            elif words[0] == HANDLER:
                handler, at = words[1], at + OPERATION
                continue
            else:
                assert words[0] == END
                return "end"
            self.put(BASE, -result)
            self.put(BASE + 8, at)
            if not handler:
                return "exit"
            at, handler = handler, 0
        raise AssertionError("the program does not end")

    @property
    def failure(self) -> tuple[int, int]:
        """The errno, and which operation, from 0."""
        return self.word(BASE), (self.word(BASE + 8) - BASE - HEADER) // OPERATION

    def _call(self, words: tuple[int, ...], count: int) -> Call:
        args = words[1:7]
        texts = tuple(self.text(it) if BASE <= it < BASE + SIZE else "" for it in args)
        call = Call(self._names[words[0]], args, texts, count)
        self.calls.append(call)
        return call

    def _answered(self, call: Call) -> int:
        if call.name == "clone3":
            return CHILD if self.parent else 0
        return self.answer(self, call)
