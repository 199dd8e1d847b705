"""Seccomp on a real kernel: the same profiles decide alike with us, crun and runc."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any

import pytest
from containers_harness import DEFAULT_CAPABILITIES, Machine
from oci_harness import Host, Runtime, find_runtime
from syscall_program import HERE, syscall_program

from wherry.engine.seccomp_profile import Kernel, container_seccomp

pytestmark = pytest.mark.guest

DEFAULT = container_seccomp("", False, DEFAULT_CAPABILITIES, Kernel(HERE, "6.1"))
ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}

PROBES = {
    # bad arguments throughout: what the kernel says to them differs from the filter's EPERM
    "mount": syscall_program("mount", 0, 0, 0, 0, 0),
    "unshare-nothing": syscall_program("unshare", 0),
    "setns": syscall_program("setns", -1, 0),
    "keyctl": syscall_program("keyctl", 9999),
    "add_key": syscall_program("add_key", 0, 0, 0, 0, 0),
    "bpf": syscall_program("bpf", 9999, 0, 0),
    "kexec_load": syscall_program("kexec_load", 0, 9999, 0, 0),
    "finit_module": syscall_program("finit_module", -1, 0, 0),
    "open_by_handle_at": syscall_program("open_by_handle_at", -1, 0, 0),
    "userfaultfd": syscall_program("userfaultfd", -1),
    "io_uring_setup": syscall_program("io_uring_setup", 0, 0),
    "clone3": syscall_program("clone3", 0, 0),
    "clone-namespace": syscall_program("clone", 0x10000000 | 0x200, 0, 0, 0, 0),
    "clone-invalid": syscall_program("clone", 0x10000, 0, 0, 0, 0),
    "socket-vsock": syscall_program("socket", 40, 9999, 0),
    "socket-alg": syscall_program("socket", 38, 9999, 0),
    "socket-inet": syscall_program("socket", 2, 9999, 0),
    "socket-high-word": syscall_program("socket", 1 << 32 | 40, 9999, 0),
    "personality-query": syscall_program("personality", 0xFFFFFFFF),
    "personality-forbidden": syscall_program("personality", 0x0040000),
    "personality-wide": syscall_program("personality", 1 << 32),
    "ptrace": syscall_program("ptrace", 9999, 0, 0, 0),
    "acct": syscall_program("acct", b"/no\0"),
    "reboot": syscall_program("reboot", 0, 0, 0, 0),
    "getpid": syscall_program("getpid"),
    "close": syscall_program("close", 999),
    "futex_wait": syscall_program("futex_wait", 0, 0, 0, 0, 0, 0),
}
if HERE == "x86_64":
    PROBES["x32-getpid"] = syscall_program(0x40000000 | 39)


@pytest.fixture(scope="module")
def probes(oci_host: Host) -> Path:
    directory = oci_host.rootfs / "probes"
    directory.mkdir()
    for name, program in PROBES.items():
        (directory / name).write_bytes(program)
        (directory / name).chmod(0o755)
    return directory


def verdicts(runtime: Runtime, profile: dict[str, Any] | None) -> dict[str, int]:
    """Every probe's exit code, run in one container."""
    script = 'for p in /probes/*; do $p; echo "${p##*/} $?"; done'
    spec = runtime.spec("sh", "-c", script)
    if profile is not None:
        spec["linux"]["seccomp"] = profile
    rows = [line.split() for line in runtime.lines(spec) if not line.startswith("Bad system")]
    return {name: int(code) for name, code in rows}


OTHER_PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ARCHITECTURES[HERE],
    "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
        {"names": ["acct"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["reboot"], "action": "SCMP_ACT_TRAP"},
        {"names": ["ptrace"], "action": "SCMP_ACT_LOG"},
        {"names": ["bpf"], "action": "SCMP_ACT_TRACE"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78,
         "args": [{"index": 0, "op": "SCMP_CMP_GT", "value": 2**32},
                  {"index": 1, "op": "SCMP_CMP_LE", "value": 9999}]},
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 79,
         "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 2**32},
                  {"index": 0, "op": "SCMP_CMP_EQ", "value": 0x40000}]},
        {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 80,
         "args": [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x10000000,
                   "valueTwo": 0x10000000}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("reference", ["crun", "runc"])
@pytest.mark.parametrize("profile", [DEFAULT, OTHER_PROFILE, None])
def test_verdicts_are_the_references(
    oci_host: Host, probes: Path, reference: str, profile: dict[str, Any] | None
) -> None:
    found = {}
    for name in ("wherry", reference):
        runtime = find_runtime(name, oci_host)
        found[name] = verdicts(runtime, profile)
        runtime.clean()
    assert found["wherry"].keys() == PROBES.keys()
    different = {
        name: (found["wherry"][name], found[reference].get(name))
        for name in PROBES
        if found["wherry"][name] != found[reference].get(name)
    }
    newer_than_the_library = {"futex_wait"}
    assert different.keys() <= newer_than_the_library, different


def test_default_verdicts(oci_host: Host, probes: Path, wherry_oci: Runtime) -> None:
    found = verdicts(wherry_oci, DEFAULT)
    refused = ["mount", "keyctl", "bpf", "finit_module", "socket-vsock", "socket-alg", "acct",
               "clone-namespace", "personality-forbidden", "personality-wide"]  # fmt: skip
    assert {found[name] for name in refused} == {errno.EPERM}
    assert found["clone3"] == errno.ENOSYS
    assert found["close"] == errno.EBADF


def test_an_exec_has_the_containers_filter(wherry_oci: Runtime) -> None:
    spec = wherry_oci.spec("sleep", "100")
    spec["linux"]["seccomp"] = DEFAULT
    id = wherry_oci.start(spec)
    text = wherry_oci.ok("exec", id, "grep", "Seccomp:", "/proc/self/status")
    assert text.split() == ["Seccomp:", "2"]


def status_of(machine: Machine, profile: dict[str, Any], **process: Any) -> dict[str, str]:
    spec = machine.spec("cat", "/proc/self/status", **process)
    spec["linux"]["seccomp"] = profile
    result = machine.run_spec(spec)
    assert result.exit_code == 0, result
    rows = (line.partition(":") for line in result.stdout.splitlines())
    return {name: value.strip() for name, _, value in rows}


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_the_right_that_the_filter_needs_is_gone(machine: Machine, no_new_privileges: bool) -> None:
    assert DEFAULT is not None
    status = status_of(machine, DEFAULT, noNewPrivileges=no_new_privileges)
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == str(int(no_new_privileges))
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert not int(status[name], 16) >> 21 & 1, name  # CAP_SYS_ADMIN


def test_a_user_without_rights_gets_the_filter_too(machine: Machine) -> None:
    assert DEFAULT is not None
    status = status_of(
        machine, DEFAULT, user={"uid": 1000, "gid": 1000},
        capabilities={"bounding": DEFAULT_CAPABILITIES},
    )  # fmt: skip
    assert (status["Seccomp"], int(status["CapPrm"], 16)) == ("2", 0)


def test_ambient_rights_survive_the_filter(machine: Machine) -> None:
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    sets = {kind: ["CAP_KILL"] for kind in kinds}
    assert DEFAULT is not None
    status = status_of(machine, DEFAULT, user={"uid": 1000, "gid": 1000}, capabilities=sets)
    assert [int(status[name], 16) for name in ("CapPrm", "CapAmb")] == [1 << 5, 1 << 5]


def test_a_profile_need_only_allow_the_exec_and_what_comes_after(machine: Machine) -> None:
    """Setting up is not filtered: neither close_range nor what a Python makes of it."""
    names = ["execve", "capset", "exit_group", "write", "brk", "arch_prctl", "set_tid_address",
             "set_robust_list", "rseq", "prlimit64", "readlink", "getrandom", "mprotect", "uname",
             "getuid", "setuid", "getgid", "setgid", "geteuid", "getegid", "mmap", "munmap",
             "prctl", "fstat", "newfstatat", "readlinkat"]  # fmt: skip
    spec = machine.spec("echo", "out")
    call = {"names": names, "action": "SCMP_ACT_ALLOW"}
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [call]}
    result = machine.run_spec(spec)
    assert (result.exit_code, result.stdout) == (0, "out\n"), result


def test_a_refused_exec_kills(machine: Machine) -> None:
    spec = machine.spec("true")
    call = {"names": ["execve"], "action": "SCMP_ACT_KILL_PROCESS"}
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]}
    assert machine.run_spec(spec).exit_code == -signal.SIGSYS
