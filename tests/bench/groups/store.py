"""The image store, without a machine: saving against cp, listing a thousand images, verifying."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Wherry
from registry import write_layout

from wherry.images.store import ImageStore

from ..bench import Bench
from ..measure import Samples, run
from ..report import Row, Target
from ..tars import small

TITLE = "Image store (no machine)"
IMAGES = 1000
SAVED_BYTES = 1 << 30
LIST_TARGET = Target(200)


def rows(bench: Bench) -> Iterator[Row]:
    home = bench.home("store")
    store = ImageStore(home, bench.settings())
    wherry = Wherry(home)
    try:
        blob = _big_image(bench, store, home.store / "blobs" / "sha256")
        ours, theirs = Samples(), Samples()
        for number in range(bench.rounds):
            target = bench.work / f"saved-{number}"
            ours.add(
                run(wherry.argv("save", "-o", str(target), "big"), env=wherry.environment).seconds
            )
            target.unlink()
            theirs.add(run(["cp", str(blob), str(target)]).seconds)
            target.unlink()
        yield Row("save 1 GiB in one layer", "s", ours, theirs, "`cp` of the blob")
        verified = Samples()
        for _ in range(bench.few):
            with verified.timed():
                assert not store.upkeep.verify(["big"]).damages
        yield Row("image verify of it", "s", verified)
        _many_images(bench, store)
        listed, reference = Samples(), Samples()
        for _ in range(bench.many):
            listed.add(_milliseconds(wherry, "images"))
            reference.add(_docker_milliseconds(wherry))
        yield Row(
            f"images, {IMAGES} of them", "ms", listed, reference, "`docker images`", LIST_TARGET
        )
    finally:
        store.close()
        wherry.run("machine", "rm", "--force", timeout=60)


def _big_image(bench: Bench, store: ImageStore, blobs: Path) -> Path:
    """An image whose one layer does not compress; its blob."""
    content = bench.work / "big"
    source = random.Random(1)
    with content.open("wb") as file:
        for _ in range(SAVED_BYTES >> 20):
            file.write(source.randbytes(1 << 20))
    tar = bench.work / "big.tar"
    run(["tar", "-C", str(bench.work), "-cf", str(tar), content.name])
    content.unlink()
    with tar.open("rb") as stream:
        image = store.archives.import_rootfs(iter(lambda: stream.read(1 << 20), b""), name="big")
    tar.unlink()
    return blobs / image.diff_ids[0].removeprefix("sha256:")


def _many_images(bench: Bench, store: ImageStore) -> None:
    """Images that differ in their configs only."""
    layer = small("many", bench.work / "many.tar")
    layout = bench.directory("many")
    for number in range(IMAGES - len(store.list())):
        write_layout(layout, [layer], {"Labels": {"number": str(number)}, "Env": ["A=1"]})
        store.import_layout(layout, f"many{number % 300}:{number}")


def _milliseconds(wherry: Wherry, *arguments: str) -> float:
    begun = time.perf_counter()
    wherry.run(*arguments, check=True)
    return 1000 * (time.perf_counter() - begun)


def _docker_milliseconds(wherry: Wherry) -> float:
    begun = time.perf_counter()
    wherry.docker("images", check=True)
    return 1000 * (time.perf_counter() - begun)
