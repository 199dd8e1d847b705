"""What the kernel does with a seccomp filter, for tests: checks it, and runs it on one call."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

RETURN, JUMP, LOAD, AND = 0x06, 0x05, 0x20, 0x54
CONDITIONAL = {0x15: "==", 0x25: ">", 0x35: ">=", 0x45: "&"}


@dataclass(frozen=True)
class Outcome:
    """The verdict, and how many instructions it took; whether it looked at arguments."""

    verdict: int
    steps: int
    looked_at_arguments: bool


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", program))


def check(program: bytes) -> None:
    """As bpf_check_classic and seccomp_check_filter: jumps stay inside, every path returns."""
    code = decode(program)
    assert 0 < len(code) <= 4096
    for at, (op, true, false, operand) in enumerate(code):
        left = len(code) - at - 1
        if op in CONDITIONAL:
            assert true < left and false < left, at
        elif op == JUMP:
            assert operand < left, at
        elif op == LOAD:
            assert operand % 4 == 0 and operand < 64, at
        else:
            assert op in (RETURN, AND), at
    assert code[-1][0] == RETURN


def run(
    program: bytes, architecture: int, number: int, arguments: Sequence[int] = (0,) * 6
) -> Outcome:
    """Run the filter on a struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    code = decode(program)
    at = steps = accumulator = 0
    looked = False
    while True:
        op, true, false, operand = code[at]
        at += 1
        steps += 1
        if op == RETURN:
            return Outcome(operand, steps, looked)
        if op == LOAD:
            (accumulator,) = struct.unpack_from("<I", data, operand)
            looked = looked or operand >= 16
        elif op == AND:
            accumulator &= operand
        elif op == JUMP:
            at += operand
        else:
            at += true if _holds(CONDITIONAL[op], accumulator, operand) else false


def _holds(comparison: str, left: int, right: int) -> bool:
    return {
        "==": left == right,
        ">": left > right,
        ">=": left >= right,
        "&": bool(left & right),
    }[comparison]
