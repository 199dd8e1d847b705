"""push."""

from __future__ import annotations

from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.logins import login_header


@click.command("push")
@click.option("-q", "--quiet", is_flag=True, help="Only the image's name.")
@click.option("-a", "--all-tags", is_flag=True, help="All tags of the repository IMAGE.")
@click.option("--platform", metavar="OS/ARCH", help="Only if the image is for this platform.")
@click.option(
    "--all-platforms", is_flag=True, help="All platforms that pull --all-platforms has fetched."
)
@click.argument("image")
@pass_app
def push_command(
    app: App, quiet: bool, all_tags: bool, platform: str | None, all_platforms: bool, image: str
) -> None:
    """Send IMAGE to the registry that its name says."""
    name, tag = (image, "") if all_tags else progress.split_name(image)
    query = {"tag": tag, "platform": platform, "allPlatforms": all_platforms or None}
    lines = app.client.lines(
        "POST", f"/images/{name}/push", query=query, headers=login_header(image)
    )
    pushed: list[dict[str, Any]] = []
    # Docker's last status says what the results say, too.
    steps = (line for line in lines if ": digest: " not in line.get("status", ""))
    progress.show_pull(steps, quiet=quiet, results=pushed)
    if quiet:
        click.echo(image)
        return
    for result in pushed:
        click.echo(f"{result['Tag']}: digest: {result['Digest']} size: {result['Size']}")
