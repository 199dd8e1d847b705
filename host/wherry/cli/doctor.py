"""doctor: is everything as it should be? Asks `wherry.doctor`, a process that needs no engine."""

from __future__ import annotations

import json
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.doctor_process import run_doctor

_MARKS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skipped": "-"}


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Repair what can be repaired without losing anything.")
@click.option("--deep", is_flag=True, help="Read all images in whole; takes as long as it takes.")
@click.option("--offline", is_flag=True, help="Do not look at the network.")
@click.option("--json", "as_json", is_flag=True, help="All findings, as a JSON array.")
@pass_app
def doctor_command(app: App, fix: bool, deep: bool, offline: bool, as_json: bool) -> int:
    """Find out what is wrong, and what to do about it. Starts nothing.

    The exit code is 1 when something has failed; a warning is none.
    """
    options = [flag for flag, on in (("fix", fix), ("deep", deep), ("offline", offline)) if on]
    found: list[dict[str, Any]] = []
    for finding in run_doctor(app.home, ["examine", *(f"--{flag}" for flag in options)]):
        found.append(finding)
        if not as_json:
            show(finding)
    if as_json:
        click.echo(json.dumps(found, indent=4))
    else:
        click.echo(summary(found, fix=fix))
    return 1 if any(finding["status"] == "fail" for finding in found) else 0


def show(finding: dict[str, Any]) -> None:
    """One finding, with what was or can be done about it below."""
    click.echo(f"{_MARKS[finding['status']]:<6}{finding['name']:<18} {finding['detail']}")
    if finding["repaired"]:
        click.echo(f"      repaired: {finding['repaired']}")
    elif finding["fix"]:
        click.echo(f"      fix: {finding['fix']}")


def summary(found: list[dict[str, Any]], *, fix: bool) -> str:
    """The last line: how many of what."""
    counts = dict.fromkeys(_MARKS, 0)
    for finding in found:
        counts[finding["status"]] += 1
    repaired = sum(bool(finding["repaired"]) for finding in found)
    parts = [
        f"{counts['fail']} failed" if counts["fail"] else "nothing failed",
        f"{counts['warn']} warning{'s' * (counts['warn'] != 1)}" if counts["warn"] else "",
        f"{repaired} repaired" if repaired else "",
    ]
    text = ", ".join(part for part in parts if part)
    if not fix and any(finding["repairable"] for finding in found):
        text += "; wherry doctor --fix repairs some of it"
    return text
