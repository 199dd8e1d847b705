"""The benchmarks' table and page, and the layers that they are measured with."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from bench.measure import Samples
from bench.report import BEGIN, END, Row, Section, Target, cells, replaced, table
from bench.tars import below, cut


def row(unit: str, ours: float, theirs: float, target: Target | None = None) -> Row:
    return Row("it", unit, Samples([ours]), Samples([theirs]), "`other`", target)


def test_the_ratio_is_of_times_also_where_a_rate_is_shown() -> None:
    assert row("s", 1.0, 4.0).ratio == 0.25
    assert row("MB/s", 400.0, 100.0).ratio == 0.25
    assert Row("it", "s", Samples([1.0])).ratio is None


@pytest.mark.parametrize(
    ("unit", "value", "target", "met"),
    [
        ("s", 5.0, Target(5), True),
        ("s", 5.0, Target(5, strict=True), False),
        ("ms", 601.0, Target(600, strict=True), False),
        ("MB/s", 100.0, Target(100), True),
        ("entries/s", 7999.0, Target(8000), False),
    ],
)
def test_a_target_is_at_most_and_of_a_rate_at_least(
    unit: str, value: float, target: Target, met: bool
) -> None:
    measured = row(unit, value, 1.0, target)
    assert measured.met is met
    assert ("not met" in cells(measured)[-1]) is not met


def test_a_figure_is_the_median_with_the_smallest_and_the_largest_behind_it() -> None:
    shown = cells(Row("it", "s", Samples([3.0, 1.0, 200.0])))
    assert shown == ["", "it", "3.00 s (1.00 to 200)", "", "3", ""]


def test_what_could_not_be_measured_says_why() -> None:
    shown = cells(Row("it", "", None, why="needs skopeo"))
    assert shown[2] == "not measured: needs skopeo"


def test_every_row_has_as_many_cells_as_the_head() -> None:
    text = table([Section("A", [row("s", 1.0, 2.0), Row("it", "", None, why="no")])])
    head, rule, *rows = text.splitlines()[2:]
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replaced(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replaced(once, "new") == once


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_its_markers_is_not_touched(page: str) -> None:
    with pytest.raises(ValueError, match="once, in this order"):
        replaced(page, "new")


def sample(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in ("./usr", "./usr/bin", "./etc"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            info.mode = 0o751
            tar.addfile(info)
        for index in range(20):
            info = tarfile.TarInfo(f"./usr/bin/{index}")
            info.size = 1000
            tar.addfile(info, io.BytesIO(bytes([index]) * 1000))
        link = tarfile.TarInfo("./etc/link")
        link.type, link.linkname = tarfile.LNKTYPE, "./usr/bin/3"
        tar.addfile(link)
    return path


def test_a_root_cut_into_layers_loses_nothing_and_keeps_hard_links_whole(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for layer in cut(sample(tmp_path / "whole.tar"), 5, tmp_path):
        with tarfile.open(layer) as tar:
            names = [member.name for member in tar]
            assert len(names) == len(set(names))
            for member in tar:
                if member.isreg():
                    content = tar.extractfile(member)
                    assert content is not None
                    assert member.name not in files
                    files[member.name] = content.read()
                elif member.islnk():
                    assert member.linkname in names
                else:
                    assert member.mode == 0o751
    assert files == {f"./usr/bin/{index}": bytes([index]) * 1000 for index in range(20)}


def test_a_root_below_a_directory_keeps_its_links(tmp_path: Path) -> None:
    source = sample(tmp_path / "whole.tar")
    target = below(source, "a/b", {"a/new": b"text"}, tmp_path / "below.tar")
    with tarfile.open(target) as tar:
        assert tar.getmember("a/b/etc/link").linkname == "a/b/usr/bin/3"
        new = tar.extractfile("a/new")
        assert new is not None
        assert new.read() == b"text"
