"""A layer's tar to an EROFS image, against unpacking it and mkfs.erofs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from needs import require

from ..bench import Bench, python
from ..measure import Finished, Samples, run
from ..report import Row, Target

TITLE = "Layer: tar to EROFS (Debian root file system)"
_MB = 1e6
_AGAINST = "`tar x` + `mkfs.erofs`"


def rows(bench: Bench) -> Iterator[Row]:
    tar = bench.debian()
    mkfs = require("erofs-utils", "mkfs.erofs")
    out = bench.directory("erofs")
    ours, theirs = Samples(), Samples()
    our_peak, their_peak = Samples(), Samples()
    entries = 0
    for number in range(bench.rounds + 1):
        image, tree = out / f"{number}.erofs", out / f"tree-{number}"
        tree.mkdir()
        command = ("-m", "tests.bench.child", "convert", str(tar), str(image))
        done = run(python(*command), env=bench.environment)
        entries = int(done.stdout)
        unpack = ["tar", "--numeric-owner", "--xattrs", "-xpf", str(tar), "-C", str(tree)]
        steps = [run(unpack), run([mkfs, "--quiet", str(out / f"{number}.ref"), str(tree)])]
        shutil.rmtree(tree)
        if number:  # the first round warms the page cache
            ours.add(done.seconds)
            our_peak.add(done.peak_bytes / _MB)
            _add(theirs, their_peak, steps)
    size = tar.stat().st_size / _MB
    what = f"{size:.0f} MB, {entries:,} entries"
    rate, their_rate = ours.map(lambda it: size / it), theirs.map(lambda it: size / it)
    yield Row(f"{what}, with the start of the process", "s", ours, theirs, _AGAINST)
    yield Row("the same", "MB/s", rate, their_rate, _AGAINST, Target(100))
    count, their_count = ours.map(lambda it: entries / it), theirs.map(lambda it: entries / it)
    yield Row("the same", "entries/s", count, their_count, _AGAINST, Target(8000))
    yield Row("peak memory", "MB", our_peak, their_peak, _AGAINST)


def _add(seconds: Samples, peak: Samples, steps: list[Finished]) -> None:
    seconds.add(sum(step.seconds for step in steps))
    peak.add(max(step.peak_bytes for step in steps) / _MB)
