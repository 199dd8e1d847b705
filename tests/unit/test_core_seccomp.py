"""Seccomp profiles as BPF programs: what they decide, how long that takes, what is refused."""

from __future__ import annotations

import ctypes.util
import operator
from collections.abc import Callable, Mapping
from typing import Any

import bpf_interpreter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_kernel import RecordingKernel

from wherry_guest.core.capabilities import CapabilitySets, SetCapabilities, mask_of
from wherry_guest.core.fields import SpecError
from wherry_guest.core.plan import Layout, Options, exec_plan
from wherry_guest.core.process import CloseOnExec, Execute, NoNewPrivileges
from wherry_guest.core.seccomp import (
    Filters,
    InstallFilter,
    compile_profile,
    kept_capabilities,
)
from wherry_guest.core.spec import parse_process
from wherry_guest.core.steps import State, run
from wherry_guest.core.syscall_numbers import ARCHITECTURES, known_names, numbers

X86_64, X86, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
X32_BIT = 0x40000000
ALLOW, LOG, TRAP = 0x7FFF0000, 0x7FFC0000, 0x00030000
KILL_THREAD, KILL_PROCESS = 0, 0x80000000
ENOSYS = 0x00050000 | 38


def refused(number: int) -> int:
    return 0x00050000 | number


def traced(number: int) -> int:
    return 0x7FF00000 | number


def profile(*syscalls: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(syscalls), **fields}


def allow(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **fields}


def where(index: int, op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": value_two}


def verdict(
    made: dict[str, Any],
    name: str | int,
    *arguments: int,
    machine: str = "x86_64",
    architecture: int = X86_64,
) -> int:
    program = compile_profile(made, machine).program
    bpf_interpreter.check(program)
    table = {X86_64: "x86_64", X86: "x86", AARCH64: "aarch64", ARM: "arm"}[architecture]
    number = numbers(table)[name] if isinstance(name, str) else name
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    return bpf_interpreter.run(program, architecture, number, padded).verdict


def test_what_is_named_is_allowed_and_the_rest_gets_the_default() -> None:
    made = profile(allow("read", "write", "statx"))
    assert verdict(made, "write") == ALLOW
    assert verdict(made, "mount") == refused(1)


def test_default_errno_is_the_profiles() -> None:
    made = profile(allow("read", "statx"), defaultErrnoRet=13)
    assert verdict(made, "mount") == refused(13)


def test_a_call_newer_than_the_profile_does_not_exist() -> None:
    made = profile(allow("read", "statx"))
    assert verdict(made, "statx") == ALLOW
    assert verdict(made, 333) == ENOSYS
    assert verdict(made | {"defaultAction": "SCMP_ACT_LOG"}, 333) == LOG


@pytest.mark.parametrize(
    ("action", "extra", "expected"),
    [
        ("SCMP_ACT_KILL", {}, KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", {}, KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", {}, KILL_PROCESS),
        ("SCMP_ACT_TRAP", {}, TRAP),
        ("SCMP_ACT_LOG", {}, LOG),
        ("SCMP_ACT_ERRNO", {}, refused(1)),
        ("SCMP_ACT_ERRNO", {"errnoRet": 0}, refused(0)),
        ("SCMP_ACT_ERRNO", {"errnoRet": 4095}, refused(4095)),
        ("SCMP_ACT_TRACE", {}, traced(1)),
        ("SCMP_ACT_TRACE", {"errnoRet": 77}, traced(77)),
    ],
)
def test_actions(action: str, extra: dict[str, int], expected: int) -> None:
    made = profile({"names": ["chroot"], "action": action, **extra}, defaultAction="SCMP_ACT_ALLOW")
    assert verdict(made, "chroot") == expected
    assert verdict(made, "read") == ALLOW


BIG = 0x1_0000_0002
OPERATORS: Mapping[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le,
    "GT": operator.gt, "GE": operator.ge,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("value", [0, 1, 2, 2**32 - 1, 2**32, BIG, 2**64 - 1])
@pytest.mark.parametrize("argument", [0, 1, 2, 3, 2**32 - 1, 2**32, BIG, BIG + 1, 2**64 - 1])
def test_comparisons_are_of_64_bits(name: str, value: int, argument: int) -> None:
    made = profile(allow("statx", args=[where(3, name, value)]))
    expected = ALLOW if OPERATORS[name](argument, value) else refused(1)
    assert verdict(made, "statx", 9, 9, 9, argument, 9, 9) == expected


def test_masked_comparison_looks_at_both_words() -> None:
    mask = 0xF000_0000_0000_00F0
    made = profile(allow("clone", args=[where(0, "MASKED_EQ", mask, 0x1000_0000_0000_0020)]))
    assert verdict(made, "clone", 0x1FFF_FFFF_FFFF_FF2F) == ALLOW
    assert verdict(made, "clone", 0x2000_0000_0000_0020) == refused(1)
    assert verdict(made, "clone", 0x1000_0000_0000_0030) == refused(1)


def test_all_conditions_of_a_rule_must_hold() -> None:
    made = profile(allow("socket", args=[where(0, "EQ", 16), where(2, "NE", 9)]))
    assert verdict(made, "socket", 16, 3, 0) == ALLOW
    assert verdict(made, "socket", 16, 3, 9) == refused(1)
    assert verdict(made, "socket", 2, 3, 0) == refused(1)


def test_several_conditions_on_one_argument_are_alternatives() -> None:
    made = profile(allow("personality", args=[where(0, "EQ", 0), where(0, "EQ", 8)]))
    assert [verdict(made, "personality", value) for value in (0, 8, 4)] == [
        ALLOW, ALLOW, refused(1)
    ]  # fmt: skip


def test_a_rule_without_conditions_decides_alone() -> None:
    conditional = allow("ptrace", args=[where(0, "EQ", 1)])
    plain = {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}
    for calls in ((conditional, plain), (plain, conditional)):
        assert verdict(profile(*calls), "ptrace", 1) == refused(5)


def test_calls_of_a_foreign_architecture_kill() -> None:
    made = profile(allow("read", "statx"))
    program = compile_profile(made, "x86_64").program
    assert bpf_interpreter.run(program, X86, 3).verdict == KILL_PROCESS
    assert bpf_interpreter.run(program, AARCH64, 63).verdict == KILL_PROCESS


def test_x32_kills_unless_the_profile_names_it() -> None:
    made = profile(allow("read", "ioctl", "statx"))
    assert verdict(made, X32_BIT) == KILL_PROCESS
    assert verdict(made, 0xFFFFFFFF) == refused(1)
    named = made | {"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]}
    assert verdict(named, X32_BIT | numbers("x32")["ioctl"]) == ALLOW
    assert verdict(named, X32_BIT | numbers("x32")["mount"]) == refused(1)


def test_each_architecture_has_its_own_numbers() -> None:
    made = profile(
        allow("read", "chown32", "clone", args=[]),
        architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_ARM"],
    )
    assert verdict(made, "read", architecture=X86) == ALLOW
    assert verdict(made, "chown32", architecture=X86) == ALLOW
    assert verdict(made, "write", architecture=X86) == refused(1)
    assert verdict(made, "read", machine="aarch64", architecture=AARCH64) == ALLOW
    assert verdict(made, "chown32", machine="aarch64", architecture=ARM) == ALLOW


def test_only_the_lower_half_of_a_32_bit_architectures_arguments_counts() -> None:
    made = profile(
        allow("personality", args=[where(0, "EQ", 2**64 - 1)]), architectures=["SCMP_ARCH_X86"]
    )
    assert verdict(made, "personality", 2**32 - 1, architecture=X86) == ALLOW
    assert verdict(made, "personality", 2**32 - 1) == refused(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defaultAction": ""}, "linux.seccomp.defaultAction '' is no action"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction SCMP_ACT_NOTIFY is not supported"),
        ({"defaultErrnoRet": 4096}, "linux.seccomp.defaultErrnoRet 4096 is not from 0 to 4095"),
        ({"architectures": ["SCMP_ARCH_Z80"]}, "architectures has 'SCMP_ARCH_Z80', which is none"),
        ({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "which is not supported"),
        ({"listenerPath": "/run/x"}, "linux.seccomp.listenerPath is not supported"),
        ({"nonsense": 1}, "linux.seccomp.nonsense is not supported"),
        ({"syscalls": [allow("mount", "munt")]}, r"syscalls\[0\].names has 'munt', which is no"),
        ({"syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}, "names is empty"),
        ({"syscalls": [allow("mount", errnoRet=1)]}, "SCMP_ACT_ALLOW takes none"),
        ({"syscalls": [allow("mount", args=[where(6, "EQ", 1)])]}, "index 6 is not from 0 to 5"),
        ({"syscalls": [allow("mount", args=[where(0, "IS", 1)])]}, "SCMP_CMP_IS' is no comparison"),
        ({"syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}, "NOTIFY is not supp"),
    ],
)
def test_a_wrong_profile_is_refused_by_the_fields_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        compile_profile(profile(allow("read")) | changes, "x86_64")


def test_a_profile_that_is_too_long_is_refused() -> None:
    conditions = [where(0, "EQ", value << 32 | value) for value in range(900)]
    with pytest.raises(SpecError, match="too long: it makes 4"):
        compile_profile(profile(allow("clone", args=conditions)), "x86_64")


def test_another_machine_is_refused() -> None:
    with pytest.raises(SpecError, match="not supported on riscv64"):
        compile_profile(profile(allow("read")), "riscv64")


def test_speculation_stays_allowed_unless_flags_are_given() -> None:
    made = profile(allow("read"))
    assert compile_profile(made, "x86_64").flags == 4
    assert compile_profile(made | {"flags": []}, "x86_64").flags == 0
    log = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]
    assert compile_profile(made | {"flags": log}, "x86_64").flags == 2


def test_a_profile_is_compiled_once() -> None:
    filters = Filters("x86_64")
    first = filters.get(profile(allow("read")))
    for name in ("write", "close", "stat"):
        filters.get(profile(allow(name)))
    assert filters.get(profile(allow("read"))) is first


def test_jumps_that_are_too_far_for_a_byte_go_through_another() -> None:
    calls = [
        allow(name, args=[where(0, "EQ", 1 << 33), where(1, "GE", 7)])
        for name in sorted(numbers("x86_64"))[::2]
    ]
    made = profile(*calls)
    for call in calls:
        assert verdict(made, call["names"][0], 1 << 33, 8) == ALLOW
        assert verdict(made, call["names"][0], 1 << 33, 6) == refused(1)
    assert verdict(made, sorted(numbers("x86_64"))[1], 1 << 33, 8) == refused(1)


# Random profiles against their plain reading.

NAMES = ["read", "write", "open", "close", "mount", "clone", "ioctl", "statx", "ptrace", "socket",
         "chown32", "openat2", "breakpoint", "riscv_flush_icache"]  # fmt: skip
VALUES = st.sampled_from([0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1])
ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": refused(1), "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS, "SCMP_ACT_TRAP": TRAP, "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_TRACE": traced(1),
}  # fmt: skip
conditions = st.builds(
    where, st.integers(0, 5), st.sampled_from([*OPERATORS, "MASKED_EQ"]), VALUES, VALUES
)
calls = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
        "action": st.sampled_from(list(ACTIONS)),
        "args": st.lists(conditions, max_size=3),
    }
)
profiles = st.fixed_dictionaries(
    {"defaultAction": st.sampled_from(list(ACTIONS)), "syscalls": st.lists(calls, max_size=12)}
)


def holds(condition: dict[str, Any], arguments: list[int], wide: bool) -> bool:
    cut = 2**64 - 1 if wide else 2**32 - 1
    argument, value = arguments[condition["index"]] & cut, condition["value"] & cut
    name = condition["op"].removeprefix("SCMP_CMP_")
    if name == "MASKED_EQ":
        return bool(argument & value == condition["valueTwo"] & cut)
    return OPERATORS[name](argument, value)


def matches(call: dict[str, Any], arguments: list[int], wide: bool) -> bool:
    results = [holds(condition, arguments, wide) for condition in call["args"]]
    indexes = [condition["index"] for condition in call["args"]]
    return all(results) if len(set(indexes)) == len(indexes) else any(results)


def plainly(
    made: dict[str, Any], table: Mapping[str, int], number: int, arguments: list[int], wide: bool
) -> int:
    default = ACTIONS[made["defaultAction"]]
    names = {name for name, value in table.items() if value == number}
    named = [table[name] for call in made["syscalls"] for name in call["names"] if name in table]
    passing = default in (ALLOW, LOG, traced(1))
    if named and number > max(named) and not passing:
        return ENOSYS
    found = [
        call
        for call in made["syscalls"]
        if names & set(call["names"]) and ACTIONS[call["action"]] != default
    ]
    for call in [call for call in found if not call["args"]] or found:
        if not call["args"] or matches(call, arguments, wide):
            return ACTIONS[call["action"]]
    return default


SPACES = [
    ("x86_64", "x86_64", X86_64, 0), ("x86_64", "x86", X86, 0), ("x86_64", "x32", X86_64, X32_BIT),
    ("aarch64", "aarch64", AARCH64, 0), ("aarch64", "arm", ARM, 0),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    made=profiles,
    space=st.sampled_from(SPACES),
    name=st.sampled_from(NAMES),
    other=st.one_of(st.none(), st.integers(0, 500)),
    arguments=st.lists(VALUES, min_size=6, max_size=6),
)
def test_a_program_decides_as_a_plain_reading_of_its_profile(
    made: dict[str, Any],
    space: tuple[str, str, int, int],
    name: str,
    other: int | None,
    arguments: list[int],
) -> None:
    machine, architecture, audit, base = space
    every = ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"]
    program = compile_profile(made | {"architectures": every}, machine).program
    bpf_interpreter.check(program)
    table = numbers(architecture)
    number = table.get(name, 0) if other is None else other
    outcome = bpf_interpreter.run(program, audit, base + number, arguments)
    wide = architecture in ("x86_64", "aarch64")
    assert outcome.verdict == plainly(made, table, number, arguments, wide)


# The step.

SETS = CapabilitySets(mask_of(["CAP_KILL"]), mask_of(["CAP_KILL"]), 0, mask_of(["CAP_KILL"]))
ADMIN = mask_of(["CAP_SYS_ADMIN"])


def test_the_filter_is_installed_with_a_borrowed_right_that_is_given_back() -> None:
    kernel = RecordingKernel()
    made = compile_profile(profile(allow("read")), "x86_64")
    kept = kept_capabilities(made, no_new_privileges=False)
    steps = [SetCapabilities(SETS, kept), InstallFilter(made, SETS, no_new_privileges=False)]
    run(steps, kernel, State())
    calls = [call[:4] for call in kernel.calls if call[0] in ("capset", "seccomp")]
    kill = SETS.effective
    assert calls[0] == ("capset", kill, kill | ADMIN, 0)
    assert calls[1] == ("capset", kill | ADMIN, kill | ADMIN, 0)
    assert calls[2][:3] == ("seccomp", 1, 4)
    assert calls[3] == ("capset", kill, kill, 0)


def test_with_no_new_privileges_no_right_is_needed() -> None:
    kernel = RecordingKernel()
    made = compile_profile(profile(allow("read")), "x86_64")
    assert kept_capabilities(made, no_new_privileges=True) == 0
    run([InstallFilter(made, SETS, no_new_privileges=True)], kernel, State())
    assert kernel.names() == ["seccomp"]


# The numbers.


def test_well_known_numbers() -> None:
    assert numbers("x86_64")["execve"] == 59
    assert numbers("aarch64")["execve"] == 221
    assert numbers("x86")["execve"] == 11
    assert numbers("x32")["execve"] == 520
    assert numbers("arm")["set_tls"] == 0xF0005
    assert {numbers(name)["clone3"] for name in ARCHITECTURES} == {435}
    assert {numbers(name)["mseal"] for name in ARCHITECTURES} == {462}


@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp")
def test_numbers_are_those_of_libseccomp() -> None:
    library = ctypes.CDLL(ctypes.util.find_library("seccomp"))
    tokens = {"x86_64": X86_64, "aarch64": AARCH64, "x86": X86, "arm": ARM}
    for architecture, token in tokens.items():
        for name in sorted(known_names()):
            theirs = library.seccomp_syscall_resolve_name_arch(token, name.encode())
            ours = numbers(architecture).get(name)
            if theirs >= 0 and ours is not None:  # negative: it does not have or know the call
                assert ours == theirs, (architecture, name)
            elif theirs >= 0:
                pytest.fail(f"{architecture} lacks {name}, which is {theirs}")


# The plan.


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_nothing_but_the_exec_comes_after_the_filter(no_new_privileges: bool) -> None:
    process = parse_process({"args": ["true"], "noNewPrivileges": no_new_privileges})
    made = compile_profile(profile(allow("read")), "x86_64")
    plan = exec_plan(process, Options(None), 3, Layout(), seccomp=made)
    assert isinstance(plan.inside[-1], Execute)
    assert isinstance(plan.inside[-2], InstallFilter)
    assert isinstance(plan.inside[-3], CloseOnExec)  # a filter may refuse close_range
    assert any(isinstance(step, NoNewPrivileges) for step in plan.inside) is no_new_privileges
    (sets,) = (step for step in plan.inside if isinstance(step, SetCapabilities))
    assert sets.kept == (0 if no_new_privileges else ADMIN)
