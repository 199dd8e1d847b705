"""A static program that makes one system call: an attack needs no compiler and no library.

Its exit code is the errno, 0 for success. For x86-64 and arm64.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence

from wherry_guest.core.syscall_numbers import numbers

HERE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
"""This machine, as Linux's uname(2) would say it; other systems only import what uses it."""

_BASE = 0x400000
_CODE_AT = 64 + 56  # behind the ELF header and one program header, elf(5)

_MOVE_TO = (  # movabs to rax, rdi, rsi, rdx, r10, r8, r9
    b"\x48\xb8", b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9",
)  # fmt: skip
_X86_CALL_AND_EXIT = (
    b"\x0f\x05"  # syscall
    b"\x31\xff"  # xor edi, edi
    b"\x48\x85\xc0"  # test rax, rax
    b"\x79\x04"  # jns over the next two
    b"\x48\xf7\xd8"  # neg rax
    b"\x97"  # xchg edi, eax
    b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
    b"\x0f\x05"
)

_MOVZ, _MOVK = 0xD2800000, 0xF2800000
_ARM_REGISTERS = (8, 0, 1, 2, 3, 4, 5)
_ARM_CALL_AND_EXIT = struct.pack(
    "<5I",
    0xD4000001,  # svc #0
    0xF100001F,  # cmp x0, #0
    0xDA80A7E0,  # csneg x0, xzr, x0, ge
    _MOVZ | 93 << 5 | 8,  # mov x8, #93 (exit)
    0xD4000001,
)

_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


def syscall_program(call: int | str, *arguments: int | bytes, machine: str = "") -> bytes:
    """An executable file's bytes.

    Args:
        call: its number, or its name on `machine`.
        arguments: `bytes` are passed by address, and may be written to.
        machine: as uname(2) says it; empty: this one.
    """
    machine = machine or HERE
    number = numbers(machine)[call] if isinstance(call, str) else call
    length = len(_code(machine, [number, *(0 for _ in arguments)]))
    data = b""
    words = [number]
    for argument in arguments:
        if isinstance(argument, bytes):
            words.append(_BASE + _CODE_AT + length + len(data))
            data += argument
        else:
            words.append(argument & 2**64 - 1)
    body = _code(machine, words) + data
    size = _CODE_AT + len(body)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    fields = (2, _ELF_MACHINE[machine], 1, _BASE + _CODE_AT, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header = identity + struct.pack("<HHIQQQIHHHHHH", *fields)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 4096)
    return header + segment + body


def _code(machine: str, words: Sequence[int]) -> bytes:
    """The call with these words, the number first; as long whatever they are."""
    if machine == "x86_64":
        moves = (op + struct.pack("<Q", word) for op, word in zip(_MOVE_TO, words, strict=False))
        return b"".join(moves) + _X86_CALL_AND_EXIT
    code = b""
    for register, word in zip(_ARM_REGISTERS, words, strict=False):
        for part in range(4):
            move = (_MOVK if part else _MOVZ) | part << 21
            code += struct.pack("<I", move | (word >> 16 * part & 0xFFFF) << 5 | register)
    return code + _ARM_CALL_AND_EXIT
