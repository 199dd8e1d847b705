"""`python -m tests.bench`: run the groups, print their tables, write docs/benchmarks.md.

The page is written only by a whole run; the text around its table stays as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence

import pytest

from . import ROOT
from .bench import Bench, new_bench
from .groups import GROUPS
from .host import described
from .report import Row, Section, cells, replaced, table

PAGE = ROOT / "docs" / "benchmarks.md"
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    begun = time.monotonic()
    with new_bench(options.rounds) as bench:
        sections, failed = _measure(bench, options.only or list(GROUPS))
        head = described(options.rounds, bench.cache / "probes.json")
    say(f"\n{time.monotonic() - begun:.0f} s in all")
    if failed:
        say(f"failed: {', '.join(failed)}")
        return 1
    if not options.only and not options.no_write:
        content = f"{head}\n\n{table(sections)}"
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")
        say(f"{PAGE.relative_to(ROOT)} was written")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), metavar="NAME",
                        help=f"of {', '.join(GROUPS)}; the page is not written then")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    return parser


def _measure(bench: Bench, names: Sequence[str]) -> tuple[list[Section], list[str]]:
    """The sections, and the names of the groups that failed."""
    sections, failed = [], []
    for name in names:
        group = GROUPS[name]
        say(f"\n{name}: {group.TITLE}")
        rows: list[Row] = []
        try:
            for row in group.rows(bench):
                rows.append(row)
                say("  " + "  ".join(cell for cell in cells(row) if cell).replace("**", ""))
        except pytest.skip.Exception as reason:  # `require`: a program cannot be had here
            rows.append(Row(name, "", None, why=str(reason)))
            say(f"  not measured: {reason}")
        except Exception:  # noqa: BLE001 - the other groups are still worth measuring
            failed.append(name)
            traceback.print_exc()
        sections.append(Section(group.TITLE, rows))
    return sections, failed


if __name__ == "__main__":
    sys.exit(main())
