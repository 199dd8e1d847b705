"""Docker's seccomp profiles: the default one, and a client's own, as the guest gets them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import bpf_interpreter
import pytest

from wherry.cli.isolation import IsolationFlags
from wherry.engine.seccomp_profile import (
    Kernel,
    check_profile,
    container_seccomp,
    default_profile,
    render,
)
from wherry.engine.security import check_security, seccomp_option
from wherry.engine.spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from wherry.errors import InvalidInput
from wherry_guest.core.seccomp import compile_profile
from wherry_guest.core.syscall_numbers import known_names, numbers

PC, ARM = Kernel("x86_64", "6.12.1"), Kernel("aarch64", "6.12.1")
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def outcome(
    name: str,
    *arguments: int,
    held: Collection[str] = DEFAULT_CAPABILITIES,
    kernel: Kernel = PC,
    text: str = "",
) -> bpf_interpreter.Outcome:
    made = container_seccomp(text, False, held, kernel)
    assert made is not None
    program = compile_profile(made, kernel.machine).program
    bpf_interpreter.check(program)
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    number = numbers(kernel.machine)[name]
    return bpf_interpreter.run(program, AUDIT[kernel.machine], number, padded)


def verdict(name: str, *arguments: int, **options: Any) -> int:
    return outcome(name, *arguments, **options).verdict


@pytest.mark.parametrize("kernel", [PC, ARM])
@pytest.mark.parametrize(
    "name",
    ["mount", "umount2", "unshare", "setns", "bpf", "keyctl", "add_key", "request_key", "reboot",
     "init_module", "finit_module", "kexec_load", "kexec_file_load", "open_by_handle_at", "acct",
     "swapon", "pivot_root", "perf_event_open", "userfaultfd", "io_uring_setup", "quotactl",
     "settimeofday", "clock_settime", "move_pages", "fsopen", "open_tree", "move_mount",
     "pidfd_getfd", "process_madvise", "syslog", "vhangup", "nfsservctl"],
)  # fmt: skip
def test_by_default_refused(name: str, kernel: Kernel) -> None:
    if name in numbers(kernel.machine):
        assert verdict(name, kernel=kernel) == EPERM


@pytest.mark.parametrize("kernel", [PC, ARM])
@pytest.mark.parametrize(
    "name",
    ["read", "execve", "chroot", "ptrace", "mknodat", "seccomp", "prctl", "statx", "futex_wait",
     "close_range", "openat2", "memfd_create", "clock_gettime", "setxattrat",
     "capset", "listmount"],
)  # fmt: skip
def test_by_default_allowed(name: str, kernel: Kernel) -> None:
    assert verdict(name, kernel=kernel) == ALLOW


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("CAP_SYS_ADMIN", ["mount", "unshare", "setns", "bpf", "clone3", "fsopen", "quotactl"]),
        ("CAP_SYS_PTRACE", ["kcmp", "pidfd_getfd", "process_madvise"]),
        ("CAP_SYS_MODULE", ["init_module", "finit_module", "delete_module"]),
        ("CAP_SYS_BOOT", ["reboot"]),
        ("CAP_SYS_TIME", ["settimeofday", "clock_settime"]),
        ("CAP_DAC_READ_SEARCH", ["open_by_handle_at"]),
        ("CAP_SYSLOG", ["syslog"]),
        ("CAP_BPF", ["bpf"]),
        ("CAP_PERFMON", ["perf_event_open"]),
        ("CAP_SYS_NICE", ["mbind", "set_mempolicy"]),
    ],
)
def test_a_capability_opens_its_calls(capability: str, names: list[str]) -> None:
    for name in names:
        assert verdict(name) in (EPERM, ENOSYS)
        assert verdict(name, held={*DEFAULT_CAPABILITIES, capability}) == ALLOW


def test_chroot_goes_with_its_capability() -> None:
    assert verdict("chroot", held=set(DEFAULT_CAPABILITIES) - {"CAP_SYS_CHROOT"}) == EPERM


def test_clone_makes_processes_but_no_namespaces() -> None:
    assert verdict("clone", 0x11) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict("clone", flag | 0x11) == EPERM
        assert verdict("clone", flag, held=ALL_CAPABILITIES) == ALLOW
    assert verdict("clone3") == ENOSYS


def test_sockets_of_all_families_but_two() -> None:
    assert {family for family in range(50) if verdict("socket", family) != ALLOW} == {38, 40}


def test_personalities() -> None:
    allowed = [0, 8, 0x20000, 0x20008, 0xFFFFFFFF]
    assert all(verdict("personality", value) == ALLOW for value in allowed)
    assert verdict("personality", 0x0040000) == EPERM  # ADDR_NO_RANDOMIZE


def test_architectures_own_calls() -> None:
    assert verdict("arch_prctl") == ALLOW
    assert verdict("modify_ldt") == ALLOW
    made = container_seccomp("", False, DEFAULT_CAPABILITIES, ARM)
    assert made is not None
    assert made["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    program = compile_profile(made, "aarch64").program
    assert bpf_interpreter.run(program, 0x40000028, 0xF0005).verdict == ALLOW  # set_tls


def test_every_name_of_the_default_profile_exists() -> None:
    named = {name for call in default_profile()["syscalls"] for name in call["names"]}
    assert named <= known_names()


def test_the_default_program_is_quick_to_walk() -> None:
    steps = [outcome(name).steps for name in numbers("x86_64")]
    assert max(steps) <= 18 and sum(steps) / len(steps) < 12
    program = compile_profile(
        container_seccomp("", False, DEFAULT_CAPABILITIES, PC) or {}, "x86_64"
    ).program
    assert len(program) // 8 < 700


def test_a_kernel_can_cache_what_is_allowed_without_a_look_at_arguments() -> None:
    looking = {name for name in numbers("x86_64") if outcome(name).looked_at_arguments}
    assert looking == {"clone", "socket", "personality"}


def test_unconfined_and_privileged_have_no_filter() -> None:
    assert container_seccomp("unconfined", False, (), PC) is None
    assert container_seccomp("", True, ALL_CAPABILITIES, PC) is None
    assert container_seccomp("builtin", True, ALL_CAPABILITIES, PC) is not None


def test_the_default_is_rendered_once_per_set_of_capabilities() -> None:
    first = container_seccomp("", False, list(DEFAULT_CAPABILITIES), PC)
    assert container_seccomp("builtin", False, DEFAULT_CAPABILITIES, PC) is first


OWN = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [
        {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "comment": "why",
         "args": None},
        {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}},
        {"names": ["unlink"], "action": "SCMP_ACT_ERRNO", "excludes": {"arches": ["amd64"]}},
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "excludes": {"minKernel": "6.1"}},
        {"names": ["chown"], "action": "SCMP_ACT_KILL_PROCESS",
         "includes": {"caps": ["CAP_CHOWN"], "arches": ["amd64"], "minKernel": "4.8"}},
    ],
}  # fmt: skip


def test_conditions_of_a_profile() -> None:
    text = json.dumps(OWN)
    assert verdict("mkdir", text=text) == 0x00050063
    for name in ("rmdir", "unlink", "chmod"):
        assert verdict(name, text=text) == ALLOW
    assert verdict("chown", text=text) == 0x80000000
    assert verdict("chown", text=text, held=()) == ALLOW


def test_an_empty_profile_is_none() -> None:
    assert render({}, (), PC) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Decoding seccomp profile failed: "),
        ("[]", "it is not a JSON object"),
        ('{"defaultAction": "x", "syscalls": [1]}', "syscalls that are not a list of objects"),
        ('{"defaultAction": "x", "syscalls": [{"names": "x"}]}', "names that are not a list"),
        ('{"defaultAction": "x", "syscalls": [{"names": ["x"], "name": "y"}]}', "both name and"),
        ('{"defaultAction": "x", "architectures": ["x"], "archMap": [{}]}', "both architectures"),
        ('{"defaultAction": "x", "syscalls": [{"includes": {"minKernel": "x"}}]}', "minKernel 'x'"),
        ('{"defaultAction": "x", "syscalls": [{"includes": []}], "archMap": {}}', "archMap that"),
    ],
)
def test_a_wrong_profile_is_refused_at_create(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_security({"SecurityOpt": [f"seccomp={text}"]})


def test_the_last_of_several_options_holds() -> None:
    assert seccomp_option({"SecurityOpt": ["seccomp=unconfined", "seccomp:builtin"]}) == "builtin"
    assert seccomp_option({"SecurityOpt": ['seccomp={"a": "b=c"}']}) == '{"a": "b=c"}'
    assert seccomp_option({}) == ""
    check_profile("unconfined")


def test_the_command_line_sends_a_profiles_text(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(OWN, indent=4))
    flags = IsolationFlags(security_opt=(f"seccomp={file}", "no-new-privileges"))
    sent = flags.host_config()["SecurityOpt"]
    assert json.loads(sent[0].removeprefix("seccomp=")) == OWN
    assert sent[1:] == ["no-new-privileges"]
    words = IsolationFlags(security_opt=("seccomp=unconfined", "seccomp=builtin"))
    assert words.host_config()["SecurityOpt"] == ["seccomp=unconfined", "seccomp=builtin"]


def test_a_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    flags = IsolationFlags(security_opt=(f"seccomp={tmp_path / 'none.json'}",))
    with pytest.raises(InvalidInput, match=r"opening seccomp profile \(.*none.json\) failed"):
        flags.host_config()
    (tmp_path / "bad.json").write_text("{")
    flags = IsolationFlags(security_opt=(f"seccomp={tmp_path / 'bad.json'}",))
    with pytest.raises(InvalidInput, match="is not JSON"):
        flags.host_config()
