"""The plan: which steps, in which order, and what they ask of the kernel. On any OS."""

from __future__ import annotations

import copy
import errno
import stat
from typing import Any

import pytest
from recording_kernel import RecordingKernel

from wherry_guest.core.fields import SpecError
from wherry_guest.core.plan import Layout, Options, container_plan, exec_plan
from wherry_guest.core.spec import parse_process, parse_spec
from wherry_guest.core.steps import State, Step, StepFailed, run
from wherry_guest.core.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    FileStatus,
)
from wherry_guest.zygote import Rootfs

ROOTFS = Rootfs(("1", "0"), "/var/lib/wherry/upper", "/var/lib/wherry/work")
LAYOUT = Layout(open_files=(1024, 524_288))
FILE = FileStatus(stat.S_IFREG | 0o755)
SPEC: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {
        "args": ["/bin/app", "-x"],
        "env": ["PATH=/bin"],
        "cwd": "/srv",
        "user": {"username": "web"},
        "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "/run/hosts",
         "options": ["rbind", "ro"]},
    ],
    "linux": {
        "namespaces": [
            {"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network", "cgroup")
        ],
        "resources": {"memory": {"limit": 1 << 26}, "pids": {"limit": 10}},
        "sysctl": {"net.core.somaxconn": "1000"},
        "maskedPaths": ["/proc/kcore", "/proc/acpi", "/proc/scsi"],
        "readonlyPaths": ["/proc/sys"],
    },
}  # fmt: skip


def plan(tty: bool = False, **changes: Any) -> list[Step]:
    spec = parse_spec(copy.deepcopy(SPEC) | changes)
    made = container_plan(spec, ROOTFS, Options("/sys/fs/cgroup/containers/c", tty), LAYOUT)
    return [*made.outside, *made.inside]


def fake_kernel(**changes: Any) -> RecordingKernel:
    statuses = {
        "/bin/app": FILE,
        "/run/hosts": FILE,
        "/etc/passwd": FILE,
        "/etc/group": FILE,
        "/proc/kcore": FileStatus(stat.S_IFREG),
        "/dev/null": FileStatus(stat.S_IFCHR, 1, 3),
        "/dev/pts/ptmx": FileStatus(stat.S_IFCHR, 5, 2),
    }
    files = {"/etc/passwd": "web:x:33:44::/home/web:/bin/sh\n", "/etc/group": "g:x:5:web\n"}
    return RecordingKernel(files, statuses, **changes)


def test_every_step_describes_itself_in_one_lower_case_line() -> None:
    for step in plan(tty=True):
        text = step.describe()
        assert "\n" not in text and text[0].islower() and not text.endswith("."), text


def test_order_of_a_containers_life() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    names = kernel.names()
    order = ["write", "unshare", "netlink", "sethostname", "open_tree", "pivot_root", "mknod",
             "setsid", "setrlimit", "setgroups", "setgid", "setuid", "capset",
             "close_range", "execve"]  # fmt: skip
    positions = [names.index(name) for name in order]
    assert positions == sorted(positions)
    assert names[-1] == "execve"


def test_cgroup_limits_come_before_the_namespaces() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    before = kernel.calls[: kernel.names().index("unshare")]
    assert ("write", "/sys/fs/cgroup/containers/c/memory.max", str(1 << 26)) in before
    assert ("write", "/sys/fs/cgroup/containers/c/pids.max", "10") in before
    assert ("write", "/proc/self/oom_score_adj", "0") in before


def test_pid_namespace_is_left_to_the_clone() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    ((flags,),) = kernel.arguments("unshare")
    assert flags & CLONE_NEWNS and flags & CLONE_NEWNET and not flags & 0x20000000


def test_bind_sources_are_taken_before_and_attached_after_the_root_changes() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    pivot = kernel.names().index("pivot_root")
    taken = kernel.calls.index(("open_tree", "/run/hosts", True, -100))
    attached = [at for at, call in enumerate(kernel.calls) if call[-1:] == ("/etc/hosts",)]
    assert taken < pivot < attached[0]


def test_root_is_entered_by_the_book() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    start = kernel.names().index("pivot_root") - 1
    assert kernel.calls[start : start + 4] == [
        ("chdir", "/run/wherry/root"),
        ("pivot_root", ".", "."),
        ("umount", ".", 2),
        ("chdir", "/"),
    ]


def test_overlay_is_mounted_from_the_layers_directory() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    mount = next(call for call in kernel.calls if call[0] == "mount" and call[3] == "overlay")
    assert kernel.calls[kernel.calls.index(mount) - 1] == ("chdir", "/run/wherry/l")
    assert mount[5] == (
        "lowerdir=1:0,upperdir=/var/lib/wherry/upper,workdir=/var/lib/wherry/work,"
        "redirect_dir=nofollow,metacopy=off,index=off"
    )


def test_masks_share_one_empty_directory_and_hide_files_by_null() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    mounts = kernel.arguments("mount")
    assert ("tmpfs", "/proc/acpi", "tmpfs", MS_RDONLY, "size=4k,mode=755") in mounts
    assert ("/proc/acpi", "/proc/scsi", None, 0x1000, None) in mounts
    assert any(args[1] == "/proc/kcore" for args in kernel.arguments("move_mount"))


def test_sysctls_are_set_before_proc_sys_becomes_readonly() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    written = kernel.calls.index(("write", "/proc/sys/net/core/somaxconn", "1000"))
    assert written < kernel.calls.index(("open_tree", "/proc/sys", True, -100))


def test_readonly_root_comes_after_the_working_directory_was_made() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    readonly = kernel.calls.index(("mount_setattr", -100, "/", False, 1, 0))
    assert kernel.calls.index(("mkdir", "/srv", 0o755)) < readonly
    assert readonly < kernel.names().index("setuid")


def test_user_is_resolved_in_the_container_and_gives_home() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    assert kernel.arguments("setuid") == [(33,)] and kernel.arguments("setgid") == [(44,)]
    assert kernel.arguments("setgroups") == [((5,),)]
    opened = [args[0] for args in kernel.arguments("open")]
    assert kernel.names().index("pivot_root") < kernel.names().index("setuid")
    assert opened.index("/etc/passwd") < opened.index("/etc/group")
    ((path, args, env),) = kernel.arguments("execve")
    assert (path, args, env) == ("/bin/app", ("/bin/app", "-x"), ("PATH=/bin", "HOME=/home/web"))


def test_capabilities_are_dropped_in_an_order_that_works() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    prctls = [call for call in kernel.calls if call[0] in ("prctl", "setuid", "capset")]
    dropped = [call for call in prctls if call[:2] == ("prctl", 24)]
    assert len(dropped) == 40 and ("prctl", 24, 5) not in dropped  # all of 41 but CAP_KILL
    order = [("prctl", 8, 1), ("setuid", 33), ("prctl", 8, 0), ("capset", 0, 32, 0),
             ("prctl", 38, 1)]  # fmt: skip
    positions = [prctls.index(call) for call in order]
    assert positions == sorted(positions) and prctls.index(dropped[-1]) < positions[0]


def test_open_files_have_a_default_that_the_spec_can_change() -> None:
    kernel = fake_kernel()
    run(plan(), kernel, State())
    assert kernel.arguments("setrlimit") == [(4, 0, 0), (7, 1024, 524_288)]
    process = copy.deepcopy(SPEC["process"])
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]
    kernel = fake_kernel()
    run(plan(process=process), kernel, State())
    assert kernel.arguments("setrlimit") == [(7, 5, 6)]


def test_terminal_is_opened_in_the_container_and_its_master_sent_up() -> None:
    sent: list[int] = []
    kernel = fake_kernel()
    run(plan(tty=True), kernel, State(send_terminal=sent.append))
    assert len(sent) == 1
    names = kernel.names()
    assert ("dup2", kernel.arguments("dup2")[0][0], 2) in kernel.calls
    assert names.index("pivot_root") < names.index("ioctl") < names.index("setsid")
    assert any(args[1] == "/dev/console" for args in kernel.arguments("move_mount"))


def test_a_faked_multiplexer_is_refused() -> None:
    kernel = fake_kernel()
    kernel.statuses = {**kernel.statuses, "/dev/pts/ptmx": FILE}
    with pytest.raises(StepFailed, match="is no terminal multiplexer"):
        run(plan(tty=True), kernel, State())


def test_spec_asks_for_a_terminal_that_nobody_gave() -> None:
    process = SPEC["process"] | {"terminal": True}
    with pytest.raises(SpecError, match="terminal is true"):
        plan(process=process)


def test_a_failing_step_stops_the_plan_and_names_itself() -> None:
    kernel = fake_kernel(failing={("mount", "proc"): errno.EPERM})
    with pytest.raises(StepFailed) as failure:
        run(plan(), kernel, State())
    assert failure.value.message == "mount proc on /proc: Operation not permitted (EPERM)"
    assert (failure.value.errno, failure.value.exit_code) == (errno.EPERM, 125)
    assert "execve" not in kernel.names()


def test_exec_joins_everything_and_makes_nothing() -> None:
    kernel = fake_kernel()
    process = parse_process({"args": ["/bin/app"], "user": {"username": "web"}})
    run(exec_plan(process, Options(None), 77, LAYOUT).inside, kernel, State())
    ((pidfd, flags),) = kernel.arguments("setns")
    assert pidfd == 77 and flags & CLONE_NEWNS and flags & CLONE_NEWNET
    assert not {"unshare", "mount", "mkdir", "mknod", "pivot_root"} & set(kernel.names())
    names = kernel.names()
    assert names.index("prctl") < names.index("setns")  # not dumpable before it can be seen


def test_host_network_leaves_the_loopback_alone() -> None:
    linux = copy.deepcopy(SPEC["linux"])
    linux["namespaces"] = [item for item in linux["namespaces"] if item["type"] != "network"]
    linux["sysctl"] = {}
    kernel = fake_kernel()
    run(plan(linux=linux), kernel, State())
    assert "netlink" not in kernel.names()


@pytest.mark.parametrize(
    "name", ["kernel.panic", "vm.overcommit_memory", "net.core.somaxconn", "kernel.shmmax"]
)
def test_sysctls_of_the_machine_are_refused(name: str) -> None:
    linux = copy.deepcopy(SPEC["linux"])
    kinds = ("pid", "mount", "uts")
    linux |= {"namespaces": [{"type": kind} for kind in kinds], "sysctl": {name: "1"}}
    with pytest.raises(SpecError, match=f"linux.sysctl.{name}"):
        plan(linux=linux)


def test_mount_options_become_flags_and_data() -> None:
    mounts = [{"destination": "/x", "type": "tmpfs", "source": "tmpfs",
               "options": ["ro", "nosuid", "nodev", "rw", "size=1m", "mode=700"]}]  # fmt: skip
    kernel = fake_kernel()
    run(plan(mounts=mounts), kernel, State())
    assert ("tmpfs", "/x", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=700") in kernel.arguments(
        "mount"
    )


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"destination": "/x", "source": "/y"}, "type is missing"),
        ({"destination": "/x", "type": "proc", "options": ["tmpcopyup"]}, "'tmpcopyup'"),
        ({"destination": "/x", "type": "bind", "source": "/y", "options": ["bind", "idmap"]},
         "'idmap' needs uidMappings"),
        ({"destination": "/x", "type": "bind", "source": "/y", "options": ["bind", "size=1"]},
         "'size=1'"),
    ],
)  # fmt: skip
def test_mounts_that_are_not_supported_name_themselves(mount: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=rf"mounts\[/x\]..*{message}"):
        plan(mounts=[mount])
