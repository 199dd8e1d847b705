"""What a user waits for: whole command lines against a running machine, through the whole stack.

The reference is Docker's own command line on the same engine: the difference is the client's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import Wherry
from needs import require
from registry import write_layout

from wherry.images.store import ImageStore
from wherry.paths import Home

from ..bench import BUSYBOX, CPUS, Bench
from ..measure import Samples
from ..report import Row, Target
from ..tars import extended, layer_of_layout, small

TITLE = f"Command lines (running machine, {CPUS} vCPUs, through the whole stack)"
MEMORY_MIB = (1024, 4096)
LAYERS = 12
RUN_TARGET = Target(600, strict=True)
PS_TARGET = Target(150, strict=True)
_KEPT = "kept"


def rows(bench: Bench) -> Iterator[Row]:
    require("docker.io", "docker")
    bench.vm_image()
    for memory in MEMORY_MIB:
        with bench.commands(f"commands-{memory}", memory) as wherry:
            _make_images(bench, wherry.home)
            figures = _measure(bench, wherry)
        yield from _rows(f"{memory // 1024} GiB", figures)


def _rows(size: str, figures: dict[str, tuple[Samples, Samples | None]]) -> Iterator[Row]:
    for name, (ours, theirs) in figures.items():
        target = PS_TARGET if name == "ps" else RUN_TARGET if name.startswith("run") else None
        yield Row(f"{size}: {name}", "ms", ours, theirs, "`docker`" if theirs else "", target)


def _measure(bench: Bench, wherry: Wherry) -> dict[str, tuple[Samples, Samples | None]]:
    """Milliseconds of ours and of Docker's command line, which take turns."""
    wherry.run("machine", "start", check=True, timeout=300)
    wherry.run("run", "-d", "--name", _KEPT, BUSYBOX, "sleep", "1000000", check=True)
    ours, theirs = wherry.run, wherry.docker
    cold = {count: Samples() for count in (1, LAYERS)}
    for number in range(bench.rounds):
        for count, samples in cold.items():
            _once(samples, ours, ("run", "--rm", _image(count, number), "true"))
    figures: dict[str, tuple[Samples, Samples | None]] = {
        f"run --rm IMAGE true, {_layers(count)}, its first run": (samples, None)
        for count, samples in cold.items()
    }
    again = [
        (f"run --rm IMAGE true, {_layers(count)}", ("run", "--rm", _image(count, 0), "true"))
        for count in (1, LAYERS)
    ]
    others = [("exec CONTAINER true", ("exec", _KEPT, "true")), ("ps", ("ps",))]
    for name, arguments in again + others:
        samples, reference = Samples(), Samples()
        for _ in range(2 * bench.rounds):
            _once(samples, ours, arguments)
            _once(reference, theirs, arguments)
        figures[name] = (samples, reference)
    return figures


def _once(samples: Samples, command: Callable[..., object], arguments: Sequence[str]) -> None:
    begun = time.perf_counter()
    command(*arguments, check=True)
    samples.add(1000 * (time.perf_counter() - begun))


def _image(count: int, number: int) -> str:
    return f"localhost/bench-{count}-{number}:latest"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _make_images(bench: Bench, home: Home) -> None:
    """An image per round and number of layers; no two share a layer, so each is cold once."""
    busybox = layer_of_layout(bench.vm_image().busybox)
    work = bench.directory(f"{home.root.name}-images")
    store = ImageStore(home, bench.settings())
    try:
        for number in range(bench.rounds):
            for count in (1, LAYERS):
                name = f"{count}-{number}"
                tars = [extended(busybox, f"of-{name}", work / f"{name}.tar")]
                tars += [_small(work, f"{name}-{index}") for index in range(1, count)]
                layout = work / f"layout-{name}"
                write_layout(layout, tars, {"Cmd": ["sh"]})
                image = store.import_layout(layout, _image(count, number))
                store.layer_files(image)
    finally:
        store.close()


def _small(work: Path, name: str) -> Path:
    return small(f"layer-{name}", work / f"{name}.tar")
