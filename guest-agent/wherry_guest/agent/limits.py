"""Other limits for a container that runs: all of them, or as before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wherry_guest.channel import CallError
from wherry_guest.core.fields import SpecError
from wherry_guest.core.limits import limits
from wherry_guest.core.resources import parse_resources


def apply(cgroup: Path, resources: Mapping[str, Any]) -> None:
    """Write the limits that `resources` (as in `linux.resources`) names.

    Raises:
        CallError: `invalid`: they are none; `failed`: the kernel refuses one, which is named.
    """
    try:
        wanted = limits(parse_resources(resources))
    except SpecError as error:
        raise CallError("invalid", str(error)) from error
    before: list[tuple[Path, str]] = []
    for limit in wanted:
        name, value = limit.file, limit.value
        if limit.instead is not None and not (cgroup / name).exists():
            name, value = limit.instead
        file = cgroup / name
        try:
            old = file.read_text().strip()
            file.write_text(value)
            before.append((file, old))
        except OSError as error:
            _restore(before)
            reason = error.strerror or "error"
            raise CallError("failed", f"set {name} to {value}: {reason}") from error


def _restore(before: list[tuple[Path, str]]) -> None:
    for file, value in reversed(before):
        try:
            for line in value.splitlines():  # a file of weights by device takes one at a time
                file.write_text(line)
        except OSError:
            continue  # what it was a moment ago is refused now: the first refusal is what is told
