"""`commit`: an image of another one and one more layer, on the store alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from image_fakes import FakeImage, FakeRegistry, digest, running, tar_of

from wherry.errors import InvalidInput, InvalidReference
from wherry.images.committing import EMPTY_LAYER, Commit
from wherry.images.image import Image
from wherry.images.platform import Platform
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings
from wherry_guest import tarformat

SECOND = 1_000_000_000
NEW = Commit(
    config={"Cmd": ["sh"]},
    platform=Platform("linux", "amd64"),
    created_ns=1_700_000_000 * SECOND,
    created_by="make it",
    comment="why",
    author="who",
)
LAYER = tar_of({"new": b"content"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    it = ImageStore(Home(tmp_path), Settings())
    yield it
    it.close()


def documents(store: ImageStore, home: Path, image: Image) -> tuple[dict, dict]:  # type: ignore[type-arg]  # JSON
    blobs = home / "store" / "blobs" / "sha256"
    manifest = json.loads((blobs / image.manifest_digest.removeprefix("sha256:")).read_bytes())
    return json.loads(image.raw_config), manifest


def parent_of(store: ImageStore, **more: object) -> Image:
    with running(FakeRegistry()) as registry:
        fake = FakeImage([tar_of({"old": b"1"})], **more)  # type: ignore[arg-type]  # its fields
        return store.pull(registry.add("parent", "1", fake), platform="linux/amd64")


def test_the_layer_comes_on_top_of_the_parents(store: ImageStore, tmp_path: Path) -> None:
    parent = parent_of(store)
    image = store.commit(parent, iter([LAYER]), NEW, "made:1")
    assert image.tags == ("made:1",)
    assert image.diff_ids == (*parent.diff_ids, digest(LAYER))
    assert image.config == {"Cmd": ["sh"]}
    config, manifest = documents(store, tmp_path, image)
    assert (config["author"], config["created"]) == ("who", "2023-11-14T22:13:20Z")
    assert manifest["layers"][-1] == {
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": digest(LAYER),
        "size": len(LAYER),
    }
    assert [file.diff_id for file in store.layer_files(image)] == list(image.diff_ids)


def test_the_history_tells_the_new_step_and_keeps_the_old_ones(store: ImageStore) -> None:
    image = store.commit(parent_of(store), iter([LAYER]), NEW)
    newest, *older = store.history(image)
    assert (newest.id, newest.created_by, newest.comment) == (image.id, "make it", "why")
    assert newest.size == len(b"content")
    assert [entry.size for entry in older] == [1]


def test_an_empty_layer_is_none(store: ImageStore) -> None:
    parent = parent_of(store)
    assert digest(tarformat.END) == EMPTY_LAYER
    image = store.commit(parent, iter([tarformat.END]), NEW, "made:1")
    assert image.diff_ids == parent.diff_ids
    assert store.history(image)[0].empty_layer
    again = store.commit(image, iter([LAYER]), NEW)
    assert [entry.size for entry in store.history(again)] == [7, 0, 1]


def test_the_same_layer_and_words_give_the_same_image(store: ImageStore) -> None:
    first = store.commit(None, iter([LAYER]), NEW, "a:1")
    second = store.commit(None, iter([LAYER[:700], LAYER[700:]]), NEW, "b:1")
    assert second.id == first.id
    assert second.manifest_digest == first.manifest_digest
    assert second.tags == ("a:1", "b:1")


def test_a_parent_that_was_removed_but_is_held_will_do(store: ImageStore) -> None:
    parent = parent_of(store)
    store.hold("container", parent)
    store.remove(parent.id, force=True)
    image = store.commit(replace(parent, raw_config=b""), iter([LAYER]), NEW)
    store.release("container")
    assert len(store.layer_files(image)) == 2


def test_a_damaged_layer_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    parent = parent_of(store)
    blobs = set((tmp_path / "store" / "blobs" / "sha256").iterdir())
    with pytest.raises(InvalidInput):
        store.commit(parent, iter([LAYER[:600], b"x" * 600]), NEW, "made:1")
    assert set((tmp_path / "store" / "blobs" / "sha256").iterdir()) == blobs
    assert [image.id for image in store.list()] == [parent.id]


def test_an_error_of_the_source_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    def torn() -> Iterator[bytes]:
        yield LAYER[:600]
        raise ConnectionResetError("the guest is gone")

    with pytest.raises(Exception, match="the guest is gone"):
        store.commit(None, torn(), NEW, "made:1")
    assert store.list() == []
    assert [it for it in (tmp_path / "ingest").iterdir() if it.name != "locks"] == []


def test_a_bad_name_is_said_before_anything_is_read(store: ImageStore) -> None:
    def unread() -> Iterator[bytes]:
        raise AssertionError("nobody must read this")
        yield b""

    with pytest.raises(InvalidReference):
        store.commit(None, unread(), NEW, "Not A Name")
