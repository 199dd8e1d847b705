"""Who the process will be, as flat programs find out; see `core.flatten` and `core.users`.

With numbers given and HOME in the environment there is nothing to find out. Where only HOME is
missing for root, the first line of /etc/passwd says it nearly always. Else the program reads the
container's files and asks PID 1, which resolves as the step would.

The question: QUESTION, two 64-bit lengths, then passwd and group. The answer: see `answer`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core import syscalls
from wherry_guest.core.flat import Data, Label, NotFlat, Result
from wherry_guest.core.flat_making import MSG_NOSIGNAL, O_NONBLOCK, O_RDONLY, Making
from wherry_guest.core.steps import SetupError
from wherry_guest.core.users import (
    BecomeUser,
    ResolveUser,
    parse_group,
    parse_passwd,
    resolve,
)

if TYPE_CHECKING:
    from wherry_guest.core.spec import User

QUESTION: Final = b"identify"

MOST_GROUPS: Final = 64
MOST_HOME: Final = 512

_FILE_ROOM: Final = 16 * 1024
"""Bytes of a passwd or group file; a longer one is the step's."""

_UNREADABLE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EACCES)
_ROOT_LINE: Final = b"root:x:0:0:root:/root:"
_ROOT_HOME: Final = "/root"
_REGULAR: Final = 0o100000  # S_IFREG, uapi/linux/stat.h
_FIFO: Final = 0o010000  # S_IFIFO
_CHARACTER: Final = 0o020000  # S_IFCHR
_PTY_MAJORS: Final = 136  # to 143, Documentation/admin-guide/devices.txt
_PTY_MASK: Final = 0xFFFFFFF8

_ANSWER: Final = struct.Struct("<QQQ")  # uid, gid, number of groups
_HOME_AT: Final = _ANSWER.size
_GROUPS_AT: Final = _HOME_AT + MOST_HOME
_ANSWER_BYTES: Final = _GROUPS_AT + 4 * MOST_GROUPS
"""uid, gid, the number of groups; "HOME=…" as C has it; the groups, 32 bits each."""


def answer(user: User, question: bytes) -> bytes:
    """What a program is told that has asked who `user` is. SetupError: it cannot be said."""
    passwd_size, group_size = struct.unpack_from("<QQ", question, len(QUESTION))
    start = len(QUESTION) + 16
    passwd = question[start : start + passwd_size].decode(errors="replace")
    group = question[start + passwd_size :][:group_size].decode(errors="replace")
    identity = resolve(user, parse_passwd(passwd), parse_group(group) if group else [])
    home = f"HOME={identity.home}".encode(errors="surrogateescape")
    if len(home) >= MOST_HOME or len(identity.groups) > MOST_GROUPS:
        raise SetupError("this is more than the answer has room for")
    head = _ANSWER.pack(identity.uid, identity.gid, len(identity.groups))
    groups = struct.pack(f"<{len(identity.groups)}I", *identity.groups)
    return (head + home.ljust(MOST_HOME, b"\0") + groups).ljust(_ANSWER_BYTES, b"\0")


def resolve_user(making: Making, step: ResolveUser) -> None:
    user = step.user
    flat, home = making.flat, None if making.has_home else making.flat.data(bytes(8))
    making.home = home
    if user.username or user.additional_groups:
        place = _ask(making, groups=True)
        making.user = (_stored(place), _stored(place + 8), _stored(place + 16), place + _GROUPS_AT)
        if home is not None:
            flat.copy(home, flat.pointers([place + _HOME_AT]))
        return
    groups = tuple(dict.fromkeys(user.additional_gids))
    list_place = flat.data(struct.pack(f"<{len(groups)}I", *groups))
    making.user = (user.uid, user.gid, len(groups), list_place)
    if home is None:
        return
    known, ask = Label(), Label()
    _read_first_line(making, home, known, ask, is_root=user.uid == 0)
    flat.place(ask)
    place = _ask(making, groups=False)
    flat.copy(home, flat.pointers([place + _HOME_AT]))
    flat.place(known)


def become_user(making: Making, step: BecomeUser) -> None:
    flat = making.flat
    if making.user is None:
        raise NotFlat("nobody has resolved the user")
    uid, gid, count, groups = making.user
    if isinstance(uid, Result):
        past, other = Label(), Label()
        assert uid.place is not None
        flat.check(uid.place, 0xFFFFFFFF, 0, other)
        flat.goto(past)
        flat.place(other)
        _own_stdio(making, uid)
        flat.place(past)
    elif uid:
        _own_stdio(making, uid)
    flat.call("prctl", syscalls.PR_SET_KEEPCAPS, 1, 0, 0, 0)
    flat.call("setgroups", count, groups)
    flat.call("setresgid", gid, gid, gid)
    flat.call("setresuid", uid, uid, uid)
    flat.call("prctl", syscalls.PR_SET_KEEPCAPS, 0, 0, 0, 0)


def _read_first_line(making: Making, home: Data, known: Label, ask: Label, is_root: bool) -> None:
    """Go to `known` with HOME in place, or to `ask`."""
    flat, nowhere = making.flat, Label()
    path = flat.text("/etc/passwd")
    fd = making.open(path, O_RDONLY | O_NONBLOCK, taken=_UNREADABLE, then=nowhere)
    making.statx(fd)
    making.check_type(_REGULAR, nowhere)
    if not is_root:
        flat.goto(ask)
    else:
        line = flat.scratch(len(_ROOT_LINE))
        flat.call("pread64", fd, line, len(_ROOT_LINE), 0)
        making.close(fd)
        for at in range(0, len(_ROOT_LINE), 4):
            word = _ROOT_LINE[at : at + 4]
            mask = 2 ** (8 * len(word)) - 1
            flat.check(line + at, mask, int.from_bytes(word, "little"), ask)
        flat.copy(home, flat.pointers([flat.text(f"HOME={_ROOT_HOME}")]))
        flat.goto(known)
    flat.place(nowhere)
    flat.copy(home, flat.pointers([flat.text("HOME=/")]))
    flat.goto(known)


def _ask(making: Making, groups: bool) -> int:
    """Where the answer stands."""
    flat = making.flat
    question = flat.data(QUESTION + bytes(16))
    vectors = flat.data(struct.pack("<QQQQQQ", 0, len(QUESTION) + 16, 0, 0, 0, 0))
    flat.point(vectors, question)
    for index, path in enumerate(["/etc/passwd", "/etc/group"] if groups else ["/etc/passwd"]):
        buffer, past = flat.scratch(_FILE_ROOM), Label()
        size = question.at(len(QUESTION) + 8 * index)
        fd = making.open(flat.text(path), O_RDONLY | O_NONBLOCK, taken=_UNREADABLE, then=past)
        making.statx(fd)
        making.check_type(_REGULAR, past)
        flat.keep(flat.call("read", fd, buffer, _FILE_ROOM), size)
        flat.check(size, ~(_FILE_ROOM - 1) & 0xFFFFFFFF, 0)  # it did not fill the room
        flat.point(vectors.at(16 + 16 * index), buffer)
        flat.copy(vectors.at(24 + 16 * index), size)
        making.close(fd)
        flat.place(past)
    message = flat.data(struct.pack("<QQQQQQQ", 0, 0, 0, 3, 0, 0, 0))  # struct msghdr
    flat.point(message.at(16), vectors)
    flat.call("sendmsg", making.fds.status, message, MSG_NOSIGNAL)
    place = flat.scratch(_ANSWER_BYTES)
    size = flat.keep(flat.call("recvfrom", making.fds.status, place, _ANSWER_BYTES, 0, 0, 0))
    flat.check(size, 0xFFFFFFFF, _ANSWER_BYTES)
    return place


def _own_stdio(making: Making, uid: int | Result) -> None:
    """Pipes and terminals become the user's."""
    flat = making.flat
    for fd in (0, 1, 2):
        past, own, no_pipe = Label(), Label(), Label()
        making.statx(fd)
        making.check_type(_FIFO, no_pipe)
        flat.goto(own)
        flat.place(no_pipe)
        making.check_type(_CHARACTER, past)
        making.check_major(_PTY_MAJORS, _PTY_MASK, past)
        flat.place(own)
        refusals = (errno.EINVAL, errno.EPERM, errno.EROFS)
        flat.call("fchown", fd, uid, 0xFFFFFFFF, taken=refusals)
        flat.place(past)


def _stored(place: int) -> Result:
    """What stands there when the program runs."""
    result = Result()
    result.place = place
    return result


STEPS: Final[Mapping[type, Callable[[Making, Any], None]]] = {
    ResolveUser: resolve_user,
    BecomeUser: become_user,
}
