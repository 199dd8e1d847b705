"""The disk is full in the middle of a pull: a clear error, nothing half there, and on it goes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import memory_disk, resize
from image_fakes import FakeImage, FakeRegistry, gz, running, tar_of

from wherry.errors import StorageError
from wherry.images.auth import Credentials
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

pytestmark = pytest.mark.guest

SIZES = (6 << 20, 300_000, 2 << 20)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


def test_a_pull_onto_a_full_disk_says_so_and_goes_on_when_there_is_room(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    source = random.Random(1)
    tars = [tar_of({f"file{n}": source.randbytes(size)}) for n, size in enumerate(SIZES)]
    fake = FakeImage(tars, compress=gz)
    name = registry.add("a", "1", fake)
    with memory_disk(tmp_path, 7):
        home = Home(tmp_path / "home")
        store = ImageStore(home, Settings())
        try:
            with pytest.raises(StorageError, match=r"full|space") as caught:
                store.pull(name, auth=Credentials())
            assert caught.value.hint
            assert store.list() == []
            assert store.upkeep.verify().damages == ()
            resize(tmp_path, 100)
            assert store.pull(name, auth=Credentials()).id == fake.id
            assert store.upkeep.verify().damages == ()
            assert len(store.layer_files(store.resolve(name))) == len(tars)
        finally:
            store.close()
