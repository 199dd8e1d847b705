"""Ways out of a container, tried: none works by default, and each is shown to be an attack at all.

Every claim has two halves: by default it fails, with the errno that it is expected to fail with;
with the rights that would be needed (mostly --privileged) the same attack succeeds, or at least
gets as far as the part of the kernel that it aims at.
"""

from __future__ import annotations

import errno
import json
import platform
import struct
from pathlib import Path

import pytest
from harness import Wherry
from syscall_program import syscall_program

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacks are x86-64 programs"),
]

BUSYBOX = "localhost/busybox"
PRIVILEGED = ("--privileged",)
UNCONFINED = ("--security-opt", "seccomp=unconfined")
EPERM, ENOSYS = errno.EPERM, errno.ENOSYS
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
SIGCHLD = 17
AF_PACKET, AF_ALG, AF_VSOCK = 17, 38, 40
SOCK_STREAM, SOCK_RAW, SOCK_SEQPACKET = 1, 3, 5


@pytest.fixture(scope="module", autouse=True)
def running(wherry: Wherry) -> None:
    """The machine is up: what an attack says is all that is said."""
    wherry.out("run", "--rm", BUSYBOX, "true", timeout=300)


def attempt(wherry: Wherry, program: bytes, *options: str) -> int:
    """The errno that a program's system call ends with in a container, 0 for success."""
    script = "cat > /tmp/x; chmod 755 /tmp/x; exec /tmp/x"
    done = wherry.run("run", "--rm", "-i", *options, BUSYBOX, "sh", "-c", script, input=program)
    assert done.stderr == b"", done.stderr
    return done.returncode


def shell(wherry: Wherry, script: str, *options: str) -> tuple[int, str]:
    """Exit code and all output of a script."""
    done = wherry.run("run", "--rm", *options, BUSYBOX, "sh", "-c", f"exec 2>&1\n{script}")
    return done.returncode, done.stdout.decode(errors="replace")


MAP = struct.pack("<IIII", 2, 4, 4, 1) + bytes(112)  # BPF_MAP_CREATE: an array of one word

CALLS = [
    # what it is, the program, by default, with these options, ends with
    ("mount a tmpfs over /tmp", syscall_program(165, b"x\0", b"/tmp\0", b"tmpfs\0", 0, 0), EPERM,
     PRIVILEGED, 0),
    ("fsopen", syscall_program(430, b"tmpfs\0", 0), EPERM, PRIVILEGED, 0),
    ("open_tree", syscall_program(428, -100, b"/\0", 1), EPERM, PRIVILEGED, 0),
    ("unshare mounts", syscall_program(272, CLONE_NEWNS), EPERM, PRIVILEGED, 0),
    ("unshare users", syscall_program(272, CLONE_NEWUSER), EPERM, UNCONFINED, 0),
    ("clone into user and network namespaces",
     syscall_program(56, CLONE_NEWUSER | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0), EPERM,
     UNCONFINED, 0),
    ("clone3", syscall_program(435, struct.pack("<11Q", *(0,) * 4, SIGCHLD, *(0,) * 6), 88),
     ENOSYS, UNCONFINED, 0),
    ("setns to its own mounts", syscall_program(308, 0, 0), EPERM, PRIVILEGED, errno.EINVAL),
    ("pivot_root", syscall_program(155, b"/\0", b"/\0"), EPERM, PRIVILEGED, errno.EBUSY),
    ("add_key", syscall_program(248, b"user\0", b"k\0", b"v", 1, -3), EPERM, UNCONFINED, 0),
    ("keyctl: the session keyring's id", syscall_program(250, 0, -3, 0), EPERM, UNCONFINED, 0),
    ("request_key", syscall_program(249, b"user\0", b"no\0", 0, 0), EPERM,
     UNCONFINED, errno.ENOKEY),
    ("bpf: make a map", syscall_program(321, 0, MAP, 64), EPERM, PRIVILEGED, 0),
    ("perf_event_open", syscall_program(298, 0, 0, -1, -1, 0), EPERM, PRIVILEGED, errno.EFAULT),
    ("kexec_load: forget the loaded kernel", syscall_program(246, 0, 0, 0, 0), EPERM,
     PRIVILEGED, 0),
    ("kexec_file_load", syscall_program(320, -1, -1, 0, b"\0", 0), EPERM,
     PRIVILEGED, errno.EBADF),
    ("finit_module", syscall_program(313, -1, b"\0", 0), EPERM, PRIVILEGED, errno.EBADF),
    ("init_module", syscall_program(175, b"\x7fELF", 4, b"\0"), EPERM,
     PRIVILEGED, errno.ENOEXEC),
    ("delete_module", syscall_program(176, b"no_such_module\0", 0), EPERM,
     PRIVILEGED, errno.ENOENT),
    ("open_by_handle_at", syscall_program(304, -1, bytes(8) + bytes(64), 0), EPERM,
     ("--cap-add", "DAC_READ_SEARCH"), errno.EBADF),
    ("userfaultfd", syscall_program(323, 0), EPERM, PRIVILEGED, 0),
    ("io_uring_setup", syscall_program(425, 1, bytes(120)), EPERM, PRIVILEGED, 0),
    ("swapon", syscall_program(167, b"/no\0", 0), EPERM, PRIVILEGED, errno.ENOENT),
    ("acct", syscall_program(163, b"/no\0"), EPERM, PRIVILEGED, errno.ENOENT),
    ("iopl: the machine's I/O ports", syscall_program(172, 3), EPERM, PRIVILEGED, 0),
    ("syslog: the kernel's messages", syscall_program(103, 3, b"x" * 8, 8), EPERM, PRIVILEGED, 0),
    ("settimeofday", syscall_program(164, struct.pack("<QQ", 0, 2_000_000), 0), EPERM,
     PRIVILEGED, errno.EINVAL),
    ("sethostname of its own", syscall_program(170, b"evil", 4), EPERM, PRIVILEGED, 0),
    ("reboot with a wrong word", syscall_program(169, 0, 0, 0, 0), EPERM,
     PRIVILEGED, errno.EINVAL),
    ("quotactl", syscall_program(179, 0, 0, 0, 0), EPERM, PRIVILEGED, errno.ENODEV),
    ("AF_ALG socket", syscall_program(41, AF_ALG, SOCK_SEQPACKET, 0), EPERM,
     UNCONFINED, errno.EAFNOSUPPORT),
    ("AF_VSOCK socket: the hypervisor", syscall_program(41, AF_VSOCK, SOCK_STREAM, 0), EPERM,
     UNCONFINED, errno.EAFNOSUPPORT),
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "by_default", "options", "then"),
    [pytest.param(*rest, id=name) for name, *rest in CALLS],
)
def test_a_system_call_that_leads_out_is_refused(
    wherry: Wherry, program: bytes, by_default: int, options: tuple[str, ...], then: int
) -> None:
    assert attempt(wherry, program) == by_default
    assert attempt(wherry, program, *options) == then


FILES = [
    # what it is, a script, what it ends with by default; it succeeds with --privileged
    ("core_pattern: a program of the machine's at every crash",
     "p=/proc/sys/kernel/core_pattern; v=$(cat $p); echo $v > $p", "Read-only file system"),
    ("sysrq-trigger", "echo h > /proc/sysrq-trigger", "Read-only file system"),
    ("modprobe's path", "p=/proc/sys/kernel/modprobe; v=$(cat $p); echo $v > $p",
     "Read-only file system"),
    ("sysfs", "p=/sys/kernel/mm/ksm/sleep_millisecs; v=$(cat $p); echo $v > $p",
     "Read-only file system"),
    ("remount sysfs writable", "mount -o remount,rw /sys", "permission denied"),
    ("remount /proc/sys writable", "mount -t proc p /proc; echo 0 > /proc/sys/kernel/sysrq",
     "permission denied"),
    ("take the mask off /proc/kcore", "umount /proc/kcore || ! test -c /proc/kcore",
     "Operation not permitted"),
    ("cgroup: leave by cgroup.procs", "echo 0 > /sys/fs/cgroup/cgroup.procs",
     "Read-only file system"),
    ("cgroup: lift its own limits", "echo max > /sys/fs/cgroup/pids.max", "Read-only file system"),
    ("cgroup: remount writable", "mount -o remount,rw /sys/fs/cgroup", "permission denied"),
    ("cgroup: mount the hierarchy anew", "mkdir /c; mount -t cgroup2 c /c", "permission denied"),
    ("the machine's memory by a node of its own",
     "mknod /tmp/mem c 1 1; dd if=/tmp/mem of=/dev/null bs=512 count=1", "Operation not permitted"),
    ("the kernel's messages", "dmesg > /dev/null", "Operation not permitted"),
    ("another root", "mkdir /r; mount --bind / /r", "permission denied"),
    ("a namespace of its own", "unshare -m true", "Operation not permitted"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "words"), [pytest.param(*rest, id=name) for name, *rest in FILES]
)
def test_a_file_that_leads_out_is_closed(wherry: Wherry, script: str, words: str) -> None:
    code, output = shell(wherry, script)
    assert code != 0
    assert words in output
    code, output = shell(wherry, script, *PRIVILEGED)
    assert code == 0, output


DISKS = """while read -r major minor size name; do case $name in vd*|sd*)
mknod /tmp/$name b $major $minor && dd if=/tmp/$name of=/dev/null bs=512 count=1 || exit 9
esac; done < /proc/partitions"""


def test_the_machines_disks_can_be_named_but_not_opened(wherry: Wherry) -> None:
    code, output = shell(wherry, DISKS)
    assert code == 9
    assert "dd: can't open" in output and "Operation not permitted" in output
    code, output = shell(wherry, DISKS, *PRIVILEGED)
    assert code == 0, output
    assert output.count("1+0 records in") >= 2  # the data disk, and a layer


def test_masked_files_are_empty(wherry: Wherry) -> None:
    script = "head -c 4 /proc/kcore | wc -c"
    assert shell(wherry, script) == (0, "0\n")
    assert shell(wherry, script, *PRIVILEGED) == (0, "4\n")
    assert shell(wherry, "ls /sys/firmware; cat /proc/keys") == (0, "")
    assert shell(wherry, "cat /proc/keys", *PRIVILEGED)[1] != ""


def test_processes_outside_cannot_be_seen(wherry: Wherry) -> None:
    script = "ls /proc | grep -c '^[0-9]'"
    assert int(shell(wherry, script)[1]) <= 4
    assert int(shell(wherry, script, "--pid", "host")[1]) > 20


@pytest.mark.parametrize(
    "script",
    ["ls /proc/1/root/run", "cat /proc/1/environ", "readlink /proc/1/fd/0", "readlink /proc/1/exe",
     "cat /proc/1/maps", "readlink /proc/1/ns/mnt", "head -c 1 /proc/1/mem 2>&1 | grep -v denied"],
)  # fmt: skip
def test_pid_1_of_the_machine_is_closed_to_who_sees_it(wherry: Wherry, script: str) -> None:
    code, output = shell(wherry, script, "--pid", "host")
    assert code != 0, output
    if "mem" not in script:
        assert "ermission denied" in output or output == ""
    code, output = shell(wherry, script, "--pid", "host", *PRIVILEGED)
    assert code == 0, output
    assert output


def test_pid_1_of_the_machine_cannot_be_traced(wherry: Wherry) -> None:
    seize = syscall_program(101, 0x4206, 1, 0, 0)  # PTRACE_SEIZE
    assert attempt(wherry, seize, "--pid", "host") == EPERM
    assert attempt(wherry, seize, "--pid", "host", *PRIVILEGED) == 0


def test_the_program_that_runs_pid_1_cannot_be_overwritten(wherry: Wherry) -> None:
    """Not even with all rights: it runs, and its mount is read-only."""
    script = """(: >> /proc/1/exe)
: >> /proc/1/root/run/x && rm /proc/1/root/run/x && echo control"""
    code, output = shell(wherry, script, "--pid", "host", *PRIVILEGED)
    assert code == 0, output
    assert "/proc/1/exe: Text file busy" in output or "/proc/1/exe: Read-only" in output
    assert output.endswith("control\n")


def test_who_enters_a_container_cannot_be_overwritten_by_it(wherry: Wherry) -> None:
    """CVE-2019-5736: a container waits for the runtime to appear, and writes to its program."""
    watch = """echo '#!/proc/self/exe' > /bin/bait; chmod 755 /bin/bait; touch /ready
while :; do for p in /proc/[0-9]*; do
[ $p/exe -ef /bin/busybox ] || { [ -d $p ] && (: >> $p/exe) 2>/dev/null && echo $p >> /won; }
done; done"""
    name = wherry.out("run", "-d", BUSYBOX, "sh", "-c", watch)
    try:
        for _ in range(8):
            wherry.run("exec", name, "/bin/bait")
            assert wherry.run("exec", name, "true").returncode == 0
        assert wherry.run("exec", name, "test", "-e", "/ready").returncode == 0
        assert wherry.run("exec", name, "test", "-e", "/won").returncode == 1
    finally:
        wherry.run("rm", "-f", name)
    assert wherry.out("run", "--rm", BUSYBOX, "echo", "alive") == "alive"


def test_nothing_of_the_runtime_is_inherited(wherry: Wherry) -> None:
    script = "cd /proc/self/fd; ls | wc -l; for f in *; do readlink $f; done"
    _, output = shell(wherry, script)
    assert "/run/wherry" not in output and "/sys/fs/cgroup" not in output
    assert "socket:" not in output


def test_packets_of_a_container_stay_in_its_namespace(wherry: Wherry) -> None:
    """Raw sockets are a default right; what they reach is the container's own interfaces."""
    raw = syscall_program(41, AF_PACKET, SOCK_RAW, 0x300)
    assert attempt(wherry, raw) == 0
    assert attempt(wherry, raw, "--cap-drop", "NET_RAW") == EPERM
    script = "ls /sys/class/net | grep -v '^lo$'"
    assert "eth0" in shell(wherry, "ls /sys/class/net", "--network", "host")[1]
    assert shell(wherry, script, "--network", "none") == (1, "")
    change = "ip addr add 192.0.2.1/32 dev lo"
    assert "Operation not permitted" in shell(wherry, change)[1]
    assert shell(wherry, change, "--cap-add", "NET_ADMIN")[0] == 0


@pytest.mark.parametrize("gateway", ["10.0.2.2", "10.0.2.3"])
def test_the_hosts_loopback_is_out_of_reach(wherry: Wherry, gateway: str) -> None:
    closed = f"nc -w 2 {gateway} 22 < /dev/null"
    assert shell(wherry, closed, "--network", "host")[0] != 0
    opened = """nc -l -p 7777 & i=0
until nc -w 2 127.0.0.1 7777 < /dev/null; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; done"""
    assert shell(wherry, opened, "--network", "host")[0] == 0


def test_no_new_privileges_makes_setuid_programs_harmless(wherry: Wherry) -> None:
    become_root = syscall_program(105, 0)  # setuid(0)
    script = "cat > /tmp/x; chown 0:0 /tmp/x; chmod 4755 /tmp/x; exec su nobody -s /tmp/x"

    def as_nobody(*options: str) -> int:
        arguments = ("run", "--rm", "-i", *options, BUSYBOX, "sh", "-c", script)
        return wherry.run(*arguments, input=become_root).returncode

    assert as_nobody() == 0
    assert as_nobody("--security-opt", "no-new-privileges") == EPERM
    assert as_nobody("--security-opt", "no-new-privileges=false") == 0


def test_an_exec_is_held_as_its_container_is(wherry: Wherry) -> None:
    options = ("--security-opt", "no-new-privileges")
    name = wherry.out("run", "-d", *options, BUSYBOX, "sleep", "1000")
    try:
        status = wherry.out(
            "exec", name, "grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status"
        )
        assert status.split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]
        done = wherry.run("exec", "--privileged", name, "mount", "-t", "tmpfs", "x", "/tmp")
        assert done.returncode != 0
    finally:
        wherry.run("rm", "-f", name)


def test_a_profile_of_the_users_own_holds(wherry: Wherry, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
    }
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile))
    option = ("--security-opt", f"seccomp={file}")
    assert shell(wherry, "mkdir /d", *option) == (
        1, "mkdir: can't create directory '/d': Disk quota exceeded\n"
    )  # fmt: skip
    assert shell(wherry, "mkdir /d") == (0, "")


def test_a_profile_with_an_unknown_call_is_refused_by_its_name(
    wherry: Wherry, tmp_path: Path
) -> None:
    file = tmp_path / "profile.json"
    call = {"names": ["munt"], "action": "SCMP_ACT_ERRNO"}
    file.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]}))
    done = wherry.run("run", "--rm", "--security-opt", f"seccomp={file}", BUSYBOX, "true")
    assert done.returncode == 125
    assert b"linux.seccomp.syscalls[0].names has 'munt', which is no system call" in done.stderr


@pytest.mark.contract
def test_the_docker_command_line_sends_a_profile(wherry: Wherry, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    call = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    file.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]}))
    run = ("run", "--rm", "--security-opt")
    command = (BUSYBOX, "chmod", "700", "/etc/passwd")
    done = wherry.docker(*run, f"seccomp={file}", *command)
    assert done.returncode == 1
    assert b"Operation not permitted" in done.stderr
    assert wherry.docker(*run, "seccomp=unconfined", *command).returncode == 0
    info = wherry.docker("info", "--format", "{{json .SecurityOptions}}", check=True)
    assert json.loads(info.stdout) == ["name=seccomp,profile=builtin", "name=cgroupns"]
