"""Seccomp profiles in Docker's format, and the default one; rendered for a container into OCI's.

Docker's format is OCI's `linux.seccomp` with conditions: a rule may ask for or exclude capabilities
(of the bounding set), architectures (amd64, x32, x86, arm64, arm, …) and a least kernel; `archMap`
takes the place of `architectures`. Pure. What only the guest knows (whether a system call of that
name exists) is checked there.

The default is the reference engine's of release 28.2 (moby: profiles/seccomp/default.json), for the
architectures that a machine can have. One thing is narrower: sockets of AF_ALG, the kernel's
cryptography, are refused beside those of AF_VSOCK, as later releases do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from wherry.engine.model import Json
from wherry.errors import InvalidInput

UNCONFINED: Final = "unconfined"
BUILTIN: Final = "builtin"

_ENOSYS: Final = 38
_ALLOW: Final = "SCMP_ACT_ALLOW"

_NAMESPACE_FLAGS: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (uapi/linux/sched.h)."""

_AF_ALG, _AF_VSOCK = 38, 40  # linux/socket.h

_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, each with UNAME26, and "which one?" (uapi/linux/personality.h)."""

_EVERYBODYS: Final = (
    "_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset "
    "chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 "
    "clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range "
    "connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl "
    "epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve "
    "execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark "
    "fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr "
    "flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync "
    "ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake "
    "futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid "
    "getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername "
    "getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid "
    "getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid "
    "getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch "
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit "
    "ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset "
    "landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr "
    "listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack "
    "membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 "
    "mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive "
    "mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget "
    "msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open "
    "openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free "
    "pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 "
    "process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink "
    "readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr "
    "removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq "
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend "
    "rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max "
    "sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler "
    "sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr "
    "sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop "
    "semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list "
    "set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 "
    "setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid "
    "setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid "
    "setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd "
    "signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 "
    "statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time "
    "timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime "
    "timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime "
    "timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat "
    "uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write "
    "writev"
)

_WITH_CAPABILITY: Final[Mapping[str, str]] = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie "
        "lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount "
        "open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog "
        "umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": (
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"
    ),
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_OF_ARCHITECTURES: Final[Mapping[tuple[str, ...], str]] = {
    ("arm", "arm64"): (
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
    ),
    ("amd64", "x32"): "arch_prctl",
    ("amd64", "x32", "x86"): "modify_ldt",
}

_SCMP: Final = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}
_NATIVE: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """The machine that a profile is rendered for: uname's machine and release ("": the newest)."""

    machine: str
    release: str = ""


def check_profile(text: str) -> None:
    """Raises InvalidInput when `text` (unconfined, builtin or a profile's JSON) is none."""
    if text not in (UNCONFINED, BUILTIN):
        for machine in ("x86_64", "aarch64"):
            render(_parsed(text), (), Kernel(machine))


def container_seccomp(
    text: str, privileged: bool, capabilities: Collection[str], kernel: Kernel
) -> Json | None:
    """A container's `linux.seccomp`; None: unconfined.

    Args:
        text: what SecurityOpt says: unconfined, builtin, a profile's JSON, "" for nothing.
    """
    if text == UNCONFINED or (privileged and not text):
        return None
    if text in ("", BUILTIN):
        return _default(frozenset(capabilities), kernel)
    return render(_parsed(text), capabilities, kernel)


def default_profile() -> Json:
    """The default in Docker's format."""
    calls: list[Json] = [{"names": _EVERYBODYS.split(), "action": _ALLOW}]
    tracing = ["process_vm_readv", "process_vm_writev", "ptrace"]
    calls.append({"names": tracing, "action": _ALLOW, "includes": {"minKernel": "4.8"}})
    for op, family in (("LT", _AF_ALG), ("EQ", _AF_ALG + 1), ("GT", _AF_VSOCK)):
        calls.append(_with_argument("socket", op, family))
    calls += [_with_argument("personality", "EQ", value) for value in _PERSONALITIES]
    for architectures, names in _OF_ARCHITECTURES.items():
        condition = {"arches": list(architectures)}
        calls.append({"names": names.split(), "action": _ALLOW, "includes": condition})
    for capability, names in _WITH_CAPABILITY.items():
        condition = {"caps": [capability]}
        calls.append({"names": names.split(), "action": _ALLOW, "includes": condition})
    without: Json = {"excludes": {"caps": ["CAP_SYS_ADMIN"]}}
    calls.append(_with_argument("clone", "MASKED_EQ", _NAMESPACE_FLAGS) | without)
    # its flags are behind a pointer, which no filter can follow: a libc then takes clone
    hidden: Json = {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS}
    calls.append(hidden | without)
    sub = {"SCMP_ARCH_X86_64": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
           "SCMP_ARCH_AARCH64": ["SCMP_ARCH_ARM"]}  # fmt: skip
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [{"architecture": k, "subArchitectures": v} for k, v in sub.items()],
        "syscalls": calls,
    }


def render(
    profile: Mapping[str, Any], capabilities: Collection[str], kernel: Kernel
) -> Json | None:
    """A profile in Docker's format as OCI's, for these capabilities and this machine.

    None: the profile is empty, which means unconfined. Raises InvalidInput for a wrong profile.
    """
    if not profile.get("defaultAction") and not profile.get("syscalls"):
        return None
    native = _NATIVE.get(kernel.machine, kernel.machine)
    architectures = list(_list(profile, "architectures", str))
    if mapped := _list(profile, "archMap", dict):
        if architectures:
            raise _wrong("has both architectures and archMap, and only one can hold")
        for entry in mapped:
            if entry.get("architecture") == _SCMP.get(native):
                architectures = [entry["architecture"], *_list(entry, "subArchitectures", str)]
    calls = []
    for call in _list(profile, "syscalls", dict):
        if _applies(call, capabilities, native, kernel.release):
            calls.append(_oci_call(call))
    kept = {"defaultAction", "defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"}
    fields = {name: value for name, value in profile.items() if name in kept and value is not None}
    return {**fields, "architectures": architectures, "syscalls": calls}


@lru_cache(maxsize=32)
def _default(capabilities: frozenset[str], kernel: Kernel) -> Json | None:
    return render(default_profile(), capabilities, kernel)


def _with_argument(name: str, op: str, value: int) -> Json:
    """`name` with its first argument so; of MASKED_EQ: none of `value`'s bits."""
    argument = {"index": 0, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": 0}
    return {"names": [name], "action": _ALLOW, "args": [argument]}


def _parsed(text: str) -> Json:
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"Decoding seccomp profile failed: {error}") from error
    if not isinstance(profile, dict):
        raise _wrong("is not a JSON object")
    return profile


def _oci_call(call: Mapping[str, Any]) -> Json:
    names = list(_list(call, "names", str))
    if name := call.get("name"):
        if names:
            raise _wrong("has a rule with both name and names, and only one can hold")
        names = [name]
    arguments = list(_list(call, "args", dict))
    result: Json = {"names": names, "action": call.get("action"), "args": arguments}
    if call.get("errnoRet") is not None:
        result["errnoRet"] = call["errnoRet"]
    return result


def _applies(call: Mapping[str, Any], held: Collection[str], native: str, release: str) -> bool:
    includes, excludes = (call.get(name) or {} for name in ("includes", "excludes"))
    if not (isinstance(includes, dict) and isinstance(excludes, dict)):
        raise _wrong("has a rule whose includes or excludes are not an object")
    if native in _list(excludes, "arches", str):
        return False
    if any(name in held for name in _list(excludes, "caps", str)):
        return False
    if excludes.get("minKernel") and _at_least(release, excludes["minKernel"]):
        return False
    arches = _list(includes, "arches", str)
    if arches and native not in arches:
        return False
    if not all(name in held for name in _list(includes, "caps", str)):
        return False
    return not includes.get("minKernel") or _at_least(release, includes["minKernel"])


def _at_least(release: str, least: Any) -> bool:
    wanted = re.fullmatch(r"(\d+)\.(\d+)", least) if isinstance(least, str) else None
    if wanted is None:
        raise _wrong(f'has the minKernel {least!r}, which is not as in "4.8"')
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return True
    return tuple(map(int, found.groups())) >= tuple(map(int, wanted.groups()))


def _list(fields: Mapping[str, Any], name: str, kind: type) -> Sequence[Any]:
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        what = "strings" if kind is str else "objects"
        raise _wrong(f"has {name} that are not a list of {what}")
    return value


def _wrong(what: str) -> InvalidInput:
    return InvalidInput(f"Decoding seccomp profile failed: it {what}")
