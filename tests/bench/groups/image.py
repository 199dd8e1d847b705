"""The VM image, built from packages that are in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ..bench import Bench, python
from ..measure import Samples, run
from ..report import Row, Target

TITLE = "VM image"
_MB = 1e6


def rows(bench: Bench) -> Iterator[Row]:
    bench.vm_image()
    packages = bench.cache / "packages"
    seconds, peak, size = Samples(), Samples(), Samples()
    for number in range(bench.few):
        out = bench.work / f"built-{number}"
        command = ("-m", "wherry_image", "build", "--out", str(out), "--packages", str(packages))
        done = run(python(*command), env=bench.environment)
        seconds.add(done.seconds)
        peak.add(done.peak_bytes / _MB)
        facts = dict(line.partition(": ")[::2] for line in done.stdout.splitlines())
        size.add(Path(facts["initrd"]).stat().st_size / _MB)
        shutil.rmtree(out)
    yield Row("build from cached packages", "s", seconds, target=Target(30, strict=True))
    yield Row("initrd", "MB", size, target=Target(70))
    yield Row("peak memory of the build", "MB", peak)
