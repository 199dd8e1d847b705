"""The table of `machine timeline`."""

from __future__ import annotations

from typing import Any

from wherry.cli.machine_timeline import table


def start(failed: str | None = None, **phases: float) -> dict[str, Any]:
    return {
        "began_ns": 1_700_000_000_000_000_000,
        "kind": "restore" if "restore" in phases else "boot",
        "phases": [{"name": name, "seconds": seconds} for name, seconds in phases.items()],
        "failed": failed,
        "reason": "why" if failed else None,
    }


def test_starts_of_both_kinds_share_their_columns() -> None:
    headings, rows = table(
        [start(engine=0.5, qemu=1, kernel=2, agent=1), start(qemu=1, restore=0.25, agent=0.5)]
    )
    assert headings[1:] == ["KIND", "ENGINE", "QEMU", "RESTORE", "KERNEL", "AGENT", "TOTAL"]
    assert rows[0][1:] == ["boot", "0.50", "1.00", "", "2.00", "1.00", "4.50"]
    assert rows[1][1:] == ["restore", "", "1.00", "0.25", "", "0.50", "1.75"]


def test_the_phase_in_which_a_start_died_is_marked() -> None:
    _, rows = table([start("kernel", qemu=1, kernel=90)])
    assert rows[0][2:] == ["1.00", "90.00 failed", "91.00"]
