"""`linux.seccomp`: the profile read and compiled for this machine, and the step that installs it.

Rules: a profile is compiled by whoever makes the plan, never in the forked child, and once:
`Filters` remembers. What the references do is done here: names that this architecture does not have
are passed over, and rules that say what the default says; a call newer than every one that the
profile names gets ENOSYS, unless the default lets calls pass (so that a libc can fall back);
several conditions on one argument are alternatives; other architectures are killed.

Sources: runtime-spec config-linux.md, "Seccomp"; uapi/linux/seccomp.h; runc's libcontainer/seccomp.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.capabilities import CapabilitySets, mask_of
from wherry_guest.core.fields import Fields, SpecError
from wherry_guest.core.seccomp_bpf import (
    AUDIT_ARCH_X86_64,
    MAX_INSTRUCTIONS,
    X32_BIT,
    Condition,
    Rule,
    Space,
    Verdicts,
    assemble,
    encode,
)
from wherry_guest.core.syscall_numbers import known_names, numbers

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

_os: Final[Any] = os  # uname is POSIX only

RET_KILL_PROCESS: Final = 0x80000000
RET_KILL_THREAD: Final = 0x00000000
RET_TRAP: Final = 0x00030000
RET_ERRNO: Final = 0x00050000
RET_TRACE: Final = 0x7FF00000
RET_LOG: Final = 0x7FFC0000
RET_ALLOW: Final = 0x7FFF0000

_ACTIONS: Final[Mapping[str, int]] = {
    "SCMP_ACT_KILL": RET_KILL_THREAD, "SCMP_ACT_KILL_THREAD": RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": RET_KILL_PROCESS, "SCMP_ACT_TRAP": RET_TRAP,
    "SCMP_ACT_ERRNO": RET_ERRNO, "SCMP_ACT_TRACE": RET_TRACE, "SCMP_ACT_ALLOW": RET_ALLOW,
    "SCMP_ACT_LOG": RET_LOG,
}  # fmt: skip
_WITH_DATA: Final[Mapping[int, int]] = {RET_ERRNO: 4095, RET_TRACE: 65535}
"""Actions that carry a number, and the greatest (MAX_ERRNO, SECCOMP_RET_DATA)."""

_PASSING: Final = (RET_ALLOW, RET_LOG, RET_TRACE)

_FLAG_LOG: Final = 2  # SECCOMP_FILTER_FLAG_LOG
_FLAG_SPEC_ALLOW: Final = 4
_FLAGS: Final[Mapping[str, int]] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # for the other threads, of which there are none
    "SECCOMP_FILTER_FLAG_LOG": _FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": _FLAG_SPEC_ALLOW,
}
SET_MODE_FILTER: Final = 1  # SECCOMPSET_MODE_FILTER

_OPERATORS: Final = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_KEPT_FILTERS: Final = 16
_SYS_ADMIN: Final = mask_of(["CAP_SYS_ADMIN"])


@dataclass(frozen=True, slots=True)
class _Architecture:
    """`table`: the name in `syscall_numbers`; `audit`: AUDIT_ARCH_, uapi/linux/audit.h."""

    table: str
    audit: int
    wide: bool = False
    base: int = 0


_MACHINES: Final[Mapping[str, Mapping[str, _Architecture]]] = {
    # what a kernel of this machine can run, its own architecture first
    "x86_64": {
        "SCMP_ARCH_X86_64": _Architecture("x86_64", AUDIT_ARCH_X86_64, wide=True),
        "SCMP_ARCH_X86": _Architecture("x86", 0x40000003),
        "SCMP_ARCH_X32": _Architecture("x32", AUDIT_ARCH_X86_64, base=X32_BIT),
    },
    "aarch64": {
        "SCMP_ARCH_AARCH64": _Architecture("aarch64", 0xC00000B7, wide=True),
        "SCMP_ARCH_ARM": _Architecture("arm", 0x40000028),
    },
}
_OTHER_ARCHITECTURES: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in [
        "LOONGARCH64",
        "M68K",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PARISC",
        "PARISC64",
        "PPC",
        "PPC64",
        "PPC64LE",
        "RISCV64",
        "S390",
        "S390X",
        "SH",
        "SHEB",
    ]
)


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled profile: an array of struct sock_filter, and seccomp(2)'s flags."""

    program: bytes = field(repr=False)
    flags: int


class Filters:
    """Compiles profiles for `machine` (uname's), and remembers the latest.

    Compiling Docker's default costs more than the rest of a start; comparing two profiles does not.
    """

    def __init__(self, machine: str = "") -> None:
        self._machine = machine
        self._kept: list[tuple[Mapping[str, Any], Filter]] = []

    def get(self, profile: Mapping[str, Any]) -> Filter:
        """The filter of an OCI `linux.seccomp` object; SpecError."""
        for position, (known, made) in enumerate(self._kept):
            if known == profile:
                self._kept.insert(0, self._kept.pop(position))
                return made
        made = compile_profile(profile, self._machine or _os.uname().machine)
        self._kept.insert(0, (profile, made))
        del self._kept[_KEPT_FILTERS:]
        return made


def compile_profile(profile: Mapping[str, Any], machine: str) -> Filter:
    """An OCI `linux.seccomp` object as a filter for `machine` (x86_64 or aarch64).

    Raises:
        SpecError: a field is wrong, a name is no system call of any architecture, SCMP_ACT_NOTIFY
            is asked for, or the program is longer than the kernel takes.
    """
    if machine not in _MACHINES:
        raise SpecError(f"linux.seccomp is not supported on {machine}")
    fields = Fields(profile, "linux.seccomp")
    default = _read_action(fields, "defaultAction", "defaultErrnoRet")
    architectures = _read_architectures(fields, machine)
    flags = _read_flags(fields, absent=profile.get("flags") is None)
    calls = [_read_call(item) for item in fields.objects("syscalls")]
    for name in ("listenerPath", "listenerMetadata"):
        fields.refuse_unless_default(name, "nobody would be told about a call")
    fields.finish()
    spaces = [_space(architecture, calls, default) for architecture in architectures]
    code = assemble(spaces, Verdicts(default, RET_ERRNO | errno.ENOSYS, RET_KILL_PROCESS))
    if len(code) > MAX_INSTRUCTIONS:
        size = f"{len(code)} instructions, and the kernel takes {MAX_INSTRUCTIONS}"
        raise SpecError(f"linux.seccomp is too long: it makes {size}")
    return Filter(encode(code), flags)


@dataclass(frozen=True, slots=True)
class InstallFilter:
    """Install the filter as the last thing before the exec; then only the final rights are left.

    Without no_new_privs that needs CAP_SYS_ADMIN: `SetCapabilities` has left it in the permitted
    set, and it is given up right after. So a profile need not allow what setting a process up
    takes, but capset and execve.
    """

    made: Filter
    sets: CapabilitySets
    no_new_privileges: bool

    def describe(self) -> str:
        return "install the seccomp filter (linux.seccomp)"

    def execute(self, kernel: Kernel, state: State) -> None:
        sets, made = self.sets, self.made
        code = ctypes.create_string_buffer(made.program, len(made.program))
        program = _Program(len(made.program) // 8, ctypes.addressof(code))
        borrowed = kept_capabilities(made, self.no_new_privileges) & ~sets.effective
        if borrowed:
            kernel.capset(sets.effective | borrowed, sets.permitted | borrowed, sets.inheritable)
        kernel.seccomp(SET_MODE_FILTER, made.flags, ctypes.byref(program))
        if borrowed:
            kernel.capset(sets.effective, sets.permitted, sets.inheritable)


def kept_capabilities(made: Filter | None, no_new_privileges: bool) -> int:
    """What must stay in the permitted set until the filter is installed, as a mask."""
    return 0 if made is None or no_new_privileges else _SYS_ADMIN


def seccomp_features() -> dict[str, list[str]]:
    """What a Features object says about seccomp (runtime-spec features-linux.md)."""
    return {
        "actions": list(_ACTIONS),
        "operators": [f"SCMP_CMP_{operator}" for operator in _OPERATORS],
        "archs": [name for table in _MACHINES.values() for name in table],
        "knownFlags": list(_FLAGS),
        "supportedFlags": list(_FLAGS),
    }


class _Program(ctypes.Structure):
    """struct sock_fprog, uapi/linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


@dataclass(frozen=True, slots=True)
class _Call:
    """`syscalls[]`: every one of `rules` (all of one verdict) is for every one of `names`."""

    names: tuple[str, ...]
    verdict: int
    rules: tuple[Rule, ...]


def _space(architecture: _Architecture, calls: list[_Call], default: int) -> Space:
    table = numbers(architecture.table)
    rules: dict[int, list[Rule]] = {}
    newest = -1
    for call in calls:
        for name in call.names:
            number = table.get(name)
            if number is None:
                continue
            newest = max(newest, number)
            if call.verdict != default:
                rules.setdefault(number, []).extend(call.rules)
    passing = _action_of(default) in _PASSING or newest < 0
    return Space(
        architecture.audit, architecture.base, architecture.wide, rules, None if passing else newest
    )


def _action_of(verdict: int) -> int:
    return verdict & 0xFFFF0000  # SECCOMP_RET_ACTION_FULL


def _read_action(fields: Fields, name: str, data_name: str) -> int:
    word = fields.get(name, str, "")
    if word == "SCMP_ACT_NOTIFY":
        raise SpecError(f"{fields.name(name)} SCMP_ACT_NOTIFY is not supported")
    if word not in _ACTIONS:
        raise SpecError(f"{fields.name(name)} {word!r} is no action")
    action = _ACTIONS[word]
    data = fields.optional(data_name)
    if action not in _WITH_DATA:
        if data is not None:
            raise SpecError(f"{fields.name(data_name)} is set, and {word} takes none")
        return action
    data = errno.EPERM if data is None else data
    if not 0 <= data <= _WITH_DATA[action]:
        raise SpecError(f"{fields.name(data_name)} {data} is not from 0 to {_WITH_DATA[action]}")
    return action | data


def _read_architectures(fields: Fields, machine: str) -> list[_Architecture]:
    own = _MACHINES[machine]
    named = fields.strings("architectures")
    every = {name for table in _MACHINES.values() for name in table} | _OTHER_ARCHITECTURES
    for name in named:
        if name not in every:
            raise SpecError(f"{fields.name('architectures')} has {name!r}, which is none")
    first = next(iter(own))  # filtered always, as libseccomp does
    return [architecture for name, architecture in own.items() if name in (first, *named)]


def _read_flags(fields: Fields, absent: bool) -> int:
    words = fields.strings("flags")
    for word in words:
        if word not in _FLAGS:
            raise SpecError(f"{fields.name('flags')} has {word!r}, which is not supported")
    if absent:
        return _FLAG_SPEC_ALLOW  # as runc: mitigations that nobody asked for cost much
    return sum({_FLAGS[word] for word in words})


def _read_call(item: Fields) -> _Call:
    names = item.strings("names")
    if not names:
        raise SpecError(f"{item.name('names')} is empty")
    for name in names:
        if name not in known_names():
            raise SpecError(f"{item.name('names')} has {name!r}, which is no system call")
    verdict = _read_action(item, "action", "errnoRet")
    conditions = tuple(_read_condition(argument) for argument in item.objects("args"))
    item.finish()
    return _Call(names, verdict, tuple(_alternatives(verdict, conditions)))


def _alternatives(verdict: int, conditions: tuple[Condition, ...]) -> Iterator[Rule]:
    indexes = {condition.index for condition in conditions}
    if len(indexes) == len(conditions):
        yield Rule(verdict, conditions)
        return
    for condition in conditions:  # one argument more than once: each is a rule of its own
        yield Rule(verdict, (condition,))


def _read_condition(item: Fields) -> Condition:
    word = item.get("op", str, "")
    operator = word.removeprefix("SCMP_CMP_")
    if word == operator or operator not in _OPERATORS:
        raise SpecError(f"{item.name('op')} {word!r} is no comparison")
    condition = Condition(
        item.integer("index", 0, 0, 5),
        operator,
        item.integer("value", 0, 0, 2**64 - 1),
        item.integer("valueTwo", 0, 0, 2**64 - 1),
    )
    item.finish()
    return condition
