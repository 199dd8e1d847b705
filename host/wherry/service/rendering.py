"""Services as systemd, launchd and Windows have them written. Pure: values in, text out.

systemd.syntax(7), systemd.unit(5), systemd.service(5), systemd.socket(5); launchd.plist(5); the
`Run` key: Microsoft, "Run and RunOnce Registry Keys".
"""

from __future__ import annotations

import os
import plistlib
import re
import subprocess
from collections.abc import Sequence

from wherry.errors import InvalidInput
from wherry.service.definition import Service

RUN_VALUE_LIMIT = 260
"""Characters of a command line in the `Run` key."""

LAUNCHD_SOCKET = "Listener"
"""The name under which the engine asks launchd for its socket."""

_STOP_SECONDS = 60
_BACKLOG = 256


def systemd_socket(service: Service) -> str:
    """`LABEL.socket`: the API's socket, which systemd holds whether or not an engine runs."""
    return f"""\
[Unit]
Description=API of Wherry's machine {service.machine}

[Socket]
ListenStream={_specifiers(os.fspath(service.socket))}
SocketMode=0600
DirectoryMode=0700
Backlog={_BACKLOG}
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def systemd_service(service: Service) -> str:
    """`LABEL.service`: the engine.

    It ends alone (`KillMode=process`): QEMU is its child and outlives it, and the next engine takes
    it over. Only when the session itself ends the farewell stops the machine. An engine is not
    restarted for its own sake: the next connection does that, at once and as often as it takes.
    """
    environment = "\n".join(
        f"Environment={systemd_quote(f'{name}={value}')}"
        for name, value in service.environment.items()
    )
    log = _specifiers(os.fspath(service.log))
    return f"""\
[Unit]
Description=Wherry's engine of machine {service.machine}
Requires={service.label}.socket
After={service.label}.socket
StartLimitIntervalSec=0

[Service]
{environment}
ExecStart={_systemd_command(service.command)}
ExecStop=-{_systemd_command(service.farewell)}
TimeoutStopSec={_STOP_SECONDS}
KillMode=process
StandardOutput=append:{log}
StandardError=append:{log}

[Install]
WantedBy=default.target
"""


def launchd_plist(service: Service) -> bytes:
    """`LABEL.plist` of a launch agent.

    launchd holds the socket and starts the engine at the login (`RunAtLoad`) and at a connection;
    `AbandonProcessGroup` lets QEMU outlive the engine, as everywhere.
    """
    return plistlib.dumps(
        {
            "Label": service.label,
            "ProgramArguments": service.command,
            "EnvironmentVariables": dict(service.environment),
            "WorkingDirectory": os.fspath(service.home),
            "RunAtLoad": True,
            "AbandonProcessGroup": True,
            "ProcessType": "Interactive",  # else QEMU is slowed down as background work
            "ThrottleInterval": 1,
            "StandardOutPath": os.fspath(service.log),
            "StandardErrorPath": os.fspath(service.log),
            "Sockets": {
                LAUNCHD_SOCKET: {
                    "SockPathName": os.fspath(service.socket),
                    "SockPathMode": 0o600,
                    "SockType": "stream",
                }
            },
        },
        sort_keys=False,
    )


def run_key_command(service: Service) -> str:
    """The command line of a value of the `Run` key: no environment, no console.

    Raises:
        InvalidInput: it is too long for Windows.
    """
    arguments = [*service.command[1:], "--home", os.fspath(service.home)]
    command = subprocess.list2cmdline([windowless(service.program), *arguments])
    if len(command) > RUN_VALUE_LIMIT:
        raise InvalidInput(
            f"Windows starts no command of more than {RUN_VALUE_LIMIT} characters at a logon:"
            f" {command}",
            hint="install Wherry, or put WHERRY_HOME, where the path is shorter",
        )
    return command


def program_of_systemd(unit: str) -> str | None:
    """The program of a unit that `systemd_service` has written; None: it is another one's."""
    found = re.search(r'^ExecStart="((?:[^"\\]|\\.)*)"', unit, re.MULTILINE)
    if found is None:
        return None
    plain = re.sub(r"\\(.)", r"\1", found[1])
    return plain.replace("$$", "$").replace("%%", "%")


def program_of_plist(plist: bytes) -> str | None:
    """The same of a property list."""
    try:
        return str(plistlib.loads(plist)["ProgramArguments"][0])
    except (plistlib.InvalidFileException, ValueError, KeyError, IndexError, TypeError):
        return None


def program_of_run_key(command: str) -> str | None:
    """The same of a value of the `Run` key."""
    found = re.match(r'"([^"]+)"|(\S+)', command)
    return (found[1] or found[2]) if found else None


def windowless(program: str) -> str:
    """`pythonw.exe` beside a `python.exe`."""
    return re.sub(r"(?i)\bpython\.exe$", "pythonw.exe", program)


def systemd_quote(text: str) -> str:
    """A word of a unit file: quoted, with C's escapes, and free of specifiers."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_specifiers(escaped)}"'


def _systemd_command(command: Sequence[str]) -> str:
    """An Exec line: `$` would begin a variable."""
    return " ".join(systemd_quote(word).replace("$", "$$") for word in command)


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")
