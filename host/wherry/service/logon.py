"""Windows: a value of the user's `Run` key starts the engine at the logon.

Not a scheduled task: those with a logon trigger take an administrator to make. Windows holds no
pipe for a program that does not run, so the engine is started at the logon and stays.
"""

from __future__ import annotations

import sys
from typing import Protocol

from wherry.service.definition import Service
from wherry.service.rendering import program_of_run_key, run_key_command
from wherry.service.running import ServiceError

RUN_KEY = r"Software\Microsoft\Windows\CurrentVersion\Run"


class Values(Protocol):
    """The values of one registry key, by name."""

    def get(self, name: str) -> str | None: ...
    def set(self, name: str, value: str) -> None: ...
    def delete(self, name: str) -> None: ...


class Logon:
    """See `managers.Manager`."""

    name = "Windows' logon"
    holds_socket = False

    def __init__(self, values: Values | None = None) -> None:
        self._values: Values = RunKey() if values is None else values

    def check(self) -> None:
        """Every user has the key."""

    def install(self, service: Service) -> list[str]:
        self._values.set(service.label, run_key_command(service))
        carried = [name for name in service.environment if name != "WHERRY_HOME"]
        if not carried:
            return []
        return [f"set {', '.join(carried)} for your account (setx): a logon knows no shell's"]

    def uninstall(self, label: str) -> bool:
        if not self.installed(label):
            return False
        self._values.delete(label)
        return True

    def place(self, label: str) -> str:
        return rf"HKCU\{RUN_KEY}\{label}"

    def installed(self, label: str) -> bool:
        return self._values.get(label) is not None

    def program(self, label: str) -> str | None:
        command = self._values.get(label)
        return None if command is None else program_of_run_key(command)

    def listening(self, label: str) -> None:
        """Nobody holds a pipe for an engine."""


class RunKey:
    """The real key, of the current user. Raises ServiceError when the registry refuses."""

    def get(self, name: str) -> str | None:
        if sys.platform != "win32":
            raise ServiceError("there is no registry here")
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, RUN_KEY) as key:
                return str(winreg.QueryValueEx(key, name)[0])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ServiceError(f"cannot read the registry: {error}") from error

    def set(self, name: str, value: str) -> None:
        if sys.platform != "win32":
            raise ServiceError("there is no registry here")
        import winreg

        try:
            with winreg.CreateKey(winreg.HKEY_CURRENT_USER, RUN_KEY) as key:
                winreg.SetValueEx(key, name, 0, winreg.REG_SZ, value)
        except OSError as error:
            raise ServiceError(f"cannot write the registry: {error}") from error

    def delete(self, name: str) -> None:
        if sys.platform != "win32":
            raise ServiceError("there is no registry here")
        import winreg

        try:
            with winreg.OpenKey(
                winreg.HKEY_CURRENT_USER, RUN_KEY, access=winreg.KEY_SET_VALUE
            ) as key:
                winreg.DeleteValue(key, name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ServiceError(f"cannot write the registry: {error}") from error
