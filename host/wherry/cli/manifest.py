"""`wherry manifest`: what registries have under a name, and manifest lists of one's own."""

from __future__ import annotations

import json
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.lazy import PlainGroup
from wherry.cli.logins import logins_header

_PATH = "/wherry/v1/manifests"


@click.group("manifest", cls=PlainGroup)
def manifest_command() -> None:
    """Look at manifests in registries, and make manifest lists (multi-platform images)."""


@manifest_command.command("inspect")
@click.option("-v", "--verbose", is_flag=True, help="Every manifest, with its descriptor.")
@click.argument("names", nargs=-1, required=True, metavar="[LIST] MANIFEST")
@pass_app
def inspect_command(app: App, verbose: bool, names: tuple[str, ...]) -> None:
    """Show a manifest list that is not pushed, or what the registry has under a name, as JSON."""
    if len(names) > 2:
        raise click.UsageError("give a manifest, or a manifest list and one of its manifests")
    query = {"of": names[1]} if len(names) == 2 else None
    path = f"{_PATH}/{names[0]}"
    found = app.client.request("GET", path, query=query, headers=logins_header(*names)).json()
    manifests: list[Any] = found["Manifests"]
    if found["List"] is not None:
        shown: Any = found["List"]
    elif len(names) == 2:
        shown = manifests[0]
    elif verbose:
        shown = manifests[1:] if len(manifests) > 1 else manifests[0]
    else:
        shown = manifests[0]["Manifest"]
    click.echo(json.dumps(shown, indent=3))


@manifest_command.command("create")
@click.option("-a", "--amend", is_flag=True, help="Add to a list that is there.")
@click.argument("name", metavar="LIST")
@click.argument("manifests", nargs=-1, required=True, metavar="MANIFEST...")
@pass_app
def create_command(app: App, amend: bool, name: str, manifests: tuple[str, ...]) -> None:
    """Begin a manifest list of images that are in registries; `push` sends it."""
    reply = app.client.request(
        "POST",
        f"{_PATH}/{name}/create",
        body={"Sources": list(manifests), "Amend": amend},
        headers=logins_header(*manifests),
    )
    click.echo(f"Created manifest list {reply.json()['Name']}")


@manifest_command.command("annotate")
@click.option("--arch", metavar="ARCH", help="Architecture.")
@click.option("--os", "os_", metavar="OS", help="Operating system.")
@click.option("--variant", metavar="VARIANT", help="Variant of the architecture.")
@click.option("--os-version", metavar="VERSION", help="Version of the operating system.")
@click.option("--os-features", multiple=True, metavar="FEATURE", help="Needed features.")
@click.argument("name", metavar="LIST")
@click.argument("manifest")
@pass_app
def annotate_command(
    app: App,
    arch: str | None,
    os_: str | None,
    variant: str | None,
    os_version: str | None,
    os_features: tuple[str, ...],
    name: str,
    manifest: str,
) -> None:
    """Say for which platform a list's manifest is."""
    features = [part for given in os_features for part in given.split(",") if part]
    platform = {
        "architecture": arch,
        "os": os_,
        "variant": variant,
        "os.version": os_version,
        "os.features": features,
    }
    body = {"Source": manifest, "Platform": {k: v for k, v in platform.items() if v}}
    app.client.request("POST", f"{_PATH}/{name}/annotate", body=body)


@manifest_command.command("push")
@click.option("-p", "--purge", is_flag=True, help="Forget the list afterwards.")
@click.argument("name", metavar="LIST")
@pass_app
def push_command(app: App, purge: bool, name: str) -> None:
    """Push a manifest list, and what it names where the repository lacks it; prints its digest."""
    local = app.client.request("GET", f"{_PATH}/{name}/sources").json()
    reply = app.client.request(
        "POST",
        f"{_PATH}/{name}/push",
        query={"purge": purge},
        headers=logins_header(name, *local["Sources"]),
    )
    click.echo(reply.json()["Digest"])


@manifest_command.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="LIST...")
@pass_app
def rm_command(app: App, names: tuple[str, ...]) -> None:
    """Forget manifest lists that are not pushed."""
    for name in names:
        app.client.request("DELETE", f"{_PATH}/{name}")
