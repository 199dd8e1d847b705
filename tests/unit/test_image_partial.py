"""Downloads that go on where an earlier one stopped, mirrors, and all platforms at once."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_fakes import (
    FakeImage,
    FakeRegistry,
    Handler,
    digest,
    index_of,
    running,
    simple_image,
    tar_of,
)

from wherry.errors import ContentMismatch, InvalidInput, RegistryError
from wherry.images import media
from wherry.images.auth import Credentials
from wherry.images.partial import KEEP_BYTES, KEEP_SECONDS
from wherry.images.progress import PullEvent
from wherry.images.retry import RetryPolicy
from wherry.images.store import Image, ImageStore
from wherry.paths import Home
from wherry.settings import Settings

QUICK = RetryPolicy(attempts=2, base=0.001, ceiling=0.01)
BIG = FakeImage([tar_of({"big": random.Random(1).randbytes(3 << 20)})], architecture="amd64")
BLOB = BIG.layers[0]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def mirror() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    return Home(tmp_path / "home")


@pytest.fixture(params=[1, 1 << 40], ids=["process", "here"])
def store(home: Home, request: pytest.FixtureRequest) -> Iterator[ImageStore]:
    with_store = ImageStore(home, Settings(), retry=QUICK, own_process_bytes=request.param)
    yield with_store
    with_store.close()


@pytest.fixture
def plain_store(home: Home) -> Iterator[ImageStore]:
    with_store = ImageStore(home, Settings(), retry=QUICK)
    yield with_store
    with_store.close()


def pull(store: ImageStore, name: str, **more: Any) -> Image:
    return store.pull(name, auth=Credentials(), **more)


def partials(home: Home) -> list[Path]:
    return sorted(home.ingest.glob("*.partial"))


def cut_after(count: int) -> Any:
    def answer(handler: Handler) -> bool:
        data = handler.fake.blobs[handler.path.rpartition("/")[2]]
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        handler.reply(206 if start else 200, data[start:][:count], span, length=len(data) - start)
        return True

    return answer


def test_a_download_that_failed_goes_on_at_the_next_pull(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", BIG)
    registry.fault(digest(BLOB), cut_after(2 << 20), times=1)
    registry.fault(
        digest(BLOB), lambda handler: handler.error(404, "GONE", "gone") or True, times=1
    )
    with pytest.raises(RegistryError, match="gone"):
        pull(store, name)
    assert [path.name[:64] for path in partials(home)] == [digest(BLOB)[7:]]
    had = partials(home)[0].stat().st_size
    assert had >= KEEP_BYTES
    image = pull(store, name)
    assert len(store.layer_files(image)) == 1
    ranges = [
        headers.get("Range")
        for headers, (_, path) in zip(registry.headers, registry.requests, strict=True)
        if path.endswith(digest(BLOB))
    ]
    assert ranges[-1] == f"bytes={had}-"
    assert partials(home) == []


def test_what_is_left_of_a_whole_download_needs_no_request(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", BIG)
    (home.ingest / f"{digest(BLOB)[7:]}.partial").write_bytes(BLOB)
    pull(store, name)
    assert registry.fetched()[digest(BLOB)] == 0


@pytest.mark.parametrize("left", [bytes(2 << 20), BLOB + b"more"], ids=["damaged", "too-long"])
def test_a_damaged_beginning_is_thrown_away(
    registry: FakeRegistry, home: Home, store: ImageStore, left: bytes
) -> None:
    name = registry.add("a", "1", BIG)
    (home.ingest / f"{digest(BLOB)[7:]}.partial").write_bytes(left)
    image = pull(store, name)
    assert len(store.layer_files(image)) == 1
    assert partials(home) == []


def test_wrong_content_leaves_nothing(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", BIG)
    registry.blobs[digest(BLOB)] = bytes(len(BLOB))
    with pytest.raises(ContentMismatch):
        pull(store, name)
    assert partials(home) == []
    assert registry.fetched()[digest(BLOB)] == 1


def test_a_few_bytes_are_not_kept(registry: FakeRegistry, home: Home, store: ImageStore) -> None:
    name = registry.add("a", "1", BIG)
    registry.fault(digest(BLOB), cut_after(1000))
    with pytest.raises(RegistryError):
        pull(store, name)
    assert partials(home) == []


def test_a_pull_that_its_user_ends_keeps_what_it_has(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", BIG)

    def gone(event: PullEvent) -> None:
        if event.status == "Downloading" and event.current == event.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(store, name, progress=gone)
    assert [path.stat().st_size for path in partials(home)] == [len(BLOB)]


def test_after_a_day_nobody_will_go_on(home: Home, plain_store: ImageStore) -> None:
    old, new = (home.ingest / f"{letter * 64}.partial" for letter in "ab")
    for path in (old, new):
        path.write_bytes(b"x")
    past = time.time() - KEEP_SECONDS - 60
    os.utime(old, (past, past))
    ImageStore(home, Settings()).close()
    assert partials(home) == [new]


# Mirrors.


def mirrored(home: Home, registry: FakeRegistry, *mirrors: str) -> ImageStore:
    settings = Settings(registry_mirrors=((registry.host, mirrors),))
    return ImageStore(home, settings, retry=QUICK)


def test_a_mirror_is_asked_first(registry: FakeRegistry, mirror: FakeRegistry, home: Home) -> None:
    mirror.add("a", "1", BIG)
    store = mirrored(home, registry, f"http://{mirror.host}")
    image = pull(store, f"{registry.host}/a:1")
    assert image.tags == (f"{registry.host}/a:1",)
    assert registry.requests == []
    store.close()


def test_the_registry_is_asked_where_a_mirror_has_nothing(
    registry: FakeRegistry, mirror: FakeRegistry, home: Home
) -> None:
    with running(FakeRegistry()) as stopped:
        dead = stopped.host
    name = registry.add("a", "1", BIG)
    store = mirrored(home, registry, f"http://{dead}", f"http://{mirror.host}")
    assert pull(store, name).id == BIG.id
    assert ("GET", "/v2/a/manifests/1") in mirror.requests
    store.close()


def test_a_mirror_that_breaks_off_is_gone_on_from(
    registry: FakeRegistry, mirror: FakeRegistry, home: Home
) -> None:
    name = registry.add("a", "1", BIG)
    mirror.add("a", "1", BIG)
    mirror.fault(digest(BLOB), cut_after(2 << 20), times=1)
    mirror.fault(digest(BLOB), lambda handler: handler.error(500, "BROKEN", "broken") or True)
    store = mirrored(home, registry, f"http://{mirror.host}")
    assert pull(store, name).id == BIG.id
    asked = registry.headers[-1].get("Range")
    assert asked is not None and int(asked[6:-1]) > 1 << 20
    store.close()


def test_a_mirror_that_lies_is_not_believed(
    registry: FakeRegistry, mirror: FakeRegistry, home: Home
) -> None:
    name = registry.add("a", "1", BIG)
    mirror.add("a", "1", BIG)
    mirror.blobs[digest(BLOB)] = bytes(len(BLOB))
    store = mirrored(home, registry, f"http://{mirror.host}")
    image = pull(store, name)
    assert len(store.layer_files(image)) == 1
    assert registry.fetched()[digest(BLOB)] == 1
    store.close()


def test_the_registrys_password_is_not_for_its_mirror(
    registry: FakeRegistry, mirror: FakeRegistry, home: Home
) -> None:
    name = registry.add("a", "1", BIG)

    def basic(handler: Handler) -> bool:
        if "Authorization" in handler.headers:
            return False
        handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        return True

    registry.authorize = mirror.authorize = basic
    mirror.add("a", "1", BIG)
    store = mirrored(home, registry, f"http://{mirror.host}")
    store.pull(name, auth=Credentials("me", "secret"))
    assert mirror.headers and all("Authorization" not in headers for headers in mirror.headers)
    store.close()


def test_a_mirror_in_the_clear_has_to_be_allowed(home: Home) -> None:
    settings = Settings(registry_mirrors=(("docker.io", ("http://mirror.example",)),))
    store = ImageStore(home, settings, retry=QUICK)
    with pytest.raises(InvalidInput, match="is not encrypted") as caught:
        pull(store, "debian:13")
    assert caught.value.hint is not None and "insecure_registries" in caught.value.hint
    store.close()


# All platforms.


ARM = simple_image(b"arm\n", architecture="arm64")
ATTESTATION = FakeImage([b'{"predicate": 1}'], compress=bytes, os="unknown", architecture="unknown")


def whole_index(registry: FakeRegistry) -> tuple[str, bytes, FakeImage]:
    """An index with two platforms, an attestation and a helm chart's manifest."""
    amd = FakeImage([tar_of({"f": b"amd"})])
    chart, config = b"chart", b'{"name": "chart"}'
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "artifactType": "application/vnd.example.chart",
            "config": {
                "mediaType": "application/vnd.cncf.helm.config.v1+json",
                "digest": digest(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.example.new",
                    "digest": digest(chart),
                    "size": len(chart),
                }
            ],
        }
    ).encode()
    registry.blobs |= {digest(chart): chart, digest(config): config}
    registry.manifests["a", digest(manifest)] = (media.OCI_MANIFEST, manifest)
    extra = {"mediaType": media.OCI_MANIFEST, "digest": digest(manifest), "size": len(manifest)}
    index = index_of(amd, ARM, ATTESTATION, extra=({**extra, "platform": None},))
    name = registry.add("a", "1", amd, ARM, ATTESTATION, index=index)
    return name, index, amd


def test_all_platforms_are_pulled_and_pushed_as_they_are(
    registry: FakeRegistry, mirror: FakeRegistry, plain_store: ImageStore, home: Home
) -> None:
    store = plain_store
    name, index, amd = whole_index(registry)
    image = pull(store, name, platform="linux/amd64", all_platforms=True)
    assert image.id == amd.id
    assert len(store.list()) == 1
    copy = f"{mirror.host}/copy:1"
    store.tag(name, copy)
    pushed = store.distribution.push(copy, Credentials(), all_platforms=True)
    assert (pushed.digest, pushed.size) == (digest(index), len(index))
    assert mirror.manifests["copy", "1"] == (media.OCI_INDEX, index)
    assert mirror.blobs == registry.blobs
    before = len(registry.requests)
    assert pull(store, name, platform="linux/arm64").id == ARM.id
    assert {path for _, path in registry.requests[before:]} == {"/v2/", "/v2/a/manifests/1"}
    store.remove(name)
    store.remove(copy)
    for left in store.list():
        store.remove(left.id, force=True)
    assert list((home.store / "blobs" / "sha256").iterdir()) == []


def test_a_whole_that_is_not_there_is_not_pushed(
    registry: FakeRegistry, plain_store: ImageStore
) -> None:
    name, _, _ = whole_index(registry)
    pull(plain_store, name, platform="linux/amd64")
    with pytest.raises(InvalidInput, match="linux/arm64") as caught:
        plain_store.distribution.push(name, Credentials(), all_platforms=True)
    assert caught.value.hint is not None and "--all-platforms" in caught.value.hint


def test_all_platforms_of_a_single_image_are_that_image(
    registry: FakeRegistry, mirror: FakeRegistry, plain_store: ImageStore
) -> None:
    name = registry.add("a", "1", BIG)
    pull(plain_store, name, all_platforms=True)
    plain_store.tag(name, f"{mirror.host}/b:1")
    pushed = plain_store.distribution.push(f"{mirror.host}/b:1", Credentials(), all_platforms=True)
    assert pushed.digest == BIG.manifest_digest


@pytest.mark.parametrize("has_referrers", [True, False])
def test_what_is_about_another_manifest_can_be_found_from_that(
    registry: FakeRegistry, mirror: FakeRegistry, plain_store: ImageStore, has_referrers: bool
) -> None:
    subject = FakeImage([tar_of({"f": b"amd"})])
    fields = json.loads(ARM.manifest) | {
        "artifactType": "application/vnd.example.sbom",
        "annotations": {"a": "b"},
        "subject": {
            "mediaType": subject.media_type,
            "digest": subject.manifest_digest,
            "size": len(subject.manifest),
        },
    }
    about = json.dumps(fields).encode()
    registry.manifests["a", digest(about)] = (media.OCI_MANIFEST, about)
    entry = {"mediaType": media.OCI_MANIFEST, "digest": digest(about), "size": len(about)}
    index = index_of(subject, extra=(entry,))
    name = registry.add("a", "1", subject, ARM, index=index)
    pull(plain_store, name, platform="linux/amd64", all_platforms=True)
    mirror.has_referrers = has_referrers
    plain_store.tag(name, f"{mirror.host}/b:1")
    for _ in range(2):
        plain_store.distribution.push(f"{mirror.host}/b:1", Credentials(), all_platforms=True)
    tag = ("b", subject.manifest_digest.replace(":", "-"))
    assert (tag in mirror.manifests) is not has_referrers
    if not has_referrers:
        kind, body = mirror.manifests[tag]
        [noted] = json.loads(body)["manifests"]
        assert kind == media.OCI_INDEX
        assert noted["artifactType"] == "application/vnd.example.sbom"
        assert noted["annotations"] == {"a": "b"}
