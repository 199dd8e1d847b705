"""The OCI command line's pure parts: arguments, signals, paths, ids, limits. On any OS."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from wherry_guest.core.hooks import STAGES
from wherry_guest.oci import arguments, cgroup, features, update
from wherry_guest.oci.errors import OciError
from wherry_guest.oci.log import LEVELS, Log
from wherry_guest.oci.main import main
from wherry_guest.oci.store import check_id


def test_runcs_flags_are_understood() -> None:
    given = arguments.parse(
        ["--root", "/r", "--log", "/l", "--log-format", "json", "create", "--bundle", "/b",
         "--console-socket", "/c", "--pid-file", "/p", "--no-pivot", "--no-new-keyring",
         "--preserve-fds", "2", "name"]
    )  # fmt: skip
    assert (given.command, given.id, given.bundle) == ("create", "name", Path("/b"))
    assert (given.root, given.preserve_fds, given.no_pivot) == (Path("/r"), 2, True)


def test_an_execs_own_flags_end_at_the_container() -> None:
    given = arguments.parse(["exec", "-t", "-e", "A=b", "name", "ls", "-l", "--env", "x"])
    assert (given.id, given.args) == ("name", ["ls", "-l", "--env", "x"])
    assert (given.tty, given.env) == (True, ["A=b"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--systemd-cgroup", "state", "x"], "systemd are not supported: use the cgroupfs manager"),
        (["--cgroup-manager", "systemd", "state", "x"], "systemd are not supported"),
        (["checkpoint", "--image-path", "/x", "x"], "^checkpoint is not supported"),
        (["checkpoint", "--help"], "^checkpoint is not supported"),
        (["restore", "-d", "x"], "^restore is not supported"),
        (["--criu", "/usr/sbin/criu", "state", "x"], "^--criu is not supported"),
        (["--rootless", "true", "state", "x"], "^--rootless true is not supported: only root"),
        (["create", "--preserve-fds", "-1", "x"], "^--preserve-fds is below 0"),
    ],
)
def test_what_is_refused_is_named_and_logged(argv: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(OciError, match=said):
        arguments.check(arguments.parse(argv))
    assert main(["--log", str(tmp_path / "log"), "--log-format", "json", *argv]) == 1
    assert re.search(said, json.loads((tmp_path / "log").read_text())["msg"])


def test_a_log_has_what_its_level_says(tmp_path: Path) -> None:
    for level in LEVELS:
        log = Log(tmp_path / level, level=level)
        log.error("a")
        log.warning("b")
        log.debug("c")
    lines = {level: len((tmp_path / level).read_text().splitlines()) for level in LEVELS}
    assert lines == {"error": 1, "warning": 2, "info": 2, "debug": 3}


@pytest.mark.parametrize("argv", [["x"], ["kill"], ["state", "a", "b"], ["run", "--nonsense", "a"]])
def test_usage_errors_are_errors_of_one_line(argv: list[str]) -> None:
    with pytest.raises(OciError) as failure:
        arguments.parse(argv)
    assert "\n" not in failure.value.message
    assert main(argv) == 1


@pytest.mark.parametrize("id", ["a", "A-b_c.d+1", "9", "x" * 1024])
def test_ids(id: str) -> None:
    check_id(id)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "ü", "a\n", "x" * 1025])
def test_ids_that_are_none(id: str) -> None:
    with pytest.raises(OciError, match="container ID"):
        check_id(id)


@pytest.mark.parametrize(
    ("path", "place"),
    [("", "wherry-oci/x"), ("a/b", "wherry-oci/a/b"), ("/a/b", "a/b"), ("/a/", "a")],
)
def test_a_cgroups_place(path: str, place: str) -> None:
    assert cgroup.place(path, "x") == place


@pytest.mark.parametrize("path", ["/", "/..", "/a/../b", "../a", "a//b", "slice:prefix:name"])
def test_cgroup_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(OciError, match=r"linux\.cgroupsPath"):
        cgroup.place(path, "x")


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="Linux's signals")
def test_signals() -> None:
    from wherry_guest.oci.life import signal_number

    for text, number in (("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGHUP", 1)):
        assert signal_number(text) == number
    assert signal_number("RTMIN+3") == signal_number("SIGRTMIN") + 3
    for text in ("", "0", "nonsense", "SIG", "99", "RTMIN+99", "RTMIN+x"):
        with pytest.raises(OciError, match="unknown signal"):
            signal_number(text)


def test_update_flags_become_resources() -> None:
    given = {"memory": "64M", "cpu-share": "512", "cpuset-cpus": "0-1", "pids-limit": "-1"}
    assert update.from_flags(given) == {
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "cpus": "0-1"},
        "pids": {"limit": -1},
    }
    with pytest.raises(OciError, match="--memory 'x' is not a number"):
        update.from_flags({"memory": "x"})


def test_features_say_what_there_is() -> None:
    it = features.features()
    assert it["hooks"] == list(STAGES)
    assert {"rbind", "rro", "ridmap", "runbindable", "tmpcopyup"} <= set(it["mountOptions"])
    assert it["linux"]["cgroup"]["systemd"] is False


def test_the_log_has_runcs_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Log(tmp_path / "log", "json").error('a "quoted" line')
    assert json.loads((tmp_path / "log").read_text())["msg"] == 'a "quoted" line'
    assert capsys.readouterr().err == 'a "quoted" line\n'
    Log(tmp_path / "text").warning("odd")
    assert 'level=warning msg="odd"' in (tmp_path / "text").read_text()
    Log().error("plain")
    assert capsys.readouterr().err == "error: plain\n"


def test_spec_is_written_once(tmp_path: Path) -> None:
    features.write_spec(tmp_path)
    with pytest.raises(OciError, match="exists already"):
        features.write_spec(tmp_path)
