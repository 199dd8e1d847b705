"""Who the process will be: `process.user`, resolved in the container's own files.

Rules: the files are read when the root is the container's already, so that no link leads out of
it; they are an image's, that is, hostile: regular files only, bounded, broken lines skipped. The
meaning of `name:group` is Docker's (github.com/moby/sys/user, GetExecUser).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.spec import User
from wherry_guest.core.steps import Identity, SetupError
from wherry_guest.core.syscalls import PR_SET_KEEPCAPS

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

MAX_FILE: Final = 4 * 1024 * 1024
"""Bytes of a passwd or group file that are read."""

_MAX_ID: Final = 2**32 - 2
_PTY_SLAVES: Final = range(136, 144)  # majors, Documentation/admin-guide/devices.txt

_os: Final[Any] = os  # O_NONBLOCK exists on POSIX only; mypy checks all platforms


@dataclass(frozen=True, slots=True)
class Account:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


def parse_passwd(text: str) -> Iterator[Account]:
    """passwd(5), as far as it is asked for; lines that are not one are skipped."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and _is_id(fields[2]) and _is_id(fields[3]):
            yield Account(fields[0], int(fields[2]), int(fields[3]), fields[5])


def parse_group(text: str) -> list[Group]:
    """group(5); lines that are not one are skipped."""
    groups = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and _is_id(fields[2]):
            members = fields[3].split(",") if len(fields) > 3 else []
            groups.append(Group(fields[0], int(fields[2]), tuple(filter(None, members))))
    return groups


def resolve(user: User, accounts: Iterable[Account], groups: Iterable[Group]) -> Identity:
    """The identity for `user`.

    Raises:
        SetupError: a name that stands in no file.
    """
    groups = list(groups)
    named = [_find_group(name, groups) for name in user.additional_groups]
    added = (*user.additional_gids, *named)
    if not user.username:
        home = next((entry.home for entry in accounts if entry.uid == user.uid), "")
        return Identity(user.uid, user.gid, _unique(added), home or "/")
    name, _, group = user.username.partition(":")
    account = _find_account(name or "0", accounts)
    gid = account.gid
    more: tuple[int, ...] = ()
    if group:
        gid = _find_group(group, groups)
    else:
        more = tuple(entry.gid for entry in groups if account.name in entry.members)
    return Identity(account.uid, gid, _unique((*more, *added)), account.home or "/")


def _find_account(name: str, accounts: Iterable[Account]) -> Account:
    number = int(name) if _is_id(name) else None
    for account in accounts:
        if account.name == name or account.uid == number:
            return account
    if number is None:
        raise SetupError(f"unable to find user {name}: no matching entries in passwd file")
    return Account("", number, 0, "/")


def _find_group(name: str, groups: list[Group]) -> int:
    number = int(name) if _is_id(name) else None
    for group in groups:
        if group.name == name or group.gid == number:
            return group.gid
    if number is None:
        raise SetupError(f"unable to find group {name}: no matching entries in group file")
    return number


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID


def _unique(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))


@dataclass(frozen=True, slots=True)
class ResolveUser:
    """Find out who the process will be."""

    user: User

    def describe(self) -> str:
        return f"find the user {self.user.username or self.user.uid}"

    def execute(self, kernel: Kernel, state: State) -> None:
        accounts = parse_passwd(read_file(kernel, "/etc/passwd"))
        by_name = self.user.username or self.user.additional_groups
        groups = parse_group(read_file(kernel, "/etc/group")) if by_name else []
        state.identity = resolve(self.user, accounts, groups)


@dataclass(frozen=True, slots=True)
class BecomeUser:
    """Change to that user, keeping permitted capabilities until the final sets are put.

    Stdio that is a pipe or a terminal becomes the user's, so that /dev/stdout can be reopened.
    """

    def describe(self) -> str:
        return "change the user (process.user)"

    def execute(self, kernel: Kernel, state: State) -> None:
        identity = state.identity
        if identity is None:
            raise SetupError(f"{self.describe()}: nobody has resolved it")
        if identity.uid:
            _own_stdio(kernel, identity.uid)
        kernel.prctl(PR_SET_KEEPCAPS, 1)
        kernel.setgroups(identity.groups)
        kernel.setgid(identity.gid)
        kernel.setuid(identity.uid)
        kernel.prctl(PR_SET_KEEPCAPS, 0)


def _own_stdio(kernel: Kernel, uid: int) -> None:
    for fd in (0, 1, 2):
        status = kernel.stat(fd)
        terminal = stat.S_ISCHR(status.mode) and status.major in _PTY_SLAVES
        if not terminal and not stat.S_ISFIFO(status.mode):
            continue  # a file, a socket, or the VM's own /dev/null
        try:
            kernel.fchown(fd, uid, -1)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


def read_file(kernel: Kernel, path: str) -> str:
    """A regular file's text, at most MAX_FILE bytes; "" for what is missing or no such file."""
    try:
        fd = kernel.open(path, os.O_RDONLY | _os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES):
            return ""
        raise
    try:
        if not stat.S_ISREG(kernel.stat(fd).mode):
            return ""
        return kernel.read(fd, MAX_FILE).decode(errors="replace")
    finally:
        kernel.close(fd)
