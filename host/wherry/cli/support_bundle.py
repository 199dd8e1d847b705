"""support-bundle: one archive for whoever helps, without secrets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.doctor_process import run_doctor
from wherry.cli.output import print_table
from wherry.units import human_size


@click.command("support-bundle")
@click.option("--offline", is_flag=True, help="Do not look at the network.")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@pass_app
def support_bundle_command(app: App, offline: bool, file: Path | None) -> None:
    """Write FILE, an archive of what is needed to understand a problem; look at it before you
    give it away.

    In it: versions, the doctor's findings, timelines, the ends of logs, settings, QEMU's command
    line. Never in it: logins, secrets, containers' configurations, images. Names are replaced.
    """
    target = file or Path(time.strftime("wherry-support-%Y%m%d-%H%M%S.tar.gz"))
    arguments = ["bundle", str(target.absolute()), *(["--offline"] if offline else [])]
    made: dict[str, Any] = {}
    for answer in run_doctor(app.home, arguments):
        made = answer
    rows = [[name, human_size(size), about] for name, about, size in made["files"]]
    print_table(["FILE", "SIZE", "WHAT IT IS"], rows)
    click.echo(f"{made['bundle']} ({human_size(made['size'])})")
