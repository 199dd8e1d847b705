"""The process itself: session, limits, directory, environment, and at last exec.

Exit codes and words are Docker's, whose clients read them: 127 when the command is not found, 126
when it is there and cannot be run.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.fields import SpecError
from wherry_guest.core.spec import Namespaces, Rlimit
from wherry_guest.core.steps import SetupError, make_directories
from wherry_guest.core.syscalls import CLOSE_RANGE_CLOEXEC, PR_SET_NO_NEW_PRIVS

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

REAPER: Final = "wherry-init"
"""What the process of `core.reaper` is called."""

_NOT_HERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # the search goes on, silently
LAST_FD: Final = 2**32 - 1  # close_range(2): ~0U

_IPC_SYSCTLS: Final = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
                       "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
                       "kernel.shm_rmid_forced")  # fmt: skip


@dataclass(frozen=True, slots=True)
class SetOomScore:
    """Write oom_score_adj; PID 1's own is -1000 and would be inherited."""

    value: int

    def describe(self) -> str:
        return f"set oom_score_adj to {self.value} (process.oomScoreAdj)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.write("/proc/self/oom_score_adj", str(self.value))


@dataclass(frozen=True, slots=True)
class SetSysctl:
    name: str
    value: str

    def describe(self) -> str:
        return f"set the sysctl {self.name} (linux.sysctl)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.write(f"/proc/sys/{self.name.replace('.', '/')}", self.value)


@dataclass(frozen=True, slots=True)
class BeginSession:
    """A session of its own, without a controlling terminal."""

    def describe(self) -> str:
        return "begin a session"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.setsid()


@dataclass(frozen=True, slots=True)
class SetRlimit:
    limit: Rlimit

    def describe(self) -> str:
        return f"set {self.limit.name} to {self.limit.soft}:{self.limit.hard} (process.rlimits)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.setrlimit(self.limit.resource, self.limit.soft, self.limit.hard)


@dataclass(frozen=True, slots=True)
class RaiseHardLimit:
    """With the machine's rights, which the process gives up before its limits are set."""

    limit: Rlimit

    def describe(self) -> str:
        return f"let {self.limit.name} be {self.limit.hard} (process.rlimits)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.raise_hard_limit(self.limit.resource, self.limit.hard)


@dataclass(frozen=True, slots=True)
class SetUmask:
    mask: int

    def describe(self) -> str:
        return f"set the umask to {self.mask:04o}"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.umask(self.mask)


@dataclass(frozen=True, slots=True)
class EnterDirectory:
    """Change to the working directory, which is made when it is missing (Docker's way)."""

    path: str
    create: bool

    def describe(self) -> str:
        return f"change to the directory {self.path} (process.cwd)"

    def execute(self, kernel: Kernel, state: State) -> None:
        if self.create:
            make_directories(kernel, kernel.realpath(self.path))
        kernel.chdir(self.path)
        try:
            kernel.getcwd()
        except FileNotFoundError as error:  # through /proc/self/fd/N to a descriptor of the VM
            message = f"{self.describe()}: it lies outside of the container"
            raise SetupError(message, error.errno or 0) from error


@dataclass(frozen=True, slots=True)
class NoNewPrivileges:
    def describe(self) -> str:
        return "set no_new_privs"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.prctl(PR_SET_NO_NEW_PRIVS, 1)


@dataclass(frozen=True, slots=True)
class NewKeyring:
    """A session keyring of its own, so that the runtime's keys stay out of reach. keyrings(7)"""

    def describe(self) -> str:
        return "make a session keyring"

    def execute(self, kernel: Kernel, state: State) -> None:
        try:
            kernel.new_session_keyring()
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a kernel without keyrings has none to protect
                raise


@dataclass(frozen=True, slots=True)
class FindProgram:
    """Find the file to execute, as the user that it will run as."""

    name: str
    env: tuple[str, ...]

    def describe(self) -> str:
        return f"exec {self.name!r}"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.program = find_program(kernel, self.name, self.env)


@dataclass(frozen=True, slots=True)
class AwaitStart:
    """Say that the container is created, and wait for its start."""

    def describe(self) -> str:
        return "wait for the start"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.await_start()


@dataclass(frozen=True, slots=True)
class CloseOnExec:
    """Every descriptor above stdio, and `preserved` more, ends with the exec.

    Not a part of `Execute`: a seccomp filter that comes in between may refuse close_range(2).
    """

    preserved: int = 0

    def describe(self) -> str:
        return "mark descriptors to be closed by the exec"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.close_range(3 + self.preserved, LAST_FD, CLOSE_RANGE_CLOEXEC)


@dataclass(frozen=True, slots=True)
class Execute:
    """Run the command."""

    args: tuple[str, ...]
    env: tuple[str, ...]

    def describe(self) -> str:
        return f"exec {self.args[0]!r}"

    def execute(self, kernel: Kernel, state: State) -> None:
        env = self.env
        if state.identity is not None and not any(entry.startswith("HOME=") for entry in env):
            env = (*env, f"HOME={state.identity.home}")
        path, args = state.program or self.args[0], self.args
        if state.reaper is not None:
            path, args = f"/proc/self/fd/{state.reaper}", (REAPER, path, *args)
        try:
            kernel.execve(path, args, env)
        except OSError as error:
            raise _refusal(self.args[0], path, error.errno or 0) from error


def find_program(kernel: Kernel, name: str, env: Sequence[str]) -> str:
    """The file to execute: `name` itself when it has a slash, else the first one along PATH.

    Raises:
        SetupError: with 127 (not found) or 126 (a directory, not executable).
    """
    if "/" in name:
        if (number := _why_not(kernel, name)) != 0:
            raise _refusal(name, name, number)
        return name
    found_number = 0
    for path in candidates(name, env):
        number = _why_not(kernel, path)
        if number == 0:
            return path
        if found_number == 0 and number not in _NOT_HERE:
            found_number = number
    if found_number:
        raise _refusal(name, name, found_number)
    raise _refusal(name, name, errno.ENOENT, "executable file not found in $PATH")


def candidates(name: str, env: Sequence[str]) -> list[str]:
    """Where the file of a command may be, in order."""
    if "/" in name:
        return [name]
    return [f"{directory}/{name}" for directory in search_path(env)] if name else []


def search_path(env: Sequence[str]) -> list[str]:
    """PATH's directories; an empty one means the working directory; the last PATH= wins."""
    value = DEFAULT_PATH
    for entry in env:
        if entry.startswith("PATH="):
            value = entry[5:]
    return [directory or "." for directory in value.split(":")]


def _why_not(kernel: Kernel, path: str) -> int:
    """0 when `path` can be executed, else the errno that says why not."""
    try:
        mode = kernel.stat(path).mode
    except OSError as error:
        return error.errno or errno.EIO
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    if not stat.S_ISREG(mode) or not kernel.executable(path):
        return errno.EACCES
    return 0


def _refusal(name: str, path: str, number: int, reason: str = "") -> SetupError:
    words = reason or os.strerror(number).lower()
    exit_code = NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
    if not reason and number == errno.ENOENT:
        words = f"stat {path}: {words}"
    return SetupError(f'exec: "{name}": {words}', number, exit_code)


def check_sysctl(name: str, namespaces: Namespaces) -> None:
    """Refuse a sysctl that is not the container's own; SpecError."""
    if name.startswith("net."):
        kind = "network"
    elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        kind = "ipc"
    elif name == "kernel.domainname":
        kind = "uts"
    else:
        raise SpecError(f"linux.sysctl.{name} would change the whole machine")
    if not namespaces.own(kind):
        raise SpecError(f"linux.sysctl.{name} needs a {kind} namespace of the container's own")
