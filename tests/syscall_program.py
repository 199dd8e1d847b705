"""A static x86-64 program that makes one system call: an attack needs no compiler and no library.

Its exit code is the errno, 0 for success.
"""

from __future__ import annotations

import struct

_BASE = 0x400000
_CODE_AT = 64 + 56  # behind the ELF header and one program header, elf(5)
_MOVE_TO = (  # movabs to rax, rdi, rsi, rdx, r10, r8, r9
    b"\x48\xb8", b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9",
)  # fmt: skip
_CALL_AND_EXIT = (
    b"\x0f\x05"  # syscall
    b"\x31\xff"  # xor edi, edi
    b"\x48\x85\xc0"  # test rax, rax
    b"\x79\x04"  # jns over the next two
    b"\x48\xf7\xd8"  # neg rax
    b"\x97"  # xchg edi, eax
    b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
    b"\x0f\x05"
)


def syscall_program(number: int, *arguments: int | bytes) -> bytes:
    """An executable file's bytes; `bytes` are passed by address, and may be written to."""
    length = 10 * (1 + len(arguments)) + len(_CALL_AND_EXIT)
    data = b""
    words = [number]
    for argument in arguments:
        if isinstance(argument, bytes):
            words.append(_BASE + _CODE_AT + length + len(data))
            data += argument
        else:
            words.append(argument & 2**64 - 1)
    moves = b"".join(
        op + struct.pack("<Q", word) for op, word in zip(_MOVE_TO, words, strict=False)
    )
    body = moves + _CALL_AND_EXIT + data
    size = _CODE_AT + len(body)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    fields = (2, 62, 1, _BASE + _CODE_AT, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header = identity + struct.pack("<HHIQQQIHHHHHH", *fields)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 4096)
    return header + segment + body
