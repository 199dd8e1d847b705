"""`python -m wherry.doctor examine|bundle`: JSON lines on standard output, for `wherry doctor`.

examine   a line per finding
bundle    the same, then {"bundle", "size", "files": [[name, about, bytes], …]}
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from wherry.doctor.bundle import collect, this_person, write_bundle
from wherry.doctor.checks import CHECKS, DEEP_SECONDS, NETWORK
from wherry.doctor.finding import Check, Context, Finding, examine
from wherry.errors import WherryError
from wherry.paths import Home, is_machine_name
from wherry.settings import Settings, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wherry.doctor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("examine")
    look.add_argument("--machine", help="only this one")
    look.add_argument("--deep", action="store_true")
    look.add_argument("--fix", action="store_true")
    look.add_argument("--offline", action="store_true")
    bundle = commands.add_parser("bundle")
    bundle.add_argument("file", type=Path)
    bundle.add_argument("--offline", action="store_true")
    options = parser.parse_args(arguments)
    logging.getLogger("wherry").addHandler(logging.NullHandler())  # findings tell what is wrong
    try:
        if options.command == "examine":
            context = _context(options.machine, deep=options.deep)
            for finding in _findings(context, offline=options.offline, fix=options.fix):
                _say(finding.as_json())
        else:
            _bundle(options.file, offline=options.offline)
    except WherryError as error:
        _say({"error": error.message, "hint": error.hint})
        return error.exit_code
    return 0


def _context(machine: str | None, *, deep: bool = False) -> Context:
    home = Home.default()
    try:
        settings = load_settings(home.settings_file)
    except (WherryError, OSError):
        settings = Settings()  # the check of the settings tells
    try:
        entries = sorted(entry.name for entry in home.machines.iterdir() if entry.is_dir())
    except OSError:
        entries = []
    names = tuple(it for it in entries if is_machine_name(it) and machine in (None, it))
    return Context(home, settings, names, deep)


def _findings(context: Context, *, offline: bool, fix: bool) -> Iterator[Finding]:
    checks = [it for it in CHECKS if not (offline and it.name in NETWORK)]
    if context.deep:
        checks = [replace(it, seconds=DEEP_SECONDS) if it.name == "images" else it for it in checks]
    if fix:
        checks = [_with_time_to_mend(it) for it in checks]
    return examine(checks, context, repair=fix)


def _with_time_to_mend(check: Check) -> Check:
    """Mending images fetches from registries."""
    return replace(check, seconds=DEEP_SECONDS if check.name == "images" else check.seconds + 30)


def _bundle(file: Path, *, offline: bool) -> None:
    context = _context(None)
    findings = []
    for finding in _findings(context, offline=offline, fix=False):
        findings.append(finding)
        _say(finding.as_json())
    members = list(collect(context, findings, this_person()))
    size = write_bundle(file.absolute(), members)
    files = [[it.name, it.about, len(it.text.encode("utf-8", "replace"))] for it in members]
    _say({"bundle": os.fspath(file.absolute()), "size": size, "files": files})


def _say(line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    code = main()
    os._exit(code)  # a check that hangs has left its thread behind
