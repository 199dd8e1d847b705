"""A flat program: system calls one after the other, as data, for the machine code in `core.cradle`.

Rules: pure. A program is one piece of memory that is loaded at BASE: a header, operations of ten
words, their data. Addresses are absolute, so that nothing is left to compute when it runs; a result
is stored where a later operation wants it. An operation is a system call (its number, six
arguments, where the result goes, four errors that are as good as none, where it goes on after one
of them), or one of CHECK, COPY, HANDLER and END. What fails otherwise goes on at the handler that
was set last, with the errno and the operation's address in the header.

What differs from one use to the next are *variables*: places in the data that `Image.filled` fills,
so that a program is made once for many uses.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wherry_guest.core.syscall_numbers import numbers

BASE: Final = 0x10000000
SIZE: Final = 0x40000
"""Where a program is loaded, and the bytes that it may have."""

HEADER: Final = 64
"""Bytes: the errno, and the address of the operation that failed."""

OPERATION: Final = 80

CHECK: Final = 0x1000
"""address, mask, value: go on if the 32 bits there, masked, are the value; else as after an error,
or, where nothing is said about that, fail with errno 0."""

COPY: Final = 0x1001
"""target address, source address: 64 bits."""

HANDLER: Final = 0x1002
"""an operation's address: what fails goes on there, once."""

END: Final = 0x1003
"""The next program may come."""

_ERRORS: Final = 4
_MASK: Final = 2**64 - 1
_ROOM: Final = 32
"""Bytes that a variable may grow by until its program has to be made anew."""


class NotFlat(Exception):
    """This cannot be said in a flat program."""


@dataclass(frozen=True, slots=True)
class Data:
    """A place in the data."""

    offset: int

    def at(self, more: int) -> Data:
        """So many bytes behind."""
        return Data(self.offset + more)


class Label:
    """An operation that others go to: the one that follows `Flat.place`."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = -1


class Result:
    """What a call will have returned: as an argument of later ones it is put there."""

    __slots__ = ("place",)

    def __init__(self) -> None:
        self.place: int | Data | None = None


Argument = int | Data | Label | Result


@dataclass(frozen=True, slots=True)
class Image:
    """A finished program. `variables`: (offset, greatest length) of each, in their order."""

    memory: bytes
    variables: tuple[tuple[int, int], ...] = ()

    def filled(self, values: Sequence[bytes]) -> bytes | None:
        """The memory with these values in it; None: one is too long for its place."""
        memory = bytearray(self.memory)
        for (offset, room), value in zip(self.variables, values, strict=True):
            if len(value) > room:
                return None
            memory[offset : offset + len(value)] = value
        return bytes(memory)


class Flat:
    """A program in the making.

    Args:
        architecture: a name in `core.syscall_numbers`.
    """

    def __init__(self, architecture: str) -> None:
        self._numbers = numbers(architecture)
        self._operations: list[list[Argument]] = []
        self._data = bytearray()
        self._pointers: list[tuple[int, Data | int]] = []
        self._texts: dict[bytes, Data] = {}
        self._variables: list[tuple[Data, int]] = []
        self._scratch = BASE + SIZE

    # Data.

    def data(self, content: bytes) -> Data:
        """These bytes, at a multiple of 8."""
        place = Data(len(self._data))
        self._data += content + bytes(-len(content) % 8)
        return place

    def text(self, content: str) -> Data:
        """A string as C has them; equal ones are one."""
        raw = encoded(content)
        if raw not in self._texts:
            self._texts[raw] = self.data(raw + b"\0")
        return self._texts[raw]

    def variable(self, value: bytes) -> Data:
        """A string that is filled in for each use; at first `value`'s length counts."""
        room = len(value) + _ROOM
        place = self.data(bytes(room + 1))
        self._variables.append((place, room))
        return place

    def pointers(self, targets: Sequence[Data | int | None]) -> Data:
        """Addresses one after the other; None: zero."""
        place = self.data(bytes(8 * len(targets)))
        for index, target in enumerate(targets):
            if target is not None:
                self.point(place.at(8 * index), target)
        return place

    def point(self, place: Data, target: Data | int) -> None:
        """Have an address stand at `place`."""
        self._pointers.append((place.offset, target))

    def scratch(self, size: int) -> int:
        """The address of so many bytes that are not a part of what is loaded."""
        self._scratch -= size + -size % 8
        return self._scratch

    # Operations.

    def call(
        self, name: str, *args: Argument, taken: Sequence[int] = (), then: Label | None = None
    ) -> Result:
        """A system call.

        Args:
            taken: at most four errors that are as good as none.
            then: where it goes on after one of them; None: right behind.
        """
        if name not in self._numbers:
            raise NotFlat(f"there is no {name} here")
        values = list(args)
        copies = [arg for arg in args if isinstance(arg, Result) and arg.place is not None]
        position = len(self._operations) + len(copies)
        for index, arg in enumerate(args):
            if isinstance(arg, Result):
                values[index] = 0
                here = _address(position) + 8 * (1 + index)
                if arg.place is None:
                    arg.place = here
                else:
                    self._append(COPY, here, arg.place)
        result = Result()
        errors = sum(number << 16 * index for index, number in enumerate(taken[:_ERRORS]))
        padding = [0] * (6 - len(values))
        following = _address(position + 1) if then is None else then
        self._append(self._numbers[name], *values, *padding, result, errors, following)
        return result

    def check(
        self, where: Data | int, mask: int, value: int, otherwise: Label | None = None
    ) -> None:
        """Go on if the 32 bits there, masked, are `value`; else at `otherwise`, or fail."""
        rest = (0, 0, 0, 0, 0, 0 if otherwise is None else otherwise)
        self._append(CHECK, where, mask, value, *rest)

    def copy(self, target: Data, source: Data | int) -> None:
        self._append(COPY, target, source)

    def keep(self, result: Result, place: Data | None = None) -> Data:
        """Have a call's result at `place`, or a new one: 64 bits. Before it is an argument."""
        if result.place is not None:
            raise NotFlat("the result has a place already")
        result.place = place or self.data(bytes(8))
        assert isinstance(result.place, Data)
        return result.place

    def goto(self, label: Label) -> None:
        never = self.data(bytes(8))
        self.check(never, 0, 1, label)

    def handler(self, label: Label | None) -> None:
        """From here on what fails goes on at `label`; None: it ends who runs the program."""
        self._append(HANDLER, 0 if label is None else label)

    def end(self) -> None:
        self._append(END)

    def place(self, label: Label) -> None:
        """`label` is what comes next."""
        label.position = len(self._operations)

    def image(self) -> Image:
        """The whole as it is loaded. NotFlat: it is too long."""
        start = HEADER + OPERATION * len(self._operations)
        words = [self._word(value, start) for line in self._operations for value in line]
        data = self._data[:]
        for offset, target in self._pointers:
            struct.pack_into("<Q", data, offset, self._word(target, start))
        memory = bytes(HEADER) + struct.pack(f"<{len(words)}Q", *words) + bytes(data)
        if BASE + len(memory) > self._scratch:
            raise NotFlat(f"a program of {len(memory)} bytes")
        return Image(memory, tuple((start + place.offset, room) for place, room in self._variables))

    def _append(self, *values: Argument) -> None:
        self._operations.append([*values, *[0] * (OPERATION // 8 - len(values))])

    def _word(self, value: Argument | None, start: int) -> int:
        match value:
            case int():
                return value & _MASK
            case Data(offset):
                return BASE + start + offset
            case Label():
                assert value.position >= 0, "a label has no place"
                return _address(value.position)
            case Result():
                return self._word(value.place, start)
            case None:
                return 0


def encoded(text: str) -> bytes:
    """As the kernel takes it."""
    return text.encode(errors="surrogateescape")


def _address(position: int) -> int:
    """Of the operation at this position."""
    return BASE + HEADER + OPERATION * position
