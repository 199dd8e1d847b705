"""Tags and their log, pruning, disk usage, verification and repair, a lost database."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_fakes import FakeImage, FakeRegistry, digest, running, simple_image, tar_of

from wherry.errors import ImageNotFound, NotFound, StorageError, WherryError
from wherry.images.image import Image
from wherry.images.layers import EROFS_OBJECT
from wherry.images.retry import RetryPolicy
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

QUICK = RetryPolicy(attempts=2, base=0.001, ceiling=0.01)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ImageStore]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    it = ImageStore(home, Settings(), retry=QUICK)
    yield it
    it.close()


def made(store: ImageStore, text: bytes, name: str | None = None) -> Image:
    return store.archives.import_rootfs(iter([tar_of({"file": text})]), name=name)


def prune(store: ImageStore, *, tagged: bool = False) -> list[str]:
    """The ids of the images that went."""
    images = store.list()
    pruned = store.upkeep.prune(images, lambda _: True, tagged=tagged)
    ids = {image.id for image in images}
    return [it.deleted for it in pruned.removals if it.deleted in ids]


def blobs(home: Home) -> set[str]:
    return {f"sha256:{path.name}" for path in (home.store / "blobs" / "sha256").iterdir()}


def erofs_path(home: Home, image: Image, layer: int = 0) -> Path:
    (path,) = home.layers.glob(f"{image.diff_ids[layer][7:]}-*.erofs")
    return path


# Tags.


def test_a_tags_log_says_what_it_pointed_to(store: ImageStore) -> None:
    one, two = made(store, b"1", "a"), made(store, b"2", "a")
    store.tag(one.id, "a")
    log = store.upkeep.log("a")
    assert [it.image_id for it in log] == [one.id, two.id, one.id]
    assert [it.digest for it in log] == [
        one.manifest_digest,
        two.manifest_digest,
        one.manifest_digest,
    ]
    assert all(it.present for it in log)
    assert [it.time_ns for it in log] == sorted((it.time_ns for it in log), reverse=True)


def test_a_tag_goes_back_by_its_digest(store: ImageStore) -> None:
    one = made(store, b"1", "a")
    made(store, b"2", "a")
    old = store.upkeep.log("a")[-1]
    store.tag(f"a@{old.digest}", "a")
    assert store.resolve("a").id == one.id
    assert store.upkeep.log("a")[0].digest == old.digest


def test_a_pulled_tags_log_has_the_registrys_digests(
    store: ImageStore, registry: FakeRegistry
) -> None:
    for text in (b"1", b"2"):
        name = registry.add("a", "1", simple_image(text))
        store.pull(name)
    log = store.upkeep.log(name)
    assert [f"{registry.host}/a@{it.digest}" for it in log] == [
        store.resolve(it.image_id or "").digests[0] for it in log
    ]


def test_the_log_tells_of_removals_and_of_images_that_are_gone(store: ImageStore) -> None:
    one = made(store, b"1", "a")
    store.remove("a")
    log = store.upkeep.log("a")
    assert [(it.image_id, it.digest, it.present) for it in log] == [
        (None, None, False),
        (one.id, one.manifest_digest, False),
    ]


def test_only_a_repository_that_had_an_image_finds_it_by_digest(store: ImageStore) -> None:
    image = made(store, b"1", "a")
    assert store.resolve(f"a@{image.manifest_digest}").id == image.id
    with pytest.raises(ImageNotFound):
        store.resolve(f"b@{image.manifest_digest}")


def test_a_tag_that_never_was_has_no_log(store: ImageStore) -> None:
    with pytest.raises(NotFound, match="there never was a tag a:latest"):
        store.upkeep.log("a")


def test_moving_a_tag_keeps_the_old_image_until_it_is_pruned(store: ImageStore, home: Home) -> None:
    one, two = made(store, b"1", "a"), made(store, b"2", "a")
    assert {image.id: image.tags for image in store.list()} == {one.id: (), two.id: ("a:latest",)}
    assert prune(store) == [one.id]
    assert [image.id for image in store.list()] == [two.id]
    assert one.diff_ids[0] not in blobs(home)


# Pruning.


def test_prune_frees_what_it_says(store: ImageStore) -> None:
    made(store, b"1" * 50_000)
    before = store.upkeep.usage()
    pruned = store.upkeep.prune(store.list(), lambda _: True, tagged=False)
    after = store.upkeep.usage()
    assert pruned.bytes >= 50_000
    assert before.erofs.bytes > after.erofs.bytes == 0
    assert after.blobs.count == 0


def test_all_goes_only_with_tagged(store: ImageStore) -> None:
    image = made(store, b"1", "a")
    assert prune(store) == []
    assert prune(store, tagged=True) == [image.id]


def test_what_a_container_of_any_machine_uses_is_not_pruned(store: ImageStore, home: Home) -> None:
    image = made(store, b"1")
    elsewhere = ImageStore(home, Settings())
    elsewhere.hold("container:other:1", image)
    assert prune(store, tagged=True) == []
    elsewhere.release("container:other:1")
    elsewhere.close()
    assert prune(store, tagged=True) == [image.id]


def test_prune_sweeps_files_that_nobody_knows(store: ImageStore, home: Home) -> None:
    kept = made(store, b"1", "a")
    stray = home.store / "blobs" / "sha256" / ("0" * 64)
    stray.write_bytes(b"x")
    (home.layers / f"{'1' * 64}-1.erofs").write_bytes(b"x")
    left = home.ingest / f"{'2' * 64}-00000000.blob"
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    (home.ingest / "spool-0").mkdir()
    foreign = home.store / "blobs" / "sha256" / "somebody-elses.tmp"
    foreign.write_bytes(b"x")
    prune(store)
    assert not stray.exists()
    assert foreign.exists()
    assert [path.name for path in home.layers.iterdir()] == [erofs_path(home, kept).name]
    assert [path.name for path in home.ingest.iterdir()] == ["locks"]


def test_blobs_that_a_registry_has_are_given_up_and_fetched_again(
    store: ImageStore, registry: FakeRegistry, home: Home
) -> None:
    fake = simple_image(b"1" * 5000)
    name = registry.add("a", "1", fake)
    image = store.pull(name)
    local = made(store, b"2", "local")
    store.hold("container:m:1", image)
    pruned = store.upkeep.prune_blobs()
    assert pruned.bytes == len(fake.layers[0])
    assert digest(fake.layers[0]) not in blobs(home)
    assert local.diff_ids[0] in blobs(home)
    assert len(store.layer_files(image)) == 1
    store.pull(name)
    assert registry.fetched()[digest(fake.layers[0])] == 1
    assert store.upkeep.verify().damages == ()
    archive = store.archives.save([name])
    assert len(b"".join(archive.pieces())) == archive.size
    assert registry.fetched()[digest(fake.layers[0])] == 2
    assert digest(fake.layers[0]) in blobs(home)


def test_a_save_of_blobs_that_nobody_has_any_more_is_one_error(
    store: ImageStore, registry: FakeRegistry
) -> None:
    fake = simple_image()
    name = registry.add("a", "1", fake)
    store.pull(name)
    store.upkeep.prune_blobs()
    del registry.blobs[digest(fake.layers[0])]
    with pytest.raises(StorageError, match="cannot be fetched again"):
        store.archives.save([name])
    assert store.holders() == []


def test_blobs_in_use_are_not_given_up(store: ImageStore, registry: FakeRegistry) -> None:
    name = registry.add("a", "1", simple_image())
    store.pull(name)
    archive = store.archives.save([name])
    assert store.upkeep.prune_blobs().removals == ()
    archive.close()
    assert len(store.upkeep.prune_blobs().removals) == 1


# Sizes.


def test_shared_layers_are_counted_once(store: ImageStore, registry: FakeRegistry) -> None:
    base = tar_of({"base": b"1" * 1000})
    one = store.pull(registry.add("a", "1", FakeImage([base, tar_of({"one": b"1" * 10})])))
    two = store.pull(registry.add("b", "1", FakeImage([base, tar_of({"two": b"1" * 20})])))
    alone = made(store, b"1" * 5)
    shared = store.upkeep.shared_sizes()
    assert (shared.get(one.id), shared.get(two.id), shared.get(alone.id)) == (1000, 1000, None)
    assert store.upkeep.usage().layers_bytes == 1035


def test_usage_counts_blobs_and_erofs_files_apart(store: ImageStore) -> None:
    made(store, b"1", "a")
    usage = store.upkeep.usage()
    assert (usage.blobs.count, usage.erofs.count, usage.unfinished.count) == (3, 1, 0)
    assert usage.droppable_bytes == 0


# Verification.


def damage(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def pulled(store: ImageStore, registry: FakeRegistry) -> Image:
    fake = FakeImage([tar_of({"a": b"1" * 9000}), tar_of({"b": b"2"})], docker=True)
    registry.add("a", "1", fake)
    return store.pull(f"{registry.host}/a:1")


def blob_path(home: Home, name: str) -> Path:
    return home.store / "blobs" / "sha256" / name.removeprefix("sha256:")


def test_an_undamaged_store_is_as_it_should_be(store: ImageStore, pulled: Image) -> None:
    found = store.upkeep.verify()
    assert found.damages == ()
    assert found.checked == 2 * 2 + 3  # blobs and layers; config, manifest, manifest in OCI's form
    assert store.upkeep.verify([pulled.id]).damages == ()


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
@pytest.mark.parametrize("what", ["layer", "config", "manifest", "exported"])
def test_damaged_blobs_are_named_and_mended(
    store: ImageStore, home: Home, pulled: Image, what: str, how: str
) -> None:
    row = store._db.image(pulled.id)
    assert row is not None
    name = {
        "layer": store._db.layers_of(pulled.id)[0].blob,
        "config": pulled.id,
        "manifest": row.manifest_digest,
        "exported": row.export_digest,
    }[what]
    path = blob_path(home, name)
    if how == "changed":
        damage(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.unlink()
    (found,) = store.upkeep.verify().damages
    assert (found.digest, found.images, found.repaired) == (name, pulled.tags, False)
    (mended,) = store.upkeep.verify(repair=True).damages
    assert mended.repaired, mended.failure
    assert store.upkeep.verify().damages == ()


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_damaged_erofs_files_are_named_and_written_again(
    store: ImageStore, home: Home, pulled: Image, how: str
) -> None:
    path = erofs_path(home, pulled)
    good = path.read_bytes()
    if how == "changed":
        damage(path, 5000)
    elif how == "cut":
        path.write_bytes(good[:-4096])
    else:
        path.unlink()
    (found,) = store.upkeep.verify().damages
    assert (found.kind, found.digest) == ("layer", pulled.diff_ids[0])
    assert store.upkeep.verify(repair=True).damages[0].repaired
    assert path.read_bytes() == good
    assert store.upkeep.verify().damages == ()


def test_a_layer_without_its_blob_is_fetched_to_be_written_again(
    store: ImageStore, home: Home, pulled: Image
) -> None:
    store.upkeep.prune_blobs()
    path = erofs_path(home, pulled)
    good = path.read_bytes()
    damage(path, 1030)
    (found,) = store.upkeep.verify().damages
    assert found.kind == "layer"
    assert store.upkeep.verify(repair=True).damages[0].repaired
    assert path.read_bytes() == good


def test_what_no_registry_has_cannot_be_mended_and_says_so(store: ImageStore, home: Home) -> None:
    image = made(store, b"1", "local")
    damage(blob_path(home, image.diff_ids[0]), 0)
    (found,) = store.upkeep.verify(repair=True).damages
    assert not found.repaired
    assert "no registry is known to have it" in found.failure


def test_a_registry_that_has_it_no_more_is_named(
    store: ImageStore, home: Home, registry: FakeRegistry, pulled: Image
) -> None:
    layer = store._db.layers_of(pulled.id)[0]
    blob_path(home, layer.blob).unlink()
    registry.blobs.clear()
    (found,) = store.upkeep.verify(repair=True).damages
    assert registry.host in found.failure


def test_verifying_an_unknown_image_is_an_error(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound):
        store.upkeep.verify(["nothing"])


def test_progress_tells_of_every_layer(store: ImageStore, pulled: Image) -> None:
    told: list[str] = []
    store.upkeep.verify(progress=lambda event: told.append(event.id))
    for layer in store._db.layers_of(pulled.id):
        assert layer.blob[7:19] in told


# A lost database.


def lose_database(store: ImageStore, home: Home) -> ImageStore:
    store.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{home.store_db}{suffix}").unlink(missing_ok=True)
    return ImageStore(home, Settings(), retry=QUICK)


def test_a_lost_database_is_rebuilt(store: ImageStore, home: Home, pulled: Image) -> None:
    store.tag(pulled.id, "mine:1")
    untagged = made(store, b"2")
    before = store.list()
    again = lose_database(store, home)
    try:
        assert again.list() == before
        assert again.resolve(untagged.id) == untagged
        assert again.upkeep.verify().damages == ()
        assert json.loads((home.store / "index.json").read_text())["manifests"]
        assert len(again.layer_files(again.resolve("mine:1"))) == 2
    finally:
        again.close()


def test_files_of_removed_images_that_containers_use_survive_a_lost_database(
    store: ImageStore, home: Home, pulled: Image
) -> None:
    store.hold("container:m:1", pulled)
    store.remove(pulled.id, force=True)
    again = lose_database(store, home)
    try:
        assert again.list() == []
        assert again.holders() == ["rebuild"]
        prune(again, tagged=True)
        again.hold_manifest("container:m:1", pulled.manifest_digest)
        again.release("rebuild")
        assert len(again.layer_files(pulled)) == 2
        again.release("container:m:1")
        assert blobs(home) == set()
    finally:
        again.close()


def test_a_damaged_image_does_not_keep_others_from_being_rebuilt(
    store: ImageStore, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = made(store, b"1", "good"), made(store, b"2", "bad")
    blob_path(home, bad.id).unlink()
    again = lose_database(store, home)
    try:
        assert [image.id for image in again.list()] == [good.id]
        assert bad.manifest_digest in caplog.text
    finally:
        again.close()


def test_a_database_that_is_no_database_says_what_to_do(store: ImageStore, home: Home) -> None:
    store.close()
    for suffix in ("-wal", "-shm"):
        Path(f"{home.store_db}{suffix}").unlink(missing_ok=True)
    home.store_db.write_bytes(b"garbage" * 1000)
    with pytest.raises(WherryError, match="not a database") as caught:
        ImageStore(home, Settings())
    assert "move it away" in (caught.value.hint or "")


def test_only_one_process_rebuilds(store: ImageStore, home: Home, pulled: Image) -> None:
    again = lose_database(store, home)
    other = ImageStore(home, Settings())
    try:
        assert other.list() == again.list() == [pulled]
        assert EROFS_OBJECT + pulled.diff_ids[0] in again._db.objects_of(pulled.id)
    finally:
        other.close()
        again.close()
