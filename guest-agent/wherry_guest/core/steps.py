"""What a step is, what steps share, and how a plan is run.

Rules: a step is a small frozen value with `describe()` (words for a person, no capital, no full
stop) and `execute(kernel, state)`. It runs in the forked child and touches the system through
`kernel` only. Steps leave for each other in `State` what is known only while running.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

SETUP_FAILED = 125
"""Docker's exit code for "the container itself could not be set up"."""


class SetupError(Exception):
    """A step's refusal that is not a system call's: `message` says all, `exit_code` is Docker's."""

    def __init__(self, message: str, number: int = 0, exit_code: int = SETUP_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.errno = number
        self.exit_code = exit_code


class StepFailed(Exception):
    """A plan ended at `step`; `message` is one line for a person."""

    def __init__(self, step: str, number: int, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.errno = number
        self.exit_code = exit_code
        self.message = message


def _no_terminal(master: int) -> None:
    raise SetupError("nobody takes the terminal")


def _no_answer(request: str) -> None:
    raise SetupError(f"nobody answers the request {request!r}")


def _no_start() -> None:
    raise SetupError("nobody will start the container")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the process will be: ids, supplementary groups, and its home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(slots=True)
class State:
    """What running steps hand to later ones.

    Args:
        send_terminal: takes the pty's master to whoever made this process.
        ask: waits until that one has done what is asked for.
        await_start: says that all is ready, and waits for the word to go on.
        trees: detached mounts, by the index of the mount (or the device's path) they are for.
        locks: where those who fill the mount of that index wait for each other.
        root: the detached mount that becomes the root.
        user_namespace: the descriptor of the one that will be entered.
        outer_pid: this process's pid as its maker sees it, when it is needed.
        program: the file to execute, once it was found.
        reaper: the descriptor of the program that is to execute that one, if any is.
        identity: who the process will be.
        terminal: the pty's slave, when there is one.
        masked_directory: a path that has the empty read-only directory on it already.
    """

    send_terminal: Callable[[int], None] = _no_terminal
    ask: Callable[[str], None] = _no_answer
    await_start: Callable[[], None] = _no_start
    trees: dict[int | str, int] = field(default_factory=dict)
    locks: dict[int, int] = field(default_factory=dict)
    root: int | None = None
    user_namespace: int | None = None
    outer_pid: int = 0
    program: str | None = None
    reaper: int | None = None
    identity: Identity | None = None
    terminal: int | None = None
    masked_directory: str | None = None

    def descriptors(self) -> list[int]:
        """What a forked child needs of it."""
        single = (self.root, self.user_namespace)
        return [
            *self.trees.values(),
            *self.locks.values(),
            *(fd for fd in single if fd is not None),
        ]


class Step(Protocol):
    """One thing to do."""

    def describe(self) -> str: ...

    def execute(self, kernel: Kernel, state: State) -> None: ...


def run(plan: Iterable[Step], kernel: Kernel, state: State) -> None:
    """Execute every step; the last one of a whole plan (exec) does not return.

    Raises:
        StepFailed: with the step's own description.
    """
    for step in plan:
        try:
            step.execute(kernel, state)
        except SetupError as error:
            name = step.describe()
            raise StepFailed(name, error.errno, error.exit_code, error.message) from error
        except OSError as error:
            raise failed(step.describe(), error) from error


def failed(step: str, error: OSError) -> StepFailed:
    """The failure of `step` by a system call."""
    number = error.errno or 0
    reason = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    return StepFailed(step, number, SETUP_FAILED, f"{step}: {reason}")


def make_directories(kernel: Kernel, path: str, mode: int = 0o755) -> None:
    """mkdir -p; what exists may be anything that a path can go through."""
    missing = []
    while path != "/":
        try:
            kernel.mkdir(path, mode)
            break
        except FileExistsError:
            break
        except FileNotFoundError:
            missing.append(path)
            path = path.rpartition("/")[0] or "/"
    for path in reversed(missing):
        kernel.mkdir(path, mode)
