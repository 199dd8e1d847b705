"""A pull from a registry on loopback until every layer can be plugged in, against skopeo and umoci.

Each round begins with an empty store, on both sides.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from needs import require
from registry import RunningRegistry, running_registry

from ..bench import Bench, python
from ..measure import Samples, run
from ..report import Row
from ..tars import cut

TITLE = "Pull (Debian, gzip, from a registry on loopback, empty store)"
LAYERS = 12
_AGAINST = "`skopeo copy` + `umoci unpack`"


def rows(bench: Bench) -> Iterator[Row]:
    tar = bench.debian()
    skopeo, umoci = require("skopeo", "skopeo"), require("umoci", "umoci")
    directory = bench.cache / "bench" / f"registry-{tar.stat().st_mtime_ns}"
    directory.mkdir(parents=True, exist_ok=True)
    with running_registry(directory) as registry:
        for count in (1, LAYERS):
            name = _pushed(bench, registry, directory, tar, count)
            ours, theirs = Samples(), Samples()
            for number in range(bench.rounds):
                ours.add(_pull(bench, bench.work / f"pull-{count}-{number}", name))
                work = bench.directory(f"unpack-{count}-{number}")
                theirs.add(_pull_and_unpack(work, name, skopeo, umoci))
            layers = "1 layer" if count == 1 else f"the same in {count} layers"
            yield Row(f"{layers}", "s", ours, theirs, _AGAINST)


def _pull(bench: Bench, home: Path, name: str) -> float:
    command = python("-m", "tests.bench.child", "pull", str(home), name)
    done = run(command, env=bench.environment)
    shutil.rmtree(home)
    return done.seconds


def _pull_and_unpack(work: Path, name: str, skopeo: str, umoci: str) -> float:
    layout = f"{work / 'layout'}:it"
    copy = [skopeo, "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    seconds = run([*copy, f"docker://{name}", f"oci:{layout}"]).seconds
    seconds += run([umoci, "unpack", "--image", layout, str(work / "bundle")]).seconds
    shutil.rmtree(work)
    return seconds


def _pushed(bench: Bench, registry: RunningRegistry, directory: Path, tar: Path, count: int) -> str:
    """The name to pull; the registry's data is kept between runs."""
    name, done = f"debian:{count}", directory / f"pushed-{count}"
    if not done.exists():
        work = bench.directory(f"cut-{count}")
        tars = [tar] if count == 1 else cut(tar, count, work)
        registry.push_layers(tars, name, config={"Cmd": ["bash"]})
        shutil.rmtree(work)
        done.touch()
    return f"{registry.host}/{name}"
