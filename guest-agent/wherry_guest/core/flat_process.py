"""The steps of the process itself, as flat programs say them; see `core.flatten`."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from wherry_guest.core import syscalls, tty
from wherry_guest.core.capabilities import NAMES, DropBounding, SetCapabilities
from wherry_guest.core.child import TERMINAL
from wherry_guest.core.flat import Data, Label, NotFlat, Result
from wherry_guest.core.flat_making import (
    MISSING,
    O_CREAT,
    O_EXCL,
    O_NOCTTY,
    O_RDWR,
    O_WRONLY,
    Making,
)
from wherry_guest.core.limits import SetLimit
from wherry_guest.core.namespaces import BY_UNSHARE, FLAGS, HideMemory, JoinContainer
from wherry_guest.core.process import (
    LAST_FD,
    BeginSession,
    CloseOnExec,
    EnterDirectory,
    Execute,
    FindProgram,
    NewKeyring,
    NoNewPrivileges,
    SetOomScore,
    SetRlimit,
    SetSysctl,
    SetUmask,
    candidates,
)
from wherry_guest.core.scheduling import DOMAINS, SetIoPriority, SetPersonality, SetScheduler
from wherry_guest.core.seccomp import SET_MODE_FILTER, InstallFilter, kept_capabilities
from wherry_guest.core.syscalls import AT_FDCWD
from wherry_guest.core.tty import BindConsole, OpenTerminal, UseTerminal, window_size

_AT_EACCESS: Final = 0x200  # uapi/linux/fcntl.h
_X_OK: Final = 1
_REGULAR: Final = 0o100000  # S_IFREG, uapi/linux/stat.h
_GETCWD: Final = 4096


def set_oom_score(making: Making, step: SetOomScore) -> None:
    making.write("/proc/self/oom_score_adj", str(step.value))


def set_limit(making: Making, step: SetLimit) -> None:
    if step.limit.instead is not None:
        raise NotFlat("there may be another file")
    if step.limit.optional:
        past = Label()
        fd = making.flat.call(
            "openat",
            making.fds.cgroup,
            making.flat.text(step.limit.file),
            O_WRONLY | syscalls.OPEN_TREE_CLOEXEC,
            taken=(errno.ENOENT,),
            then=past,
        )
        making.write_to(fd, step.limit.value)
        making.flat.place(past)
    else:
        making.write(step.limit.file, step.limit.value, making.fds.cgroup)


def set_sysctl(making: Making, step: SetSysctl) -> None:
    making.write(f"/proc/sys/{step.name.replace('.', '/')}", step.value)


def hide_memory(making: Making, step: HideMemory) -> None:
    making.flat.call("prctl", syscalls.PR_SET_DUMPABLE, 0, 0, 0, 0)


def join_container(making: Making, step: JoinContainer) -> None:
    if step.user:
        raise NotFlat("a user namespace is joined")
    flags = sum(FLAGS[kind] for kind in BY_UNSHARE) | syscalls.CLONE_NEWTIME
    making.close(making.fds.cgroup)
    making.flat.call("setns", making.fds.pidfd, flags)
    making.close(making.fds.pidfd)


def set_personality(making: Making, step: SetPersonality) -> None:
    making.flat.call("personality", DOMAINS[step.domain])


def set_scheduler(making: Making, step: SetScheduler) -> None:
    attributes = making.flat.data(step.scheduler.attributes())
    making.flat.call("sched_setattr", 0, attributes, 0)


def set_io_priority(making: Making, step: SetIoPriority) -> None:
    making.flat.call("ioprio_set", syscalls.IOPRIO_WHO_PROCESS, 0, step.priority.value())


def begin_session(making: Making, step: BeginSession) -> None:
    making.flat.call("setsid")


def new_keyring(making: Making, step: NewKeyring) -> None:
    making.flat.call("keyctl", syscalls.KEYCTL_JOIN_SESSION_KEYRING, 0, taken=(errno.ENOSYS,))


def set_rlimit(making: Making, step: SetRlimit) -> None:
    limit, mask = step.limit, 2**64 - 1
    new = making.flat.data(struct.pack("<QQ", limit.soft & mask, limit.hard & mask))
    making.flat.call("prlimit64", 0, limit.resource, new, 0)


def set_umask(making: Making, step: SetUmask) -> None:
    making.flat.call("umask", step.mask)


def enter_directory(making: Making, step: EnterDirectory) -> None:
    flat = making.flat
    if step.create:
        making.directories(step.path)
    flat.call("chdir", flat.text(step.path))
    where = making.flat.scratch(_GETCWD)
    flat.call("getcwd", where, _GETCWD)
    flat.check(where, 0xFF, ord("/"))  # the kernel has "(unreachable)" before one outside


def drop_bounding(making: Making, step: DropBounding) -> None:
    past = Label()
    for number in range(len(NAMES)):
        if not step.keep >> number & 1:
            args = (syscalls.PR_CAPBSET_DROP, number, 0, 0, 0)
            making.flat.call("prctl", *args, taken=(errno.EINVAL,), then=past)
    making.flat.place(past)


def set_capabilities(making: Making, step: SetCapabilities) -> None:
    flat, sets = making.flat, step.sets
    _capset(making, sets.effective, sets.permitted | step.kept, sets.inheritable)
    flat.call("prctl", syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(len(NAMES)):
        if sets.ambient >> number & 1:
            flat.call("prctl", syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number, 0, 0)


def no_new_privileges(making: Making, step: NoNewPrivileges) -> None:
    making.flat.call("prctl", syscalls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def find_program(making: Making, step: FindProgram) -> None:
    """What is there and cannot be run is for the step to say."""
    flat, found = making.flat, Label()
    program = making.program = flat.data(bytes(8))
    paths = candidates(step.name, step.env)
    for path in paths:
        following = Label()
        text = making.variable(path)
        making.statx_of(text, taken=MISSING, then=following)
        making.check_type(_REGULAR)
        flat.call("faccessat2", AT_FDCWD, text, _X_OK, _AT_EACCESS)
        flat.copy(program, flat.pointers([text]))
        flat.goto(found)
        flat.place(following)
    making.fail()
    flat.place(found)


def close_on_exec(making: Making, step: CloseOnExec) -> None:
    args = (3 + step.preserved, LAST_FD, syscalls.CLOSE_RANGE_CLOEXEC)
    making.flat.call("close_range", *args)


def install_filter(making: Making, step: InstallFilter) -> None:
    flat, sets, made = making.flat, step.sets, step.made
    code = flat.data(made.program)
    program = flat.data(struct.pack("<Q", len(made.program) // 8) + bytes(8))  # struct sock_fprog
    flat.point(program.at(8), code)
    borrowed = kept_capabilities(made, step.no_new_privileges) & ~sets.effective
    if borrowed:
        _capset(making, sets.effective | borrowed, sets.permitted | borrowed, sets.inheritable)
    flat.call("seccomp", SET_MODE_FILTER, made.flags, program)
    if borrowed:
        _capset(making, sets.effective, sets.permitted, sets.inheritable)


def execute(making: Making, step: Execute) -> None:
    flat, program, home = making.flat, making.program, making.home
    if program is None:
        raise NotFlat("nobody has looked for the program")
    argv = flat.pointers([*map(making.variable, step.args), None])
    env: list[Data | None] = [*map(making.variable, step.env)]
    if home is None:
        envp = flat.pointers([*env, None])
    else:
        envp = flat.pointers([*env, None, None])
        flat.copy(envp.at(8 * len(env)), home)
    path = Result()
    path.place = program
    flat.call("execve", path, argv, envp)


# The terminal.


def open_terminal(making: Making, step: OpenTerminal) -> None:
    flat = making.flat
    flags = O_RDWR | O_NOCTTY
    master = making.open(flat.text("/dev/pts/ptmx"), flags | making.nofollow)
    making.statx(master)
    making.check_device(*tty.PTMX)
    flat.call("ioctl", master, tty.TIOCSPTLCK, flat.data(bytes(8)))
    slave = flat.call("ioctl", master, tty.TIOCGPTPEER, flags | syscalls.OPEN_TREE_CLOEXEC)
    if step.size is not None:
        flat.call("ioctl", master, tty.TIOCSWINSZ, flat.data(window_size(*step.size)))
    making.send_descriptor(master, TERMINAL)
    making.close(master)
    making.terminal = slave


def bind_console(making: Making, step: BindConsole) -> None:
    flat, past = making.flat, Label()
    if making.terminal is None:
        raise NotFlat("there is no terminal")
    path = flat.text("/dev/console")
    flags = O_WRONLY | O_CREAT | O_EXCL | syscalls.OPEN_TREE_CLOEXEC
    making.directories("/dev")
    made = flat.call("openat", AT_FDCWD, path, flags, 0o644, taken=(errno.EEXIST,), then=past)
    making.close(made)
    flat.place(past)
    copying = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_EMPTY_PATH
    tree = flat.call("open_tree", making.terminal, flat.text(""), copying)
    making.attach(tree, "/dev/console")


def use_terminal(making: Making, step: UseTerminal) -> None:
    flat, slave = making.flat, making.terminal
    if slave is None:
        raise NotFlat("there is no terminal")
    flat.call("ioctl", slave, tty.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        flat.call("dup3", slave, fd, 0)
    making.close(slave)


def _capset(making: Making, effective: int, permitted: int, inheritable: int) -> None:
    flat = making.flat
    masks = (effective, permitted, inheritable)
    halves = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in masks]
    header = flat.data(struct.pack("<Ii", syscalls.CAPABILITY_VERSION_3, 0))
    flat.call("capset", header, flat.data(struct.pack("<6I", *halves)))


STEPS: Final[Mapping[type, Callable[[Making, Any], None]]] = {
    SetOomScore: set_oom_score,
    SetLimit: set_limit,
    SetSysctl: set_sysctl,
    HideMemory: hide_memory,
    JoinContainer: join_container,
    SetPersonality: set_personality,
    SetScheduler: set_scheduler,
    SetIoPriority: set_io_priority,
    BeginSession: begin_session,
    NewKeyring: new_keyring,
    SetRlimit: set_rlimit,
    SetUmask: set_umask,
    EnterDirectory: enter_directory,
    DropBounding: drop_bounding,
    SetCapabilities: set_capabilities,
    NoNewPrivileges: no_new_privileges,
    FindProgram: find_program,
    CloseOnExec: close_on_exec,
    InstallFilter: install_filter,
    Execute: execute,
    OpenTerminal: open_terminal,
    BindConsole: bind_console,
    UseTerminal: use_terminal,
}
