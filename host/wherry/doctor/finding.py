"""What a check finds, and how checks are run: all at once, each within its own time.

A check that does not return in time (a network disk that hangs, a name server that is silent) is
reported as such; its thread is left behind, and the process ends all the same.
"""

from __future__ import annotations

import enum
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wherry.errors import WherryError
from wherry.paths import Home
from wherry.settings import Settings


class Status(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Context:
    """What is examined.

    Attributes:
        machines: names of all machines that there are.
        deep: read everything, however long it takes.
    """

    home: Home
    settings: Settings
    machines: tuple[str, ...] = ()
    deep: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        detail: what was found, one line; fix: what to do about it, one line, "" for nothing.
        repair: does it, and says what it did; only what cannot lose anything has one.
        repaired: what `repair` did.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    repair: Callable[[], str] | None = field(default=None, compare=False, repr=False)
    repaired: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status.value,
            "detail": self.detail,
            "fix": self.fix,
            "repairable": self.repair is not None,
            "repaired": self.repaired,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """Attributes:
    name: of the check, and of its finding when it does not return.
    seconds: what it may take.
    late: how bad it is when it takes longer: a slow network is no fault of the installation.
    """

    name: str
    examine: Callable[[Context], Iterator[Finding]]
    seconds: float = 10.0
    late: Status = Status.FAIL


def ok(name: str, detail: str) -> Finding:
    return Finding(name, Status.OK, detail)


def warn(name: str, detail: str, fix: str = "", repair: Callable[[], str] | None = None) -> Finding:
    return Finding(name, Status.WARN, detail, fix, repair)


def fail(name: str, detail: str, fix: str = "", repair: Callable[[], str] | None = None) -> Finding:
    return Finding(name, Status.FAIL, detail, fix, repair)


def skipped(name: str, why: str) -> Finding:
    return Finding(name, Status.SKIPPED, why)


def examine(checks: Sequence[Check], context: Context, *, repair: bool) -> Iterator[Finding]:
    """Run all checks at the same time; the findings as they come.

    Args:
        repair: mend what can be mended without losing anything.
    """
    results: queue.Queue[tuple[Check, list[Finding]]] = queue.Queue()
    began = time.monotonic()
    for check in checks:
        threading.Thread(
            target=lambda it=check: results.put((it, _run(it, context, repair))),
            name=f"check {check.name}",
            daemon=True,
        ).start()
    waiting = {check.name: check for check in checks}
    while waiting:
        next_deadline = began + min(check.seconds for check in waiting.values())
        try:
            done, findings = results.get(timeout=max(0.0, next_deadline - time.monotonic()))
        except queue.Empty:
            for check in [it for it in waiting.values() if began + it.seconds <= time.monotonic()]:
                del waiting[check.name]
                yield Finding(
                    check.name, check.late, f"it did not come to an end within {check.seconds:g} s"
                )
            continue
        if waiting.pop(done.name, None) is not None:
            yield from findings


def _run(check: Check, context: Context, repair: bool) -> list[Finding]:
    try:
        findings = list(check.examine(context))
    except WherryError as error:
        return [fail(check.name, error.message, error.hint or "")]
    except Exception as error:  # noqa: BLE001 a check's own fault must not hide the other findings
        return [fail(check.name, f"the check itself failed: {type(error).__name__}: {error}")]
    return [_repaired(finding) if repair else finding for finding in findings]


def _repaired(finding: Finding) -> Finding:
    if finding.repair is None:
        return finding
    try:
        done = finding.repair()
    except (WherryError, OSError) as error:
        return replace(finding, detail=f"{finding.detail}; the repair failed: {error}")
    return replace(finding, status=Status.OK, repaired=done, fix="", repair=None)
