"""The table of long rounds, docs/soak.md: `make soak` writes a row for each, the others stay."""

from __future__ import annotations

import os
import platform
import time

from harness import ROOT

TABLE = ROOT / "docs" / "soak.md"

_HEAD = """# Long rounds

What `make soak` has run. A row is written by its test when that has passed; the faults are those of
[faults.md](faults.md). Fewer rounds than the test's own are a shorter run of the same test.

| rounds of | how many | figures | when, where |
"""
_RULE = "| --- | --- | --- | --- |\n"


def record(what: str, rounds: int, figures: str) -> None:
    """Print the row; with WHERRY_SOAK=1 it replaces that of earlier rounds in the table."""
    print(f"{what}: {rounds} rounds, {figures}")
    if os.environ.get("WHERRY_SOAK") != "1":
        return
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    rows = {row.split(" | ")[0]: row for row in _rows()}
    rows[f"| {what}"] = f"| {what} | {rounds} | {figures} | {day}, {where} |"
    TABLE.write_text(_HEAD + _RULE + "".join(f"{rows[key]}\n" for key in sorted(rows)))


def _rows() -> list[str]:
    """Those of earlier rounds."""
    text = TABLE.read_text() if TABLE.exists() else ""
    return text.partition(_RULE)[2].splitlines()
