"""login, logout; and the logins that requests to the engine carry."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.errors import InvalidInput
from wherry.logins import DOCKER_HUB, Credentials, Logins, registry_of, server_of


def login_header(image: str) -> dict[str, str]:
    """The header with the user's login for the registry of `image`, anonymous or not.

    It is found here and not in the engine: this process has the user's environment.
    """
    registry = registry_of(image)
    return {"X-Registry-Auth": _encoded(_fields(registry))}


def logins_header(*images: str) -> dict[str, str]:
    """The same for the registries of several images."""
    registries = {registry_of(image) for image in images}
    return {"X-Registry-Config": _encoded({it: _fields(it) for it in sorted(registries)})}


@click.command("login")
@click.option("-u", "--username", metavar="NAME", help="User name.")
@click.option("-p", "--password", metavar="PASSWORD", help="Password; others can see it.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.argument("server", required=False, default="")
@pass_app
def login_command(
    app: App, username: str | None, password: str | None, password_stdin: bool, server: str
) -> None:
    """Log in to the registry SERVER (Docker Hub when it is not given)."""
    registry = server_of(server)
    logins = Logins()
    if password is not None:
        if password_stdin:
            raise InvalidInput("--password and --password-stdin exclude each other")
        click.echo(
            "WARNING! Using --password is insecure: others can see it. Use --password-stdin.",
            err=True,
        )
    known = logins.find(registry)
    if username is None and password is None and not password_stdin and not known.is_anonymous:
        click.echo("Authenticating with existing credentials...", err=True)
        given = known
    else:
        given = _asked(registry, username, password, password_stdin, known.username)
    answer = app.client.request(
        "POST", "/auth", body={**given.as_fields(), "serveraddress": registry}
    ).json()
    if token := answer.get("IdentityToken"):
        given = Credentials(given.username, identity_token=token)
    helper = logins.store(registry, given)
    if helper is None:
        click.echo(
            f"WARNING! The login is stored unencrypted in {logins.file}; a credential helper "
            "(credsStore in that file) keeps it better.",
            err=True,
        )
    click.echo(answer["Status"])


@click.command("logout")
@click.argument("server", required=False, default="")
def logout_command(server: str) -> None:
    """Forget the login of the registry SERVER (Docker Hub when it is not given)."""
    registry = server_of(server)
    if Logins().erase(registry):
        click.echo(f"Removing login credentials for {registry}")
    else:
        click.echo(f"Not logged in to {registry}")


def _asked(
    registry: str, username: str | None, password: str | None, from_stdin: bool, known: str
) -> Credentials:
    """Credentials from the flags, standard input, or by asking."""
    if from_stdin:
        if not username:
            raise InvalidInput("--password-stdin needs --username")
        password = sys.stdin.read().rstrip("\r\n")
    elif not (username and password) and not sys.stdin.isatty():
        raise InvalidInput(
            "cannot ask for a login: standard input is no terminal",
            hint="give --username and --password-stdin",
        )
    where = "Docker Hub" if registry == DOCKER_HUB else registry
    if not username:
        username = click.prompt(f"Username for {where}", default=known or None, err=True)
    if not password and not from_stdin:
        password = click.prompt("Password", hide_input=True, err=True)
    if not password:
        raise InvalidInput("the password is empty")
    return Credentials(username, password)


def _fields(registry: str) -> dict[str, str]:
    return {**Logins().find(registry).as_fields(), "serveraddress": registry}


def _encoded(fields: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode("ascii")
