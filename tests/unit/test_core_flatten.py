"""Plans as flat programs: they ask of the kernel what the steps ask. On any OS."""

from __future__ import annotations

import copy
import errno
import stat
import struct
from typing import Any

import pytest
from flat_machine import CHILD, Call, FlatMachine
from test_core_plan import LAYOUT, ROOTFS, SPEC

from wherry_guest.core import flat_mounts, flat_process, flat_user
from wherry_guest.core import plan as plan_module
from wherry_guest.core.flat import BASE, NotFlat
from wherry_guest.core.flat_making import FIRST, MOUNTS, Descriptors
from wherry_guest.core.flatten import Flattened, burial, flatten, spare_network
from wherry_guest.core.plan import Options, container_plan, exec_plan
from wherry_guest.core.seccomp import Filter
from wherry_guest.core.spec import User, parse_process, parse_spec
from wherry_guest.core.steps import Step
from wherry_guest.core.syscalls import CLONE_NEWNET

FDS = Descriptors.in_order(3, pidfd=False)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"
GROUP = b"web:x:34:\nextra:x:44:web\n"

NOT_FLAT = {
    # steps of the command line, of midwives, and of what a fork does better
    "AskForHooks", "AttachFilesystem", "AttachRoot", "AwaitStart", "BecomeRootInside",
    "EnterUserNamespace", "FilterDevices", "MakeUserNamespace", "MountMappedOverlay",
    "NewTimeNamespace", "NoteOuterPid", "OpenUserNamespace", "Populate", "RaiseHardLimit",
    "RunHooks", "TakeDevice", "TakeFilesystem", "TakeReaper", "TakeRoot",
}  # fmt: skip


class World:
    """A kernel with an image in it.

    Args:
        missing, files: paths by `statx`; anything else is a directory. failing: call to errno.
    """

    def __init__(
        self,
        missing: tuple[str, ...] = (),
        files: tuple[str, ...] = ("/proc/kcore", "/bin/app", "/bin/sh"),
        passwd: bytes = PASSWD,
        failing: tuple[str, int] | None = None,
    ) -> None:
        self.missing, self.files, self.passwd = missing, files, passwd
        self.failing = failing
        self.opened: dict[int, str] = {}
        self.user = User()

    def __call__(self, machine: FlatMachine, call: Call) -> int:
        if self.failing is not None and call.name == self.failing[0]:
            return -self.failing[1]
        if call.name == "statx":
            return self._statx(machine, call)
        if call.name in ("openat", "open_tree"):
            if call.texts[1] in self.missing:
                return -errno.ENOENT
            self.opened[100 + len(machine.calls)] = call.texts[1]
            return 100 + len(machine.calls)
        if call.name in ("pread64", "read"):
            content = self.passwd if self.opened[call.args[0]] == "/etc/passwd" else GROUP
            content = content[: call.args[2]]
            start = call.args[1] - BASE
            machine.memory[start : start + len(content)] = content
            return len(content)
        if call.name == "recvfrom":
            return self._answer_question(machine, call)
        if call.name == "getcwd":
            machine.memory[call.args[0] - BASE] = ord("/")
            return 2
        return 100 + len(machine.calls)

    def _statx(self, machine: FlatMachine, call: Call) -> int:
        path = call.texts[1] or self.opened.get(call.args[0], "")
        if path in self.missing:
            return -errno.ENOENT
        regular = path in self.files or path.startswith(("/etc/", "/run/"))
        kind = stat.S_IFREG if regular else stat.S_IFDIR
        struct.pack_into("<H", machine.memory, call.args[4] - BASE + 28, kind | 0o755)
        return 0

    def _answer_question(self, machine: FlatMachine, call: Call) -> int:
        message = machine.named("sendmsg")[-1]
        vectors = machine.word(message.args[1] + 16)
        question = b""
        for index in range(3):
            start, size = (machine.word(vectors + 16 * index + it) for it in (0, 8))
            question += bytes(machine.memory[start - BASE :][:size]) if size else b""
        answer = flat_user.answer(self.user, question)
        start = call.args[1] - BASE
        machine.memory[start : start + len(answer)] = answer
        return len(answer)


def spec(**changes: Any) -> dict[str, Any]:
    whole = copy.deepcopy(SPEC)
    for path, value in changes.items():
        *parents, name = path.split("__")
        inner = whole
        for parent in parents:
            inner = inner[parent]
        inner[name] = value
    return whole


def container_program(whole: dict[str, Any], architecture: str = "x86_64") -> bytes:
    options = Options("/sys/fs/cgroup/c", filtered=True)
    return filled(
        flatten(container_plan(parse_spec(whole), ROOTFS, options, LAYOUT), FDS, architecture)
    )


def filled(made: Flattened) -> bytes:
    program = made.image.filled([text.encode() for text in made.variables])
    assert program is not None
    return program


def run(whole: dict[str, Any], world: World, ends: str = "exec") -> FlatMachine:
    world.user = parse_spec(whole).process.user
    machine = FlatMachine(container_program(whole), world)
    assert machine.run() == ends
    return machine


def test_every_step_is_said_or_known_not_to_be() -> None:
    said = {*flat_mounts.STEPS, *flat_process.STEPS, *flat_user.STEPS}
    every = {
        it
        for it in vars(plan_module).values()
        if isinstance(it, type) and hasattr(it, "execute") and it is not Step
    }
    assert {it.__name__ for it in every - said} <= NOT_FLAT
    assert not {it.__name__ for it in said} & NOT_FLAT


def test_the_calls_are_those_of_the_steps_in_their_order() -> None:
    machine = run(spec(), World())
    names = machine.names()
    milestones = [
        "clone3", "dup3", "unshare", "sethostname", "open_tree", "mount", "pivot_root", "umount2",
        "mknodat", "symlinkat", "move_mount", "setsid", "keyctl", "prlimit64", "chdir", "setresuid",
        "capset", "faccessat2", "close_range", "execve",
    ]  # fmt: skip
    last = [len(names) - 1 - names[::-1].index(name) for name in milestones]
    first = [names.index(name) for name in milestones]
    assert first[0] == 0 or names[0] == "clone3"
    assert first.index(max(first)) == len(first) - 1
    assert last[milestones.index("unshare")] < first[milestones.index("pivot_root")]
    assert last[milestones.index("mknodat")] < first[milestones.index("setsid")]


def test_no_descriptor_of_the_machines_directories_is_open_in_the_containers_root() -> None:
    names_before = []
    for call in run(spec(), World()).calls:
        if call.name == "pivot_root":
            break
        names_before.append((call.name, call.args[0]))
    assert ("close", FDS.cgroup) in names_before
    assert ("close", 3) in names_before


def test_the_mount_namespace_is_sent_before_the_root_is_entered() -> None:
    machine = run(spec(process__env=["HOME=/", "PATH=/bin"], process__user={"uid": 5}), World())
    names = machine.names()
    [message] = machine.named("sendmsg")
    assert said(machine, message) == MOUNTS
    assert names.index("unshare") < names.index("sendmsg") < names.index("pivot_root")
    rights = machine.word(message.args[1] + 32)
    opened = next(call for call in machine.named("openat") if call.texts[1] == "/proc/self/ns/mnt")
    assert machine.word(rights + 16) == 100 + machine.calls.index(opened) + 1


def test_a_burial_holds_what_it_was_given_until_it_is_let_go() -> None:
    machine = FlatMachine(burial("x86_64"))
    assert machine.run() == "exit"
    assert machine.names() == ["clone3", "close", "recvfrom", "exit_group"]
    machine = FlatMachine(burial("x86_64"), parent=True)
    assert machine.run() == "end"
    assert [(call.name, call.args[0]) for call in machine.calls[1:]] == [
        ("close", FIRST), ("sendto", 3),
    ]  # fmt: skip


def test_a_network_that_was_made_ahead_is_joined_instead_of_a_new_one() -> None:
    fds = Descriptors.in_order(3, network=True)
    options = Options("/sys/fs/cgroup/c", filtered=True)
    plan = container_plan(parse_spec(SPEC), ROOTFS, options, LAYOUT)
    world = World()
    world.user = parse_spec(SPEC).process.user
    machine = FlatMachine(filled(flatten(plan, fds, "x86_64")), world)
    assert machine.run() == "exec"
    [unshare], [join] = machine.named("unshare"), machine.named("setns")
    assert not unshare.args[0] & CLONE_NEWNET
    assert join.args[:2] == (fds.network, CLONE_NEWNET)
    assert "socket" not in machine.names()  # its loopback device is up


def test_a_spare_network_is_sent_and_its_maker_ends() -> None:
    machine = FlatMachine(spare_network("x86_64"), World())
    assert machine.run() == "exit"
    assert machine.names() == [
        "clone3", "close", "unshare", "socket", "ioctl", "close", "openat", "sendmsg", "exit_group",
    ]  # fmt: skip
    machine = FlatMachine(
        spare_network("x86_64"),
        lambda machine, call: -errno.ENOSPC if call.name == "unshare" else 0,
    )
    assert machine.run() == "exit"
    assert machine.names()[-1] == "exit_group" and not machine.named("sendmsg")


def test_targets_are_the_containers() -> None:
    machine = run(spec(), World())
    mounts = [(call.texts[1], call.texts[2]) for call in machine.named("mount") if call.texts[1]]
    assert ("/proc", "proc") in mounts and ("/dev", "tmpfs") in mounts
    assert "/etc/hosts" in [call.texts[3] for call in machine.named("move_mount")]
    assert [call.texts[0] for call in machine.named("chdir")][-1] == "/srv"


def test_masked_paths_are_covered_by_what_they_are() -> None:
    world = World(missing=("/proc/scsi",))
    whole = spec(linux__maskedPaths=["/proc/kcore", "/proc/acpi", "/proc/scsi", "/proc/sub"])
    machine = run(whole, world)
    covered = [
        (call.texts[0], call.texts[1])
        for call in machine.named("mount")
        if call.texts[1] in ("/proc/kcore", "/proc/acpi", "/proc/scsi", "/proc/sub")
    ]
    assert covered == [
        ("/dev/null", "/proc/kcore"), ("tmpfs", "/proc/acpi"), ("/proc/acpi", "/proc/sub"),
    ]  # fmt: skip


def test_a_named_user_is_asked_for_and_becomes_who_the_answer_says() -> None:
    machine = run(spec(), World())
    assert [call.args[:3] for call in machine.named("setresuid")] == [(33, 33, 33)]
    assert [call.args[:3] for call in machine.named("setresgid")] == [(34, 34, 34)]
    [groups] = machine.named("setgroups")
    assert groups.args[0] == 1
    assert struct.unpack_from("<I", machine.memory, groups.args[1] - BASE)[0] == 44
    assert environment(machine)[-1] == "HOME=/srv"


def said(machine: FlatMachine, message: Call) -> bytes:
    """The first part of what a `sendmsg` has said."""
    vectors = machine.word(message.args[1] + 16)
    start, size = machine.word(vectors) - BASE, machine.word(vectors + 8)
    return bytes(machine.memory[start : start + size])


def environment(machine: FlatMachine) -> list[str]:
    [call] = machine.named("execve")
    found = []
    at = call.args[2]
    while address := machine.word(at):
        found.append(machine.text(address))
        at += 8
    return found


def test_roots_home_is_in_the_first_line() -> None:
    machine = run(spec(process__user={"uid": 0, "gid": 0}), World())
    assert environment(machine) == ["PATH=/bin", "HOME=/root"]
    assert [said(machine, call) for call in machine.named("sendmsg")] == [MOUNTS]


def test_roots_home_is_asked_for_where_the_first_line_is_another() -> None:
    world = World(passwd=b"toor:x:0:0:root:/elsewhere:/bin/sh\n")
    machine = run(spec(process__user={"uid": 0, "gid": 0}), world)
    assert environment(machine) == ["PATH=/bin", "HOME=/elsewhere"]


def test_without_a_passwd_file_home_is_the_root() -> None:
    world = World(missing=("/etc/passwd",))
    machine = run(spec(process__user={"uid": 0, "gid": 0}), world)
    assert environment(machine)[-1] == "HOME=/"


def test_a_given_home_is_not_looked_up() -> None:
    whole = spec(process__user={"uid": 7, "gid": 8}, process__env=["HOME=/x", "PATH=/bin"])
    machine = run(whole, World())
    assert environment(machine) == ["HOME=/x", "PATH=/bin"]
    assert "/etc/passwd" not in [call.texts[1] for call in machine.named("openat")]


def test_the_program_is_the_first_regular_file_along_path() -> None:
    whole = spec(process__args=["sh"], process__env=["PATH=/sbin:/opt:/bin:/usr/bin"])
    world = World(missing=("/sbin/sh", "/usr/bin/sh"), files=("/bin/sh",))
    run(whole, world, ends="exit")  # /opt/sh is a directory: the steps know what to do
    world = World(missing=("/sbin/sh", "/opt/sh"), files=("/bin/sh",))
    [call] = run(whole, world).named("execve")
    assert call.texts[0] == "/bin/sh"


def test_the_cradle_says_the_pid_and_is_ready_for_the_next() -> None:
    machine = FlatMachine(container_program(SPEC), parent=True)
    assert machine.run() == "end"
    [said] = machine.named("sendto")
    assert said.args[0] == 3 and said.args[2] == 8 and machine.word(said.args[1]) == CHILD


def test_an_exec_hides_its_memory_before_the_clone_and_the_cradle_comes_back() -> None:
    process = parse_process(SPEC["process"])
    plan = exec_plan(process, Options(None), 9, LAYOUT)
    fds = Descriptors.in_order(3, pidfd=True)
    made = flatten(plan, fds, "x86_64")
    machine = FlatMachine(made.image.memory, parent=True)
    assert machine.run() == "end"
    assert machine.names() == ["prctl", "setns", "clone3", "openat", "setns", "close", "sendto"]


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_whichever_call_fails_it_is_said_and_nothing_is_executed(architecture: str) -> None:
    program, user = container_program(SPEC, architecture), parse_spec(SPEC).process.user

    def machine_with(failing: int) -> FlatMachine:
        world = World()
        world.user = user

        def answer(machine: FlatMachine, call: Call) -> int:
            return -errno.EIO if len(machine.calls) == failing + 1 else world(machine, call)

        return FlatMachine(program, answer, architecture)

    whole = machine_with(failing=-1)
    assert whole.run() == "exec"
    for number in range(1, len(whole.calls)):
        machine = machine_with(number)
        assert machine.run() == "exit"
        report = machine.calls[-2]
        assert (report.name, report.args[0], report.args[2]) == ("sendto", FDS.status, 16)
        assert machine.failure[0] == errno.EIO


@pytest.mark.parametrize(
    "changes",
    [
        {"linux__uidMappings": [{"containerID": 0, "hostID": 9, "size": 9}],
         "linux__gidMappings": [{"containerID": 0, "hostID": 9, "size": 9}],
         "linux__namespaces": [{"type": "mount"}, {"type": "user"}]},
        {"mounts": [{"destination": "/x", "type": "bind", "source": "/v",
                     "options": ["bind", "subpath=a"]}]},
        {"mounts": [{"destination": "/x/../y", "type": "tmpfs", "source": "tmpfs"}]},
        {"mounts": [{"destination": "/x", "type": "ext4", "source": "/dev/vdb"}]},
        {"annotations": {"io.wherry.init": "true"}},
    ],
    ids=["user namespace", "subpath", "path with dots", "foreign file system", "init"],
)  # fmt: skip
def test_what_takes_more_than_calls_is_left_to_the_steps(changes: dict[str, Any]) -> None:
    whole = spec(**changes)
    whole["linux"].pop("sysctl")
    whole.pop("hostname")
    plan = container_plan(parse_spec(whole), ROOTFS, Options("/c", filtered=True), LAYOUT)
    with pytest.raises(NotFlat):
        flatten(plan, FDS, "x86_64")


def test_a_filter_is_borrowed_for_and_installed_last() -> None:
    process = parse_process(SPEC["process"] | {"noNewPrivileges": False})
    program = Filter(bytes(8 * 5), 4)
    plan = exec_plan(process, Options(None), 9, LAYOUT, seccomp=program)
    made = flatten(plan, Descriptors.in_order(3, pidfd=True), "x86_64")
    world = World()
    world.user = process.user
    machine = FlatMachine(filled(made), world)
    assert machine.run() == "exec"
    assert machine.names()[-4:] == ["capset", "seccomp", "capset", "execve"]
    [install] = machine.named("seccomp")
    assert struct.unpack_from("<H", machine.memory, install.args[2] - BASE)[0] == 5
