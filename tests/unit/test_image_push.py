from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_fakes import (
    FakeImage,
    FakeRegistry,
    digest,
    running,
    simple_image,
    tar_of,
)

from wherry.errors import ImageNotFound, InvalidInput, RegistryError, StorageError
from wherry.images import media
from wherry.images.auth import Credentials
from wherry.images.progress import PullEvent
from wherry.images.push import Pushed
from wherry.images.retry import RetryPolicy
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

QUICK = RetryPolicy(attempts=3, base=0.001, ceiling=0.01)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def target() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageStore]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    with_store = ImageStore(Home(tmp_path / "home"), Settings(), retry=QUICK)
    yield with_store
    with_store.close()


def random_image(*seeds: int, **more: Any) -> FakeImage:
    return FakeImage(
        [tar_of({f"f{seed}": random.Random(seed).randbytes(5000)}) for seed in seeds], **more
    )


def pushed(store: ImageStore, name: str, **more: Any) -> tuple[Pushed, list[PullEvent]]:
    events: list[PullEvent] = []
    result = store.distribution.push(name, Credentials(), events.append, **more)
    return result, events


def statuses(events: list[PullEvent], blob: str) -> list[str]:
    short = blob.removeprefix("sha256:")[:12]
    return [event.status for event in events if event.id == short]


@pytest.mark.parametrize("docker", [True, False])
def test_a_pulled_image_is_pushed_byte_for_byte(
    registry: FakeRegistry, target: FakeRegistry, store: ImageStore, docker: bool
) -> None:
    image = random_image(1, 2, docker=docker)
    name = f"{target.host}/mine/app:2"
    store.tag(store.pull(registry.add("a/b", "1", image)).id, name)
    result, events = pushed(store, name)
    assert result == Pushed("2", image.manifest_digest, len(image.manifest))
    assert target.manifests["mine/app", "2"] == (image.media_type, image.manifest)
    assert set(target.blobs) == {image.id, *map(digest, image.layers)}
    assert events[0].status == f"The push refers to repository [{target.host}/mine/app]"
    assert events[-1].status == f"2: digest: {result.digest} size: {result.size}"
    for layer in image.layers:
        said = statuses(events, digest(layer))
        assert said[0] == "Preparing" and said[-1] == "Pushed" and "Pushing" in said
    assert statuses(events, image.id) == []
    assert f"{target.host}/mine/app@{result.digest}" in store.resolve(name).digests


def test_layers_that_the_registry_has_are_not_sent_again(
    registry: FakeRegistry, store: ImageStore
) -> None:
    image = random_image(1, 2)
    name = registry.add("a/b", "1", image)
    store.pull(name)
    other = f"{registry.host}/a/b:2"
    store.tag(name, other)
    _, events = pushed(store, other)
    assert registry.sent("POST") == []
    assert statuses(events, digest(image.layers[0]))[-1] == "Layer already exists"


def test_layers_are_mounted_from_where_they_are_known_to_be(
    registry: FakeRegistry, store: ImageStore
) -> None:
    image = random_image(1, 2)
    name = registry.add("a/b", "1", image)
    registry.owned = {"new": set()}
    store.pull(name)
    for place in ("new", "newer"):
        registry.owned[place] = set()
        store.tag(name, f"{registry.host}/{place}:1")
        _, events = pushed(store, f"{registry.host}/{place}:1")
        assert statuses(events, digest(image.layers[0]))[-1].startswith("Mounted from ")
    assert registry.sent("PATCH") == [] and registry.uploads == {}
    assert registry.owned["newer"] == {image.id, *map(digest, image.layers)}


def test_manifests_come_last(
    registry: FakeRegistry, target: FakeRegistry, store: ImageStore
) -> None:
    name = f"{target.host}/x:1"
    store.tag(store.pull(registry.add("a", "1", random_image(1, 2, 3))).id, name)
    pushed(store, name)
    puts = target.sent("PUT")
    assert puts[-1] == "/v2/x/manifests/1"
    assert all("/blobs/" in path for path in puts[:-1])


def layout_of(directory: Path, image: FakeImage, layer_type: str) -> Path:
    """An OCI layout whose layers are said to be of that type."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifest = json.loads(image.manifest)
    for layer in manifest["layers"]:
        layer["mediaType"] = layer_type
    data = json.dumps(manifest).encode()
    for blob in (data, image.config, *image.layers):
        (blobs / digest(blob)[7:]).write_bytes(blob)
    entry = {"mediaType": media.OCI_MANIFEST, "digest": digest(data), "size": len(data)}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


PLAIN = "application/vnd.oci.image.layer.v1.tar"


def test_uncompressed_layers_are_compressed_once_and_the_image_keeps_its_id(
    target: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    image = FakeImage([tar_of({f"f{n}": b"text\n" * 9000}) for n in range(3)], compress=bytes)
    name = f"{target.host}/box:1"
    imported = store.import_layout(layout_of(tmp_path / "layout", image, PLAIN), name)
    first, events = pushed(store, name)
    kind, body = target.manifests["box", "1"]
    layers = json.loads(body)["layers"]
    assert kind == media.OCI_MANIFEST
    assert {layer["mediaType"] for layer in layers} == {f"{PLAIN}+gzip"}
    assert [gzip.decompress(target.blobs[it["digest"]]) for it in layers] == image.tars
    assert statuses(events, layers[0]["digest"])[-1] == "Pushed"
    assert pushed(store, name)[0] == first
    target.blobs.clear()
    assert pushed(store, name)[0] == first
    assert store.resolve(name).id == imported.id == image.id
    again = store.pull(name, auth=Credentials())
    assert again.id == image.id
    assert target.fetched().total() == 0
    store.remove(name)
    assert list((tmp_path / "home" / "store" / "blobs" / "sha256").iterdir()) == []


def test_a_layer_that_is_compressed_whatever_its_type_says_is_left_alone(
    target: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    image = random_image(1)
    name = f"{target.host}/box:1"
    store.import_layout(layout_of(tmp_path / "layout", image, PLAIN), name)
    pushed(store, name)
    assert set(target.blobs) == {image.id, digest(image.layers[0])}


def test_a_push_fails_as_a_whole_and_the_tag_is_not_moved(
    registry: FakeRegistry, target: FakeRegistry, store: ImageStore
) -> None:
    image = random_image(1, 2, 3)
    name = f"{target.host}/x:1"
    store.tag(store.pull(registry.add("a", "1", image)).id, name)
    target.fault("/uploads/", lambda handler: handler.error(403, "DENIED", "read-only") or True)
    with pytest.raises(Exception, match="read-only"):
        pushed(store, name)
    assert target.manifests == {}


def test_what_a_callback_raises_ends_the_push(
    registry: FakeRegistry, target: FakeRegistry, store: ImageStore
) -> None:
    name = f"{target.host}/x:1"
    store.tag(store.pull(registry.add("a", "1", random_image(1))).id, name)

    def gone(event: PullEvent) -> None:
        if event.status == "Pushing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.distribution.push(name, Credentials(), gone)
    assert target.manifests == {}


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("localhost/box", InvalidInput, "of this machine only"),
        ("r.example/none:1", ImageNotFound, "does not exist locally"),
        ("r.example/none@sha256:" + "0" * 64, InvalidInput, "digest reference"),
    ],
)
def test_what_cannot_be_pushed_is_said(
    store: ImageStore, name: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pushed(store, name)


def test_a_blob_that_is_gone_is_needed_only_where_the_registry_lacks_it(
    registry: FakeRegistry, target: FakeRegistry, store: ImageStore, tmp_path: Path
) -> None:
    image = random_image(1)
    name = registry.add("a", "1", image)
    store.pull(name)
    for place in (f"{registry.host}/a:2", f"{target.host}/a:1"):
        store.tag(name, place)
    blobs = tmp_path / "home" / "store" / "blobs" / "sha256"
    (blobs / digest(image.layers[0])[7:]).unlink()
    pushed(store, f"{registry.host}/a:2")
    assert registry.fetched()[digest(image.layers[0])] == 1
    pushed(store, f"{target.host}/a:1")
    assert registry.fetched()[digest(image.layers[0])] == 2
    (blobs / digest(image.layers[0])[7:]).unlink()
    registry.blobs.clear()
    target.blobs.clear()
    with pytest.raises(StorageError, match="cannot be fetched again"):
        pushed(store, f"{target.host}/a:1")


def test_a_registry_that_knows_no_oci_types_is_told_apart(
    registry: FakeRegistry, target: FakeRegistry, store: ImageStore
) -> None:
    target.refuses = {media.OCI_MANIFEST}
    name = f"{target.host}/x:1"
    store.tag(store.pull(registry.add("a", "1", simple_image())).id, name)
    with pytest.raises(RegistryError, match="does not take this OCI manifest"):
        pushed(store, name)


def test_all_tags_of_a_repository_are_known(registry: FakeRegistry, store: ImageStore) -> None:
    name = store.pull(registry.add("a/b", "1", simple_image())).tags[0]
    store.tag(name, f"{registry.host}/a/b:2")
    store.tag(name, f"{registry.host}/a/bc:3")
    assert store.distribution.tags_of(f"{registry.host}/a/b") == [
        f"{registry.host}/a/b:1",
        f"{registry.host}/a/b:2",
    ]
