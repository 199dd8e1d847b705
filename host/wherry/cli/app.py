"""What every command needs: the home directory, the settings, the client. Made when first used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from wherry.client import Client
from wherry.errors import NotFound
from wherry.paths import Home
from wherry.settings import Settings, load_settings

_R = TypeVar("_R")


class App:
    """One invocation of `wherry`."""

    def __init__(self, machine: str | None) -> None:
        self._machine = machine
        self.home = Home.default()

    @functools.cached_property
    def settings(self) -> Settings:
        return load_settings(self.home.settings_file)

    @property
    def machine(self) -> str:
        return self._machine or self.settings.default_machine

    @functools.cached_property
    def client(self) -> Client:
        """The machine's. The default one is made when it is first used; a name that was given is
        that of a machine, or mistyped.

        Raises:
            NotFound: `--machine` names none that is there.
        """
        name = self.machine
        mistyped = self._machine and name != self.settings.default_machine
        if mistyped and not self.home.machine(name).root.is_dir():
            hint = f"wherry machine ls lists them; wherry machine create {name} makes it"
            raise NotFound(f"no machine {name!r}", hint=hint)
        return Client(self.home, self.machine)

    def client_of(self, machine: str) -> Client:
        return Client(self.home, machine)


def pass_app(function: Callable[..., _R]) -> Callable[..., _R]:
    """Decorator of a command: its first argument is the App."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> _R:
        app = click.get_current_context().find_object(App)
        assert app is not None
        return function(app, *args, **kwargs)

    return wrapper
