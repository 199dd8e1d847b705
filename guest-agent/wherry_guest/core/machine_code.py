"""Small programs in machine code: from a listing to bytes, and to an executable file.

Nothing in the machine could compile a program, and a Python process that stays would weigh some
MiB. A listing has the bytes in its left-hand column and the words for GNU's assembler beside them;
a test has the assemblers translate the words and compares. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

ADDRESS: Final = 0x400000
"""Where an executable's code is loaded."""

_ALIGNMENT: Final = 0x10000
"""The largest page of either architecture."""

# elf(5)
MACHINES: Final = {"x86_64": 62, "aarch64": 183}
_ELF: Final = struct.Struct("<4s12sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_EXECUTABLE: Final = 2
_LOAD: Final = 1
_STACK: Final = 0x6474E551
_READ_EXECUTE: Final = 5
_READ_WRITE: Final = 6


@dataclass(frozen=True, slots=True)
class Memory:
    """What a program has for its data, all zero at first; both in bytes, of whole pages."""

    address: int
    size: int


def machine_code(listing: str) -> bytes:
    """The left-hand column."""
    lines = [line for line in listing.splitlines() if line.startswith(" ")]
    return b"".join(bytes.fromhex(line.split(None, 1)[0]) for line in lines)


def executable(machine: str, listing: str, memory: Memory | None = None) -> bytes:
    """An ELF file with a segment of code, one of memory, and a stack that cannot be executed.

    Args:
        machine: uname's; KeyError for one that is not in MACHINES.
    """
    code = machine_code(listing)
    count = 2 if memory is None else 3
    start = _ELF.size + count * _SEGMENT.size
    header = _ELF.pack(
        b"\x7fELF",
        b"\2\1\1" + bytes(9),  # 64 bits, little-endian, version 1
        _EXECUTABLE,
        MACHINES[machine],
        1,
        ADDRESS + start,
        _ELF.size,  # where the segments are described
        0,
        0,
        _ELF.size,
        _SEGMENT.size,
        count,
        0,
        0,
        0,
    )
    size = start + len(code)
    segments = _SEGMENT.pack(_LOAD, _READ_EXECUTE, 0, ADDRESS, ADDRESS, size, size, _ALIGNMENT)
    if memory is not None:
        where = (memory.address, memory.address, 0, memory.size, _ALIGNMENT)
        segments += _SEGMENT.pack(_LOAD, _READ_WRITE, 0, *where)
    segments += _SEGMENT.pack(_STACK, _READ_WRITE, 0, 0, 0, 0, 0, 16)
    return header + segments + code
