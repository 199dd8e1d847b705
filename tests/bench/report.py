"""Rows as a table, and the page that holds it. Pure: values in, text out.

The ratio is always ours to the reference's in time, also where the row shows a rate: below 1, ours
is quicker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .measure import Samples

BEGIN = "<!-- benchmarks: begin (written by python -m tests.bench) -->"
END = "<!-- benchmarks: end -->"

_HEAD = ("ratio", "what", "ours", "reference", "rounds", "target")
_RATES = ("MB/s", "entries/s")


@dataclass(frozen=True, slots=True)
class Target:
    """What the project promised itself. `limit` is in the row's unit: at most, of a rate at least.

    Attributes:
        strict: "less than" instead of "at most".
    """

    limit: float
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        unit: s, ms, MB, MB/s or entries/s, of all samples.
        reference: what `against` took; None: there is nothing to compare with.
        ours: None when it was not measured; `why` says why.
    """

    what: str
    unit: str
    ours: Samples | None
    reference: Samples | None = None
    against: str = ""
    target: Target | None = None
    why: str = ""

    @property
    def ratio(self) -> float | None:
        if self.ours is None or self.reference is None:
            return None
        ours, theirs = self.ours.median, self.reference.median
        return theirs / ours if self.unit in _RATES else ours / theirs

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None: there is none, or nothing was measured."""
        if self.target is None or self.ours is None:
            return None
        value = self.ours.median
        if self.unit in _RATES:
            return value >= self.target.limit
        return value < self.target.limit if self.target.strict else value <= self.target.limit


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the rows below it."""

    title: str
    rows: Sequence[Row]


def cells(row: Row) -> list[str]:
    """The row's cells, in the order of the table's head."""
    if row.ours is None:
        return ["", row.what, f"not measured: {row.why}", "", "", _target(row)]
    ratio = row.ratio
    reference = "" if row.reference is None else f"{_figure(row.reference, row.unit)}"
    return [
        "" if ratio is None else f"**{_ratio(ratio)}**",
        row.what,
        _figure(row.ours, row.unit),
        f"{reference} {row.against}".strip(),
        _rounds(row.ours, row.reference),
        _target(row),
    ]


def table(sections: Iterable[Section]) -> str:
    """Markdown."""
    parts = []
    for section in sections:
        lines = [f"### {section.title}", "", _line(_HEAD), _line(["---"] * len(_HEAD))]
        lines += [_line(cells(row)) for row in section.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def replaced(page: str, content: str) -> str:
    """The page with `content` between its markers.

    Raises:
        ValueError: the page does not have both markers, once, in order.
    """
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed or BEGIN in rest or END in after:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}, once, in this order")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(samples: Samples, unit: str) -> str:
    """Median and, behind it, the smallest and the largest."""
    values = samples.values
    figure = f"{_number(samples.median)} {unit}"
    low, high = _number(min(values)), _number(max(values))
    return figure if low == high else f"{figure} ({low} to {high})"


def _rounds(ours: Samples, theirs: Samples | None) -> str:
    counts = [len(it.values) for it in (ours, theirs) if it is not None]
    return " / ".join(str(count) for count in dict.fromkeys(counts))


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "≥" if row.unit in _RATES else "<" if row.target.strict else "≤"
    verdict = {True: "met", False: "**not met**", None: "not measured"}[row.met]
    return f"{sign} {_number(row.target.limit)} {row.unit}: {verdict}"


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _number(value: float) -> str:
    """Three digits that count; thousands have a comma."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
