"""`process.user` in the container's files: what Docker makes of names, numbers and broken lines."""

from __future__ import annotations

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording_kernel import RecordingKernel

from wherry_guest.core.process import find_program, search_path
from wherry_guest.core.spec import User
from wherry_guest.core.steps import Identity, SetupError
from wherry_guest.core.syscalls import FileStatus
from wherry_guest.core.users import parse_group, parse_passwd, read_file, resolve

PASSWD = list(
    parse_passwd("root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/srv/web:\n7:x:500:501::/h:\n")
)
GROUP = parse_group("root:x:0:\nweb:x:44:\nstaff:x:50:web,root\nadm:x:4:web\n")


@pytest.mark.parametrize(
    ("username", "wanted"),
    [
        ("web", Identity(33, 44, (50, 4), "/srv/web")),
        ("33", Identity(33, 44, (50, 4), "/srv/web")),
        ("web:staff", Identity(33, 50, (), "/srv/web")),
        ("web:99", Identity(33, 99, (), "/srv/web")),
        ("1234", Identity(1234, 0, (), "/")),
        ("1234:staff", Identity(1234, 50, (), "/")),
        (":staff", Identity(0, 50, (), "/root")),
        ("root", Identity(0, 0, (50,), "/root")),
        ("7", Identity(500, 501, (), "/h")),  # a name made of digits comes first
    ],
)
def test_names_and_numbers(username: str, wanted: Identity) -> None:
    assert resolve(User(username=username), PASSWD, GROUP) == wanted


def test_without_a_name_the_numbers_are_taken_and_home_is_looked_up() -> None:
    user = User(uid=33, gid=5, additional_gids=(9, 9, 10))
    assert resolve(user, PASSWD, GROUP) == Identity(33, 5, (9, 10), "/srv/web")


def test_more_groups_are_names_or_numbers() -> None:
    user = User(username="web", additional_gids=(9,), additional_groups=("adm", "7", "9"))
    assert resolve(user, PASSWD, GROUP).groups == (50, 4, 9, 7)
    assert resolve(User(additional_groups=("staff",)), PASSWD, GROUP).groups == (50,)
    with pytest.raises(SetupError, match="unable to find group none"):
        resolve(User(additional_groups=("none",)), PASSWD, GROUP)


@pytest.mark.parametrize(
    ("username", "message"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("web:none", "unable to find group none: no matching entries in group file"),
        ("99999999999", "unable to find user 99999999999"),
        ("-1", "unable to find user -1"),
    ],
)
def test_unknown_names_are_errors(username: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        resolve(User(username=username), PASSWD, GROUP)


@given(st.text(st.characters(codec="utf-8")))
def test_hostile_files_are_read_without_an_error(text: str) -> None:
    for account in parse_passwd(text):
        assert 0 <= account.uid < 2**32 - 1
    for group in parse_group(text):
        assert 0 <= group.gid < 2**32 - 1


def test_what_is_no_regular_file_is_not_read() -> None:
    statuses = {"/etc/passwd": FileStatus(stat.S_IFIFO)}
    assert read_file(RecordingKernel({"/etc/passwd": "x"}, statuses), "/etc/passwd") == ""
    failing = {("open", "/etc/passwd"): errno.ELOOP}
    assert read_file(RecordingKernel(failing=failing), "/etc/passwd") == ""


# The command along PATH.

FILE = FileStatus(stat.S_IFREG | 0o755)


def test_the_last_path_wins_and_an_empty_part_is_the_working_directory() -> None:
    assert search_path(["PATH=/a", "X=1", "PATH=/b::/c"]) == ["/b", ".", "/c"]
    assert search_path([])[0] == "/usr/local/sbin"


def test_directories_along_the_path_are_passed_over() -> None:
    kernel = RecordingKernel(statuses={"/b/app": FILE})  # /a/app is a directory
    assert find_program(kernel, "app", ["PATH=/a:/b"]) == "/b/app"


def test_a_directory_as_a_command_is_126() -> None:
    with pytest.raises(SetupError) as failure:
        find_program(RecordingKernel(), "/etc", [])
    assert (failure.value.exit_code, failure.value.errno) == (126, errno.EISDIR)


def test_only_what_cannot_be_executed_was_found_is_126() -> None:
    kernel = RecordingKernel(statuses={"/a/app": FileStatus(stat.S_IFCHR)})
    with pytest.raises(SetupError) as failure:
        find_program(kernel, "app", ["PATH=/a:/b"])
    assert (failure.value.exit_code, failure.value.errno) == (126, errno.EACCES)
