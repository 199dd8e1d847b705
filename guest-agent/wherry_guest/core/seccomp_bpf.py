"""A seccomp filter as a classic BPF program; pure: rules in, instructions out.

How it is laid out, and why: the kernel compiles a filter, which costs the same for every
instruction, and since 5.11 walks it once per system call number when it is installed, to learn
which calls are always allowed (kernel/seccomp.c, seccomp_cache_prepare); for those it is never run
again. So the program's length and the paths to the verdicts are what a start costs. Neighbours with
the same verdict become one interval, the intervals a search tree in which the wide ones are near
the root: some five comparisons instead of the hundreds of a list. The verdicts stand once, behind
their tree. A jump reaches 255 instructions: a tree is cut where that is needed, by a `ja`.

What is asked for, in this order: architecture, number, arguments (each as two 32-bit words).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# uapi/linux/bpf_common.h and filter.h: class, size and mode or operation of an instruction
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP: Final = 0x05  # BPF_JMP | BPF_JA
JUMP_EQUAL: Final = 0x15
JUMP_GREATER: Final = 0x25
JUMP_GREATER_EQUAL: Final = 0x35
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
RETURN: Final = 0x06
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS

AUDIT_ARCH_X86_64: Final = 0xC000003E  # uapi/linux/audit.h; x32's too
X32_BIT: Final = 0x40000000  # __X32_SYSCALL_BIT

# struct seccomp_data, uapi/linux/seccomp.h; both of our architectures are little endian
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16

_WORD: Final = 0xFFFFFFFF
_NO_CALL: Final = 0xFFFFFFFF  # -1, which a tracer writes to skip a call
_FARTHEST: Final = 255
_WALKED: Final = 470
"""About how many numbers an architecture has (NR_syscalls, IA32_NR_syscalls)."""

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump when true, jump when false, operand."""

Code = list[Instruction]


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument `index` (0 to 5) against `value`.

    Args:
        operator: EQ, NE, LT, LE, GT, GE, or MASKED_EQ (argument & value == value_two).
    """

    index: int
    operator: str
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """`verdict` (a SECCOMP_RET_ value) where every condition holds."""

    verdict: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Space:
    """The system calls of one architecture.

    Args:
        audit: its AUDIT_ARCH_ value, which seccomp_data names.
        base: what its numbers begin at (x32's bit).
        wide: arguments have 64 bits; else only the lower 32 are looked at.
        rules: by number, without `base`. The first one without conditions decides alone; else the
            first that matches does.
        newest: a greater number gets the verdict on unknown calls; None: the default.
    """

    audit: int
    base: int
    wide: bool
    rules: Mapping[int, Sequence[Rule]]
    newest: int | None = None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """SECCOMP_RET_ values where no rule matches, on unknown calls, and on other architectures."""

    default: int
    unknown: int
    foreign: int


@dataclass(frozen=True, slots=True)
class _AllBut:
    """A verdict on an interval, and another one on a number in it."""

    verdict: int
    number: int
    other: int


_Branch = tuple[int, int | Code | _AllBut, int]
"""The first number of an interval; the verdict on it, or what finds one; how many of its numbers
the kernel walks, or one."""

_Leaf = int | tuple[bool, tuple[Rule, ...]]
"""A verdict, or (wide, rules) that look at arguments."""


def assemble(spaces: Sequence[Space], verdicts: Verdicts) -> Code:
    """The program for these architectures, of which the first one is found first."""
    audits = list(dict.fromkeys(space.audit for space in spaces))
    code: Code = [(LOAD, 0, 0, _ARCHITECTURE)]
    for audit in audits:
        intervals = _intervals([s for s in spaces if s.audit == audit], verdicts)
        leaves = _weighed(
            (first, leaf if isinstance(leaf, int) else _leaf_code(leaf, verdicts.default))
            for first, leaf in intervals
        )
        body = [(LOAD, 0, 0, _NUMBER), *_tree(leaves)]
        code += [*_when(JUMP_EQUAL, audit, otherwise=len(body)), *body]
    return [*code, (RETURN, 0, 0, verdicts.foreign)]


def encode(code: Sequence[Instruction]) -> bytes:
    """An array of struct sock_filter."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _intervals(spaces: Sequence[Space], verdicts: Verdicts) -> list[tuple[int, _Leaf]]:
    """(first number, what is done from there on), from number 0."""
    marks: list[tuple[int, _Leaf]] = []
    for space in sorted(spaces, key=lambda space: space.base):
        marks += _marks(space, verdicts)
    if spaces[0].audit == AUDIT_ARCH_X86_64:
        if all(space.base != X32_BIT for space in spaces):
            marks.append((X32_BIT, verdicts.foreign))
        marks.append((_NO_CALL, verdicts.default))
    merged = marks[:1]
    for mark in marks[1:]:
        if mark[0] == merged[-1][0]:
            merged.pop()
        if not merged or mark[1] != merged[-1][1]:
            merged.append(mark)
    return merged


def _marks(space: Space, verdicts: Verdicts) -> list[tuple[int, _Leaf]]:
    marks: list[tuple[int, _Leaf]] = [(space.base, verdicts.default)]
    for number in sorted(space.rules):
        rules = space.rules[number]
        alone = [rule.verdict for rule in rules if not rule.conditions]
        leaf = alone[0] if alone else (space.wide, tuple(rules))
        first = space.base + number
        marks += [(first, leaf), (first + 1, verdicts.default)]
    if space.newest is not None:
        marks.append((space.base + space.newest + 1, verdicts.unknown))
    return marks


def _weighed(leaves: Iterable[tuple[int, int | Code]]) -> list[_Branch]:
    pairs = _joined(list(leaves))
    ends = [first for first, _ in pairs[1:]] + [_WALKED]
    return [
        (first, leaf, max(1, min(end, _WALKED) - min(first, _WALKED)))
        for (first, leaf), end in zip(pairs, ends, strict=True)
    ]


def _joined(leaves: list[tuple[int, int | Code]]) -> list[tuple[int, int | Code | _AllBut]]:
    """With neighbours of the same verdict in one where a single number lies between them."""
    joined: list[tuple[int, int | Code | _AllBut]] = []
    at = 0
    while at < len(leaves):
        first, leaf = leaves[at]
        if at + 2 < len(leaves) and isinstance(leaf, int) and leaf == leaves[at + 2][1]:
            (number, other), (end, _) = leaves[at + 1], leaves[at + 2]
            if isinstance(other, int) and end == number + 1:
                joined.append((first, _AllBut(leaf, number, other)))
                at += 3
                continue
        joined.append((first, leaf))
        at += 1
    return joined


def _tree(leaves: Sequence[_Branch]) -> Code:
    """A binary search for the interval that the loaded number is in."""
    if len(leaves) == 1:
        leaf = leaves[0][1]
        if isinstance(leaf, list):
            return leaf
    small = _small_tree(leaves)
    if small is not None:
        return small
    middle = _middle(leaves)
    lower, upper = _tree(leaves[:middle]), _tree(leaves[middle:])
    first = leaves[middle][0]
    if len(lower) <= _FARTHEST:
        return [(JUMP_GREATER_EQUAL, len(lower), 0, first), *lower, *upper]
    far = (JUMP, 0, 0, len(lower))
    return [(JUMP_GREATER_EQUAL, 0, 1, first), far, *lower, *upper]


def _middle(leaves: Sequence[_Branch]) -> int:
    """Where to cut: about as many walked numbers on the one side as on the other."""
    half, before = sum(weight for _, _, weight in leaves) / 2, 0
    for position, (_, _, weight) in enumerate(leaves[:-1]):
        if before + weight / 2 > half:
            return max(1, position)
        before += weight
    return len(leaves) - 1


def _small_tree(leaves: Sequence[_Branch]) -> Code | None:
    """One whose jumps all reach the verdicts behind it; None where they do not."""
    code: list[Instruction | _Test] = []
    verdicts: dict[int, int] = {}

    def verdict(value: int) -> int:
        return ~verdicts.setdefault(value, len(verdicts))

    def add(part: Sequence[_Branch]) -> int:
        """Where it begins, or (below zero) which verdict it is."""
        here = len(code)
        if len(part) == 1:
            leaf = part[0][1]
            if isinstance(leaf, int):
                return verdict(leaf)
            if isinstance(leaf, _AllBut):
                here_too = (verdict(leaf.other), verdict(leaf.verdict))
                code.append(_Test(JUMP_EQUAL, leaf.number, *here_too))
            else:
                code.extend(leaf)
            return here
        middle = _middle(part)
        code.append((0, 0, 0, 0))
        lower, upper = add(part[:middle]), add(part[middle:])
        code[here] = _Test(JUMP_GREATER_EQUAL, part[middle][0], upper, lower)
        return here

    start = add(leaves)
    if len(code) + len(verdicts) > _FARTHEST:
        return None

    def distance(target: int, position: int) -> int:
        return (target if target >= 0 else len(code) + ~target) - position - 1

    made: Code = []
    for position, it in enumerate(code):
        if isinstance(it, _Test):
            then, otherwise = (distance(to, position) for to in (it.then, it.otherwise))
            made.append((it.operation, then, otherwise, it.operand))
        else:
            made.append(it)
    assert start <= 0  # the first instruction, or the only verdict
    return [*made, *((RETURN, 0, 0, value) for value in verdicts)]


@dataclass(frozen=True, slots=True)
class _Test:
    """A jump whose targets are places in the code, or (below zero) verdicts."""

    operation: int
    operand: int
    then: int
    otherwise: int


def _leaf_code(leaf: tuple[bool, tuple[Rule, ...]], default: int) -> Code:
    wide, rules = leaf
    code: Code = []
    for rule in rules:
        code += _rule_code(rule, wide)
    return [*code, (RETURN, 0, 0, default)]


def _rule_code(rule: Rule, wide: bool) -> Code:
    """Falls out of its end when a condition does not hold. At most 6 * 6 + 1 instructions."""
    code: Code = [(RETURN, 0, 0, rule.verdict)]
    for condition in reversed(rule.conditions):
        code = [*_condition_code(condition, wide, len(code)), *code]
    return code


def _condition_code(condition: Condition, wide: bool, rest: int) -> Code:
    """Goes on behind its end when it holds, else `rest` instructions farther."""
    low_at = _ARGUMENTS + 8 * condition.index
    high, low = condition.value >> 32 & _WORD, condition.value & _WORD
    if condition.operator == "MASKED_EQ":
        high_two, low_two = condition.value_two >> 32 & _WORD, condition.value_two & _WORD
        code = [(LOAD, 0, 0, low_at), (AND, 0, 0, low), (JUMP_EQUAL, 0, rest, low_two)]
        if not wide or high == high_two == 0:
            return code
        miss = len(code) + rest
        return [
            (LOAD, 0, 0, low_at + 4), (AND, 0, 0, high), (JUMP_EQUAL, 0, miss, high_two), *code
        ]  # fmt: skip
    code = [(LOAD, 0, 0, low_at), _last_jump(condition.operator, low, rest)]
    return [*_high_code(condition.operator, low_at + 4, high, rest), *code] if wide else code


def _last_jump(operator: str, low: int, rest: int) -> Instruction:
    """Of the lower words, where the upper ones are equal or not looked at."""
    return {
        "EQ": (JUMP_EQUAL, 0, rest, low),
        "NE": (JUMP_EQUAL, rest, 0, low),
        "GT": (JUMP_GREATER, 0, rest, low),
        "GE": (JUMP_GREATER_EQUAL, 0, rest, low),
        "LT": (JUMP_GREATER_EQUAL, rest, 0, low),
        "LE": (JUMP_GREATER, rest, 0, low),
    }[operator]


def _high_code(operator: str, offset: int, high: int, rest: int) -> Code:
    """Of the upper words: a verdict where they differ; two instructions on the lower words follow.

    `hit` and `miss` count from an instruction that is followed by those two only.
    """
    hit, miss = 2, 2 + rest
    load = (LOAD, 0, 0, offset)
    if operator == "EQ":
        return [load, (JUMP_EQUAL, 0, miss, high)]
    if operator == "NE":
        return [load, (JUMP_EQUAL, 0, hit, high)]
    greater, smaller = (hit, miss) if operator in ("GT", "GE") else (miss, hit)
    return [load, (JUMP_GREATER, greater + 1, 0, high), (JUMP_EQUAL, 0, smaller, high)]


def _when(code: int, operand: int, otherwise: int) -> Code:
    """Go on when it is so, else `otherwise` instructions farther."""
    if otherwise <= _FARTHEST:
        return [(code, 0, otherwise, operand)]
    return [(code, 1, 0, operand), (JUMP, 0, 0, otherwise)]
