"""Services as systemd, launchd and Windows get them; installed by stand-ins for their programs."""

from __future__ import annotations

import configparser
import plistlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidInput
from wherry.paths import Home, default_home
from wherry.service.definition import Service, describe_service, service_label
from wherry.service.launchd import Launchd
from wherry.service.logon import Logon
from wherry.service.rendering import (
    RUN_VALUE_LIMIT,
    launchd_plist,
    program_of_plist,
    program_of_run_key,
    program_of_systemd,
    run_key_command,
    systemd_quote,
    systemd_service,
    systemd_socket,
)
from wherry.service.running import Done, ServiceError
from wherry.service.systemd import Systemd

SERVICE = Service(
    machine="default",
    label="wherry-default",
    program="/opt/my tools/100%/python$3",
    environment={"WHERRY_HOME": '/home/me/a "b" \\c 5%', "HTTPS_PROXY": "http://u:p%40@proxy:3128"},
    home=Path("/home/me/a b"),
    socket=Path("/home/me/a b/100%/api.sock"),
    log=Path("/home/me/a b/100%/engine.log"),
)
BARE = replace(SERVICE, environment={"WHERRY_HOME": "/h"})


def parse(unit: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    parser.read_string(unit)
    return parser


def words(line: str) -> list[str]:
    """What systemd makes of an Exec line without variables: systemd.service(5), "Command lines"."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


class Programs:
    """Stands in for systemctl and launchctl: notes what is run, fails where it is told to."""

    def __init__(self, answers: Mapping[str, Done] | None = None) -> None:
        self.ran: list[str] = []
        self.answers = dict(answers or {"is-system-running": Done(0, "running")})

    def __call__(self, command: Sequence[str]) -> Done:
        line = " ".join(command)
        self.ran.append(line)
        for part, answer in self.answers.items():
            if part in line:
                return answer
        return Done(0)


def test_a_systemd_unit_keeps_spaces_quotes_percents_and_dollars() -> None:
    unit = parse(systemd_service(SERVICE))
    assert words(unit["Service"]["ExecStart"]) == SERVICE.command
    assert words(unit["Service"]["ExecStop"].removeprefix("-")) == SERVICE.farewell
    assert unit["Service"]["StandardError"] == "append:/home/me/a b/100%%/engine.log"
    assert 'Environment="WHERRY_HOME=/home/me/a \\"b\\" \\\\c 5%%"' in systemd_service(SERVICE)
    assert parse(systemd_socket(SERVICE))["Socket"]["ListenStream"].endswith("/100%%/api.sock")


def test_the_engine_ends_alone_and_its_socket_is_its_owners() -> None:
    service = parse(systemd_service(SERVICE))
    assert service["Service"]["KillMode"] == "process"
    assert service["Unit"]["Requires"] == "wherry-default.socket"
    assert service["Install"]["WantedBy"] == "default.target"
    socket = parse(systemd_socket(SERVICE))
    assert socket["Socket"]["SocketMode"] == "0600"
    assert socket["Install"]["WantedBy"] == "sockets.target"


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"])))
def test_systemd_reads_back_what_was_quoted(text: str) -> None:
    assert words(systemd_quote(text).replace("$", "$$")) == [text.replace("$$", "$$")]


@given(st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Cc"]), min_size=1))
def test_the_program_of_a_service_is_read_back(program: str) -> None:
    service = replace(SERVICE, program=program)
    assert program_of_systemd(systemd_service(service)) == program
    assert program_of_plist(launchd_plist(service)) == program


def test_the_program_of_a_run_key_is_read_back_and_of_others_files_none() -> None:
    service = replace(SERVICE, program=r"C:\Program Files\Python\python.exe", home=Path("h"))
    assert program_of_run_key(run_key_command(service)) == r"C:\Program Files\Python\pythonw.exe"
    assert program_of_run_key(r"C:\Python\pythonw.exe -m wherry") == r"C:\Python\pythonw.exe"
    assert program_of_systemd("[Service]\nExecStart=/bin/true\n") is None
    assert program_of_plist(b"no list") is None
    assert program_of_plist(plistlib.dumps({})) is None


def test_a_launch_agent_has_the_socket_and_lets_qemu_live() -> None:
    agent = plistlib.loads(launchd_plist(SERVICE))
    assert agent["ProgramArguments"] == SERVICE.command
    assert agent["EnvironmentVariables"] == dict(SERVICE.environment)
    assert agent["Sockets"]["Listener"]["SockPathName"] == str(SERVICE.socket)
    assert agent["Sockets"]["Listener"]["SockPathMode"] == 0o600
    assert agent["AbandonProcessGroup"] is True
    assert agent["RunAtLoad"] is True


def test_the_run_key_has_no_console_and_names_the_home() -> None:
    program = r"C:\Program Files\Python\python.exe"
    command = run_key_command(replace(BARE, program=program, home=Path("C:/Us er/Wherry")))
    assert command.startswith(r'"C:\Program Files\Python\pythonw.exe" -m wherry.engine')
    assert command.endswith('--home "C:/Us er/Wherry"')


def test_a_command_too_long_for_windows_is_refused() -> None:
    with pytest.raises(InvalidInput, match=str(RUN_VALUE_LIMIT)):
        run_key_command(replace(BARE, program="C:\\" + "x" * 250 + "\\python.exe"))


def test_labels_of_other_homes_differ() -> None:
    usual, other = Home(default_home({})), Home(Path("/elsewhere"))
    assert service_label(usual, "m") == "wherry-m"
    assert service_label(other, "m").startswith("wherry-m-")
    assert service_label(other, "m") != service_label(Home(Path("/else")), "m")


def test_a_service_takes_settings_and_proxies_along_and_nothing_else(tmp_path: Path) -> None:
    environ = {
        "WHERRY_QEMU": "/q", "WHERRY_HOME": "/wrong", "https_proxy": "http://p", "SECRET": "x",
        "NO_PROXY": "",
    }  # fmt: skip
    service = describe_service(Home(tmp_path), "m", program="py", environ=environ)
    assert service.environment == {
        "WHERRY_HOME": str(tmp_path), "WHERRY_QEMU": "/q", "https_proxy": "http://p",
    }  # fmt: skip
    assert service.command == ["py", "-m", "wherry.engine", "--machine", "m", "--service"]


def test_control_characters_and_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="control characters"):
        describe_service(Home(tmp_path), "m", environ={"WHERRY_QEMU": "a\nExecStart=/bin/evil"})
    with pytest.raises(InvalidInput, match="machine's name"):
        describe_service(Home(tmp_path), "../m", environ={})


def systemd(tmp_path: Path, programs: Programs) -> Systemd:
    return Systemd(programs, {"XDG_CONFIG_HOME": str(tmp_path)}, linger=tmp_path / "linger")


def test_systemd_install_starts_the_socket_first_and_hints_at_linger(tmp_path: Path) -> None:
    programs = Programs()
    manager = systemd(tmp_path, programs)
    manager.check()
    hints = manager.install(SERVICE)
    assert programs.ran[1:] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable wherry-default.socket wherry-default.service",
        "systemctl --user stop wherry-default.socket wherry-default.service",
        "systemctl --user start wherry-default.socket",
        "systemctl --user start wherry-default.service",
    ]
    assert "loginctl enable-linger" in hints[0]
    assert manager.installed("wherry-default")
    file = tmp_path / "systemd" / "user" / "wherry-default.service"
    assert file.stat().st_mode & 0o077 == 0 or file.drive  # a proxy's password may be in it


def test_who_lingers_gets_no_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    (tmp_path / "linger").mkdir()
    (tmp_path / "linger" / "me").touch()
    assert systemd(tmp_path, Programs()).install(SERVICE) == []


def test_systemd_uninstall_leaves_nothing(tmp_path: Path) -> None:
    programs = Programs()
    manager = systemd(tmp_path, programs)
    assert not manager.uninstall("wherry-default")
    manager.install(SERVICE)
    assert manager.uninstall("wherry-default")
    assert not list((tmp_path / "systemd" / "user").iterdir())
    disable = "systemctl --user disable --now wherry-default.socket wherry-default.service"
    assert disable in programs.ran


def test_without_systemd_uninstall_removes_the_links_too(tmp_path: Path) -> None:
    manager = systemd(tmp_path, Programs())
    manager.install(SERVICE)
    wants = tmp_path / "systemd" / "user" / "default.target.wants"
    wants.mkdir()
    (wants / "wherry-default.service").symlink_to("../wherry-default.service")
    gone = Programs({"systemctl": Done(1, "offline")})
    assert systemd(tmp_path, gone).uninstall("wherry-default")
    assert not list(wants.iterdir())
    assert not systemd(tmp_path, gone).listening("wherry-default")


@pytest.mark.parametrize(
    "answer", [Done(1, "offline"), Done(1, "", "Failed to connect to bus: No medium found")]
)
def test_where_systemd_does_not_run_that_is_said_with_what_to_do(
    tmp_path: Path, answer: Done
) -> None:
    with pytest.raises(ServiceError, match="no services for this user") as caught:
        systemd(tmp_path, Programs({"is-system-running": answer})).check()
    assert (answer.err or answer.out) in caught.value.message
    assert "in a container there is no systemd" in str(caught.value.hint)


def test_what_systemctl_refuses_is_told(tmp_path: Path) -> None:
    programs = Programs({"start wherry-default.socket": Done(1, "", "first\nJob failed.")})
    with pytest.raises(ServiceError, match=r"start wherry-default\.socket: Job failed"):
        systemd(tmp_path, programs).install(SERVICE)


def test_launchd_replaces_an_agent_that_is_loaded(tmp_path: Path) -> None:
    programs = Programs()
    manager = Launchd(programs, tmp_path, uid=501)
    manager.check()
    manager.install(SERVICE)
    file = tmp_path / "Library" / "LaunchAgents" / "wherry-default.plist"
    assert programs.ran[2:] == [
        "launchctl bootout gui/501/wherry-default",
        f"launchctl bootstrap gui/501 {file}",
    ]
    assert plistlib.loads(file.read_bytes())["Label"] == "wherry-default"
    assert manager.uninstall("wherry-default")
    assert not file.exists()
    assert not manager.uninstall("wherry-default")


def test_launchd_without_a_session_says_so(tmp_path: Path) -> None:
    programs = Programs({"print gui/501": Done(113, "", "Could not find domain")})
    with pytest.raises(ServiceError, match="no session"):
        Launchd(programs, tmp_path, uid=501).check()


class Values(dict[str, str]):
    """A registry key."""

    def set(self, name: str, value: str) -> None:
        self[name] = value

    def delete(self, name: str) -> None:
        del self[name]


def test_windows_logon_starts_the_engine_and_tells_what_it_cannot_carry() -> None:
    values = Values()
    manager = Logon(values)
    service = replace(BARE, program="py.exe", environment={"WHERRY_HOME": "/h", "WHERRY_QEMU": "q"})
    manager.check()
    assert manager.install(replace(service, environment={"WHERRY_HOME": "/h"})) == []
    assert "set WHERRY_QEMU for your account" in manager.install(service)[0]
    assert "--service --home" in values["wherry-default"]
    assert manager.installed("wherry-default")
    assert manager.uninstall("wherry-default")
    assert not manager.uninstall("wherry-default")
    assert values == {}
