from __future__ import annotations

import errno
import gzip
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from image_fakes import (
    FakeImage,
    FakeRegistry,
    Handler,
    digest,
    gz,
    index_of,
    running,
    simple_image,
    tar_of,
    token_auth,
    write_layout,
)

from wherry.errors import (
    Conflict,
    ContentMismatch,
    ImageNotFound,
    InvalidInput,
    InvalidReference,
    RegistryError,
    StorageError,
    Unauthorized,
    WherryError,
)
from wherry.images.auth import Credentials
from wherry.images.layers import LayerStore
from wherry.images.layout import Layout
from wherry.images.platform import Platform
from wherry.images.progress import PullEvent
from wherry.images.pull import ImageLimits
from wherry.images.retry import RetryPolicy
from wherry.images.store import Image, ImageStore
from wherry.paths import Home
from wherry.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

QUICK = RetryPolicy(attempts=3, base=0.001, ceiling=0.01)
ANONYMOUS = Credentials()


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
    with_store = ImageStore(home, Settings(), retry=QUICK)
    yield with_store
    with_store.close()


def files(home: Home) -> set[str]:
    """What is stored: blobs, layers, and whatever is left of unfinished work."""
    places = [home.store / "blobs", home.layers, home.ingest]
    found = (path for place in places for path in place.rglob("*") if path.is_file())
    return {path.name for path in found if path.suffix != ".lock"}


def blob_names(home: Home) -> set[str]:
    return {f"sha256:{path.name}" for path in (home.store / "blobs" / "sha256").iterdir()}


def random_tar(seed: int, size: int = 10_000) -> bytes:
    import random

    return tar_of({f"file{seed}": random.Random(seed).randbytes(size)})


# Pulling.


@pytest.mark.parametrize("docker", [True, False])
def test_a_pulled_image_is_there_by_name_digest_id_and_beginning_of_id(
    registry: FakeRegistry, store: ImageStore, docker: bool
) -> None:
    fake = simple_image(docker=docker)
    name = registry.add("a/b", "1", fake)
    image = store.pull(name)
    assert image.id == fake.id
    assert image.tags == (name,)
    assert image.digests == (f"{registry.host}/a/b@{fake.manifest_digest}",)
    assert (image.os, image.architecture, image.variant) == ("linux", "amd64", "")
    assert image.config["Cmd"] == ["/bin/sh"]
    assert image.created_ns == 1_714_557_600_500_000_000
    assert image.size == len(b"hello\n")
    assert image.raw_config == fake.config
    for ref in (name, image.digests[0], fake.id, fake.id[7:], fake.id[7:15], fake.id[:19]):
        assert store.resolve(ref) == image
    assert store.list() == [image]


def test_layers_become_erofs_files(registry: FakeRegistry, store: ImageStore) -> None:
    fake = FakeImage([random_tar(1), random_tar(2)])
    image = store.pull(registry.add("a", "1", fake))
    layers = store.layer_files(image)
    assert [layer.diff_id for layer in layers] == [digest(tar) for tar in fake.tars]
    for layer in layers:
        assert layer.path.read_bytes()[1024:1028] == bytes.fromhex("e2e1f5e0")
        assert len(layer.uuid) == 36


@pytest.mark.parametrize("compress", [gz, zstd.compress, bytes])
def test_gzip_zstd_and_plain_layers_are_the_same_layer(
    registry: FakeRegistry, store: ImageStore, compress: Any
) -> None:
    fake = simple_image(compress=compress)
    assert store.layer_files(store.pull(registry.add("a", "1", fake)))[0].diff_id == digest(
        fake.tars[0]
    )


def test_big_layers_are_unpacked_in_processes_of_their_own(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    fake = FakeImage([random_tar(n, 300_000) for n in range(4)])
    name = registry.add("a", "1", fake)
    here = [file.path.read_bytes() for file in store.layer_files(store.pull(name))]
    other = ImageStore(Home(home.root / "2"), Settings(), own_process_bytes=1)
    there = [file.path.read_bytes() for file in other.layer_files(other.pull(name))]
    other.close()
    assert here == there


def test_the_image_of_the_wanted_platform_is_taken(
    registry: FakeRegistry, store: ImageStore
) -> None:
    images = [
        simple_image(b"amd64"),
        simple_image(b"arm64", architecture="arm64"),
        simple_image(b"v7", architecture="arm", variant="v7"),
        simple_image(b"?", architecture="unknown", os="unknown"),
    ]
    name = registry.add("a", "1", *images)
    assert store.pull(name, platform="linux/arm64").id == images[1].id
    assert store.pull(name, platform="linux/arm/v8").id == images[2].id
    assert store.pull(name, platform="linux/amd64/v2").id == images[0].id
    assert store.resolve(name, platform="linux/amd64").id == images[0].id
    assert store.resolve(name, platform="linux/arm64").id == images[1].id
    with pytest.raises(ImageNotFound, match="wanted linux/s390x, actual: linux/amd64"):
        store.resolve(name, platform="linux/s390x")
    with pytest.raises(
        ImageNotFound, match="no matching manifest for linux/s390x in the"
    ) as caught:
        store.pull(name, platform="linux/s390x")
    assert caught.value.hint == "it has: linux/amd64, linux/arm/v7, linux/arm64"


def test_without_a_platform_a_tag_is_the_machines_own_image_when_that_is_here(
    registry: FakeRegistry, home: Home
) -> None:
    images = [simple_image(b"amd64"), simple_image(b"arm64", architecture="arm64")]
    name = registry.add("a", "1", *images)
    with closing(ImageStore(home, Settings(), platform=Platform("linux", "amd64"))) as store:
        assert store.pull(name, platform="linux/arm64").id == images[1].id
        assert store.resolve(name).id == images[1].id  # there is no other
        assert store.pull(name).id == images[0].id
        assert store.pull(name, platform="linux/arm64").id == images[1].id
        assert store.resolve(name).id == images[0].id
    with closing(ImageStore(home, Settings(), platform=Platform("linux", "arm64"))) as store:
        assert store.resolve(name).id == images[1].id


def test_a_tag_that_moved_on_is_nobodys_older_image_for_another_platform(
    registry: FakeRegistry, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image(b"old"))
    store.pull(name)
    registry.add("a", "1", simple_image(b"new", architecture="arm64"))
    new = store.pull(name, platform="linux/arm64")
    assert store.resolve(name).id == new.id
    with pytest.raises(ImageNotFound, match="wanted linux/amd64, actual: linux/arm64"):
        store.resolve(name, platform="linux/amd64")


def test_a_lone_image_of_another_platform_needs_to_be_wanted(
    registry: FakeRegistry, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image(architecture="s390x"))
    with pytest.raises(ImageNotFound, match="wanted linux/arm64, actual: linux/s390x") as caught:
        store.pull(name, platform="linux/arm64")
    assert caught.value.hint == "it has: linux/s390x"
    assert store.pull(name).architecture == "s390x"
    windows = registry.add("w", "1", simple_image(os="windows"))
    with pytest.raises(ImageNotFound, match="does not match the specified platform") as caught:
        store.pull(windows)
    assert "need a Windows kernel" in (caught.value.hint or "")


def test_indexes_may_nest_but_not_for_ever(registry: FakeRegistry, store: ImageStore) -> None:
    fake = simple_image()
    inner = index_of(fake)
    entry = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(inner)}
    outer = index_of(extra=(entry | {"size": len(inner)},))
    registry.add("a", "inner", fake, index=inner)
    assert store.pull(registry.add("a", "1", fake, index=outer)).id == fake.id
    loop = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    for _ in range(5):
        lower = {"mediaType": entry["mediaType"], "digest": digest(loop), "size": len(loop)}
        registry.add("a", "x", fake, index=loop)
        loop = index_of(extra=(lower,))
    with pytest.raises(RegistryError, match="nested too deeply"):
        store.pull(registry.add("a", "deep", fake, index=loop))


def test_pull_by_digest_has_a_digest_and_no_tag(registry: FakeRegistry, store: ImageStore) -> None:
    fake = simple_image()
    registry.add("a", "1", fake)
    for name in ("a", "a:9"):
        image = store.pull(f"{registry.host}/{name}@{fake.manifest_digest}")
        assert image.tags == ()
        assert image.digests == (f"{registry.host}/a@{fake.manifest_digest}",)
    assert store.resolve(f"{registry.host}/a:whatever@{fake.manifest_digest}").id == fake.id


def test_a_layer_twice_is_fetched_once_and_keeps_its_topmost_place(
    registry: FakeRegistry, store: ImageStore
) -> None:
    low, high = random_tar(1), random_tar(2)
    fake = FakeImage([low, high, low])
    image = store.pull(registry.add("a", "1", fake))
    assert image.diff_ids == (digest(low), digest(high), digest(low))
    assert [layer.diff_id for layer in store.layer_files(image)] == [digest(high), digest(low)]
    assert set(registry.fetched().values()) == {1}


def test_what_an_opaque_root_hides_is_left_out(registry: FakeRegistry, store: ImageStore) -> None:
    hider = tar_of({".wh..wh..opq": b"", "new": b"x"})
    top = random_tar(2)
    image = store.pull(registry.add("a", "1", FakeImage([random_tar(1), hider, top])))
    assert [layer.diff_id for layer in store.layer_files(image)] == [digest(hider), digest(top)]


def test_progress_speaks_docker(registry: FakeRegistry, store: ImageStore) -> None:
    fake = simple_image()
    name = registry.add("a", "1", fake)
    events: list[PullEvent] = []
    store.pull(name, progress=events.append)
    short = digest(fake.layers[0])[7:19]
    layer = [event.status for event in events if event.id == short]
    assert layer == [
        "Pulling fs layer",
        "Downloading",
        "Downloading",
        "Download complete",
        "Extracting",
        "Pull complete",
    ]
    assert events[0] == PullEvent("Pulling from a", "1")
    assert events[-2].status == f"Digest: {fake.manifest_digest}"
    assert events[-1].status == f"Status: Downloaded newer image for {name}"
    events.clear()
    store.pull(name, progress=events.append)
    assert [event.status for event in events if event.id == short] == ["Already exists"]
    assert events[-1].status == f"Status: Image is up to date for {name}"


def test_an_exception_of_the_progress_callback_ends_the_pull(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    def enough(event: PullEvent) -> None:
        if event.status == "Downloading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(registry.add("a", "1", simple_image()), progress=enough)
    assert files(home) == set()


def test_shared_layers_are_not_fetched_again(registry: FakeRegistry, store: ImageStore) -> None:
    base = random_tar(1)
    store.pull(registry.add("a", "1", FakeImage([base])))
    store.pull(registry.add("b", "1", FakeImage([base, random_tar(2)])))
    assert set(registry.fetched().values()) == {1}


def test_a_pull_by_digest_of_what_is_there_asks_nobody(
    registry: FakeRegistry, store: ImageStore
) -> None:
    image = store.pull(registry.add("a", "1", simple_image()))
    asked = len(registry.requests)
    assert store.pull(image.digests[0]).id == image.id
    assert len(registry.requests) == asked


def test_a_moved_tag_leaves_the_old_image_without_a_name(
    registry: FakeRegistry, store: ImageStore
) -> None:
    old = store.pull(registry.add("a", "1", simple_image(b"old")))
    new = store.pull(registry.add("a", "1", simple_image(b"new")))
    assert {(image.id, image.tags) for image in store.list()} == {
        (old.id, ()),
        (new.id, (f"{registry.host}/a:1",)),
    }


def test_names_under_localhost_are_never_asked_from_a_registry(store: ImageStore) -> None:
    for action in (store.pull, store.resolve):
        with pytest.raises(ImageNotFound, match="No such image: localhost/nothing:latest") as it:
            action("localhost/nothing")
        assert it.value.hint is not None and "no registry" in it.value.hint


def test_credentials_come_from_the_call_or_from_docker(
    registry: FakeRegistry, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.add("a", "1", simple_image())
    token_auth(registry, user="me", password="secret")
    with pytest.raises(Unauthorized):
        store.pull(name)
    assert store.pull(name, auth={"username": "me", "password": "secret"})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    config = {"auths": {registry.host: {"username": "me", "password": "secret"}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert store.pull(name)
    with pytest.raises(Unauthorized):
        store.pull(name, auth=ANONYMOUS)


# What goes wrong leaves nothing.


def wrong_digest(registry: FakeRegistry, fake: FakeImage) -> None:
    name = digest(fake.layers[0])
    registry.blobs[name] = bytes(len(registry.blobs[name]))


def truncated(registry: FakeRegistry, fake: FakeImage) -> None:
    data = fake.layers[0]

    def cut(handler: Handler) -> bool:
        handler.reply(200, data[: len(data) // 2], length=len(data))
        return True

    registry.fault(f"/blobs/{digest(data)}", cut)


def shorter(registry: FakeRegistry, fake: FakeImage) -> None:
    registry.blobs[digest(fake.layers[0])] = fake.layers[0][:-1]


def missing(registry: FakeRegistry, fake: FakeImage) -> None:
    del registry.blobs[digest(fake.layers[0])]


def wrong_config(registry: FakeRegistry, fake: FakeImage) -> None:
    registry.blobs[fake.id] = bytes(len(fake.config))


@pytest.mark.parametrize("own_process_bytes", [1, 1 << 40], ids=["process", "here"])
@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (wrong_digest, ContentMismatch, "content has the digest"),
        (truncated, RegistryError, "broke off"),
        (shorter, ContentMismatch, "the manifest says"),
        (missing, RegistryError, "404"),
        (wrong_config, ContentMismatch, "content has the digest"),
    ],
)
def test_a_registry_that_lies_leaves_nothing_behind(
    registry: FakeRegistry,
    home: Home,
    harm: Any,
    error: type[WherryError],
    said: str,
    own_process_bytes: int,
) -> None:
    fake = simple_image(b"x" * 5000)
    name = registry.add("team/app", "1", fake)
    harm(registry, fake)
    store = ImageStore(home, Settings(), retry=QUICK, own_process_bytes=own_process_bytes)
    with pytest.raises(error, match=said) as caught:
        store.pull(name, auth=ANONYMOUS)
    assert type(caught.value) is error
    assert f"registry {registry.host}, repository team/app, blob sha256:" in caught.value.message
    assert store.list() == []
    assert files(home) == set()
    store.close()


def bad_layer(layer: bytes, tar: bytes) -> FakeImage:
    fake = FakeImage([tar])
    fake.layers = [layer]
    fake.manifest = fake.make_manifest()
    return fake


TAR = tar_of({"a": bytes(range(256)) * 100})


@pytest.mark.parametrize("own_process_bytes", [1, 1 << 40], ids=["process", "here"])
@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (gz(TAR)[:-9], "ends too early"),
        (gz(TAR) + b"garbage", "something follows"),
        (zstd.compress(TAR)[:-1], "ends too early"),
        (gz(tar_of({"other": b""})), "unpacks to sha256"),
        (gz(b"no tar" * 1000), "not a tar archive"),
        (gz(TAR[:-20_000]), "layer"),
    ],
    ids=["short gzip", "trailing garbage", "short zstd", "other content", "no tar", "short tar"],
)
def test_a_damaged_layer_with_the_right_digest_is_refused(
    registry: FakeRegistry, home: Home, layer: bytes, said: str, own_process_bytes: int
) -> None:
    name = registry.add("a", "1", bad_layer(layer, TAR))
    store = ImageStore(home, Settings(), retry=QUICK, own_process_bytes=own_process_bytes)
    with pytest.raises(ContentMismatch, match=said) as caught:
        store.pull(name, auth=ANONYMOUS)
    assert f"registry {registry.host}, repository a, blob {digest(layer)}: " in str(caught.value)
    assert files(home) == set()
    store.close()


@pytest.mark.parametrize("own_process_bytes", [1, 1 << 40], ids=["process", "here"])
def test_a_bomb_ends_at_the_limit(
    registry: FakeRegistry, home: Home, own_process_bytes: int
) -> None:
    name = registry.add("a", "1", simple_image(bytes(20 << 20)))
    limits = ImageLimits(layer_bytes=10 << 20)
    store = ImageStore(home, Settings(), limits=limits, own_process_bytes=own_process_bytes)
    with pytest.raises(ContentMismatch, match="more than 10 MiB"):
        store.pull(name, auth=ANONYMOUS)
    assert files(home) == set()
    store.close()


def test_too_many_layers_are_refused_before_the_first_is_fetched(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", FakeImage([tar_of({f"{n}": b""}) for n in range(501)]))
    with pytest.raises(RegistryError, match="501 layers, at most 500"):
        store.pull(name)
    assert len(registry.fetched()) == 1
    assert files(home) == set()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", "not an image manifest"),
        (b"\x00" * 10, "malformed"),
        (b'{"schemaVersion": 1}', "schema 1"),
    ],
)
def test_a_senseless_manifest_is_one_clear_line(
    registry: FakeRegistry, store: ImageStore, body: bytes, said: str
) -> None:
    registry.manifests["a", "1"] = ("application/json", body)
    with pytest.raises(RegistryError, match=f"{registry.host}/a:1: .*{said}"):
        store.pull(f"{registry.host}/a:1")


def test_an_index_that_lies_about_a_size_is_refused(
    registry: FakeRegistry, store: ImageStore
) -> None:
    fake = simple_image()
    lie = json.loads(index_of(fake))
    lie["manifests"][0]["size"] += 1
    with pytest.raises(ContentMismatch, match="the index says"):
        store.pull(registry.add("a", "1", fake, index=json.dumps(lie).encode()))


def test_an_image_larger_than_the_disk_is_refused_before_it_is_fetched(
    registry: FakeRegistry, store: ImageStore
) -> None:
    fake = simple_image()
    manifest = json.loads(fake.manifest)
    manifest["layers"][0]["size"] = 1 << 49
    fake.manifest = json.dumps(manifest).encode()
    with pytest.raises(StorageError, match="needs more than 536870912 MiB") as caught:
        store.pull(registry.add("a", "1", fake))
    assert caught.value.hint is not None and "free some space" in caught.value.hint


def test_a_full_disk_is_said_and_leaves_nothing(
    registry: FakeRegistry, home: Home, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("wherry.images.layout.BlobFile.write", full)
    with pytest.raises(StorageError, match="somewhere: No space left") as caught:
        store.pull(registry.add("a", "1", FakeImage([random_tar(1), random_tar(2)])))
    assert caught.value.hint is not None
    assert files(home) == set()


def test_finished_layers_of_a_failed_pull_are_not_fetched_again(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    fake = FakeImage([random_tar(1), random_tar(2, 20_000)])
    name = registry.add("a", "1", fake)
    good, bad = (digest(data) for data in fake.layers)
    done = threading.Event()
    healthy = registry.blobs[bad]

    def late_and_missing(handler: Handler) -> bool:
        assert done.wait(20), "the good layer"
        handler.error(404, "X", "gone")
        return True

    def watch(event: PullEvent) -> None:
        if event.status == "Pull complete":
            done.set()

    registry.fault(f"/blobs/{bad}", late_and_missing, times=1)
    with pytest.raises(RegistryError):
        store.pull(name, progress=watch)
    assert blob_names(home) == {good}
    registry.blobs[bad] = healthy
    store.pull(name)
    assert registry.fetched()[good] == 1
    assert registry.fetched()[bad] == 2


def test_two_stores_pulling_the_same_image_fetch_each_blob_once(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    fake = FakeImage([random_tar(n) for n in range(6)])
    name = registry.add("a", "1", fake)
    other = ImageStore(home, Settings(), retry=QUICK)
    found: list[Image] = []
    threads = [
        threading.Thread(target=lambda s=s: found.append(s.pull(name, auth=ANONYMOUS)))
        for s in (store, other, store)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    other.close()
    assert len(found) == 3
    layers = {digest(data) for data in fake.layers}
    assert {count for name, count in registry.fetched().items() if name in layers} == {1}


# Layers that got lost.


def test_a_lost_erofs_file_is_made_again_from_its_blob(
    registry: FakeRegistry, store: ImageStore
) -> None:
    image = store.pull(registry.add("a", "1", FakeImage([random_tar(1), random_tar(2)])))
    before = [file.path.read_bytes() for file in store.layer_files(image)]
    first, second = (file.path for file in store.layer_files(image))
    first.unlink()
    second.write_bytes(b"cut")
    asked = len(registry.requests)
    assert [file.path.read_bytes() for file in store.layer_files(image)] == before
    assert len(registry.requests) == asked


def test_a_lost_blob_is_said_with_what_to_do_and_pulled_again(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    fake = FakeImage([random_tar(1), random_tar(2)])
    name = registry.add("a", "1", fake)
    image = store.pull(name)
    lost = digest(fake.layers[0])
    (home.store / "blobs" / "sha256" / lost[7:]).unlink()
    assert store.layer_files(image)
    store.layer_files(image)[0].path.unlink()
    with pytest.raises(StorageError, match=lost) as caught:
        store.layer_files(image)
    assert caught.value.hint == "pull the image again"
    store.pull(name)
    assert store.layer_files(image)
    assert registry.fetched() == {fake.id: 1, lost: 2, digest(fake.layers[1]): 1}


def test_a_damaged_blob_is_noticed_when_it_is_unpacked(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    fake = simple_image()
    image = store.pull(registry.add("a", "1", fake))
    blob = home.store / "blobs" / "sha256" / digest(fake.layers[0])[7:]
    blob.write_bytes(bytes(len(fake.layers[0])))
    store.layer_files(image)[0].path.unlink()
    with pytest.raises(ContentMismatch, match=digest(fake.layers[0])):
        store.layer_files(image)


# Names and removal.


def test_tags_are_added_moved_and_exported(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    image = store.pull(registry.add("a", "1", simple_image()))
    store.tag(image.id[7:19], "mine")
    store.tag("mine", "localhost/mine:2")
    assert set(store.resolve("mine").tags) == {
        f"{registry.host}/a:1",
        "mine:latest",
        "localhost/mine:2",
    }
    index = json.loads((home.store / "index.json").read_text())
    names = {
        entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]
    }
    assert names == set(store.resolve("mine").tags)
    with pytest.raises(ImageNotFound):
        store.tag("nothing", "x")
    for bad in ("UPPER", f"x@{image.manifest_digest}"):
        with pytest.raises(InvalidReference):
            store.tag("mine", bad)


def removed(store: ImageStore, ref: str, force: bool = False) -> list[dict[str, str]]:
    return [removal.as_json() for removal in store.remove(ref, force)]


def test_removing_one_of_several_names_only_untags(
    registry: FakeRegistry, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image())
    image = store.pull(name)
    store.tag(name, "mine")
    assert removed(store, "mine") == [{"Untagged": "mine:latest"}]
    assert store.resolve(image.id).tags == (name,)


def test_removing_the_last_tag_of_a_repository_takes_its_digest_along(
    registry: FakeRegistry, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image())
    image = store.pull(name)
    store.tag(name, "mine")
    assert removed(store, name) == [{"Untagged": name}, {"Untagged": image.digests[0]}]
    assert store.resolve("mine").digests == ()


def test_removing_the_last_name_removes_image_blobs_and_layers(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image(), simple_image(architecture="arm64"))
    image = store.pull(name, platform="linux/amd64")
    assert removed(store, name) == [
        {"Untagged": name},
        {"Untagged": image.digests[0]},
        {"Deleted": image.id},
        {"Deleted": image.diff_ids[0]},
    ]
    assert store.list() == []
    assert files(home) == set()
    with pytest.raises(ImageNotFound):
        store.resolve(image.id)


def test_removing_by_id_takes_a_single_name_along_but_not_several(
    registry: FakeRegistry, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image())
    image = store.pull(name)
    store.tag(name, "mine")
    with pytest.raises(Conflict, match=r"must be forced.*multiple repositories"):
        store.remove(image.id)
    assert {"Untagged": "mine:latest"} in removed(store, image.id, force=True)
    assert store.list() == []
    image = store.pull(name)
    assert removed(store, image.id[7:19])[-1] == {"Deleted": image.diff_ids[0]}


def test_what_another_image_needs_stays(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    base = random_tar(1)
    first = registry.add("a", "1", FakeImage([base]))
    store.pull(first)
    second = store.pull(registry.add("b", "1", FakeImage([base, random_tar(2)])))
    asked = len(registry.requests)
    assert {"Deleted": digest(base)} not in removed(store, first)
    for layer in store.layer_files(second):
        assert layer.path.exists()
    assert len(registry.requests) == asked


def test_what_somebody_holds_stays_until_it_is_released(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    name = registry.add("a", "1", simple_image())
    image = store.pull(name)
    store.hold("container-1", image)
    assert removed(store, name)[-1] == {"Deleted": image.id}
    assert store.list() == []
    layer = store.layer_files(image)[0]
    layer.path.unlink()
    assert store.layer_files(image) == [layer]
    assert layer.path.exists()
    store.release("container-1")
    assert files(home) == set()
    assert store.holders() == []


def test_a_name_wins_over_the_beginning_of_an_id(registry: FakeRegistry, store: ImageStore) -> None:
    one = store.pull(registry.add("a", "1", simple_image(b"1")))
    two = store.pull(registry.add("b", "1", simple_image(b"2")))
    store.tag(one.id, two.id[7:13])
    assert store.resolve(two.id[7:13]).id == one.id
    assert store.resolve(two.id[7:14]).id == two.id


def test_an_ambiguous_beginning_of_an_id_is_not_found(
    registry: FakeRegistry, store: ImageStore
) -> None:
    for n in range(17):
        store.pull(registry.add("a", str(n), FakeImage([], config_extra={"author": str(n)})))
    ids = [image.id[7] for image in store.list()]
    twice = next(digit for digit in ids if ids.count(digit) > 1)
    with pytest.raises(ImageNotFound) as caught:
        store.resolve(twice)
    assert caught.value.hint == "several ids begin so: give more digits"


def test_what_is_neither_name_nor_id_is_refused(store: ImageStore) -> None:
    with pytest.raises(InvalidReference):
        store.resolve("No Such Thing")
    with pytest.raises(ImageNotFound, match="No such image: nothing:latest"):
        store.resolve("nothing")


def test_history_has_dockers_columns(registry: FakeRegistry, store: ImageStore) -> None:
    records = [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD rootfs"},
        {"created": "2024-01-02T00:00:00Z", "created_by": "ENV A=1", "empty_layer": True},
        {"created": "2024-01-03T00:00:00Z", "created_by": "RUN x", "comment": "buildkit"},
    ]
    tars = [tar_of({"a": b"12345"}), tar_of({"b": b"678"})]
    image = store.pull(registry.add("a", "1", FakeImage(tars, config_extra={"history": records})))
    shown = [
        (it.id, it.created_by, it.size, it.comment, it.empty_layer) for it in store.history(image)
    ]
    assert shown == [
        (image.id, "RUN x", 3, "buildkit", False),
        ("<missing>", "ENV A=1", 0, "", True),
        ("<missing>", "ADD rootfs", 5, "", False),
    ]
    assert store.history(image)[0].created_ns == 1_704_240_000_000_000_000


# Layouts on disk, and time.


def test_a_layout_on_disk_is_imported_and_the_second_time_costs_nothing(
    store: ImageStore, home: Home, tmp_path: Path
) -> None:
    fake = simple_image()
    write_layout(tmp_path / "layout", fake)
    image = store.import_layout(tmp_path / "layout", "localhost/busybox")
    assert (image.id, image.tags, image.digests) == (fake.id, ("localhost/busybox:latest",), ())
    assert store.layer_files(image)
    before = {path: path.stat().st_mtime_ns for path in home.root.rglob("*") if path.is_file()}
    assert store.import_layout(tmp_path / "layout", "localhost/busybox") == image
    after = {path: path.stat().st_mtime_ns for path in home.root.rglob("*") if path.is_file()}
    assert after == before


def test_a_damaged_layout_is_refused(store: ImageStore, home: Home, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not an OCI image layout"):
        store.import_layout(tmp_path, "x")
    fake = simple_image()
    write_layout(tmp_path / "layout", fake)
    layer = tmp_path / "layout" / "blobs" / "sha256" / digest(fake.layers[0])[7:]
    layer.write_bytes(bytes(len(fake.layers[0])))
    with pytest.raises(ContentMismatch, match="content has the digest"):
        store.import_layout(tmp_path / "layout", "x")
    layer.write_bytes(b"short")
    with pytest.raises(ContentMismatch, match="the file has 5"):
        store.import_layout(tmp_path / "layout", "x")
    layer.unlink()
    with pytest.raises(InvalidInput, match="lacks the blob"):
        store.import_layout(tmp_path / "layout", "x")
    assert files(home) == set()


def test_everything_is_there_after_reopening(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    image = store.pull(registry.add("a", "1", simple_image()))
    again = ImageStore(home, Settings())
    assert again.list() == [image]
    assert again.layer_files(image) == store.layer_files(image)
    again.close()


def test_an_export_that_a_crash_prevented_is_made_at_the_next_start(
    registry: FakeRegistry, home: Home, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = store.pull(registry.add("a", "1", simple_image()))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Layout, "export_index", crash)
        with pytest.raises(KeyboardInterrupt):
            store.tag(image.id, "mine")
    assert "mine" not in (home.store / "index.json").read_text()
    ImageStore(home, Settings()).close()
    assert "mine:latest" in (home.store / "index.json").read_text()


def test_a_removal_that_a_crash_cut_short_is_finished_at_the_next_start(
    registry: FakeRegistry, home: Home, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.add("a", "1", simple_image())
    store.pull(name)

    def crash(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LayerStore, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            store.remove(name)
    assert store.list() == []
    assert files(home) != set()
    ImageStore(home, Settings()).close()
    assert files(home) == set()


def test_a_file_that_cannot_be_removed_yet_is_removed_later(
    registry: FakeRegistry, home: Home, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.add("a", "1", simple_image())
    store.pull(name)
    with monkeypatch.context() as patched:
        patched.setattr(LayerStore, "remove", lambda *_: False)  # Windows: QEMU has it open
        store.remove(name)
    assert [name for name in files(home) if name.endswith(".erofs")]
    ImageStore(home, Settings()).close()
    assert files(home) == set()


def test_a_damaged_manifest_blob_is_fetched_anew(
    registry: FakeRegistry, home: Home, store: ImageStore
) -> None:
    fake = simple_image()
    name = registry.add("a", "1", fake)
    store.pull(name)
    blob = home.store / "blobs" / "sha256" / fake.manifest_digest[7:]
    blob.write_bytes(b"x")
    store.pull(name)
    assert blob.read_bytes() == fake.manifest


def test_gzip_members_in_a_row_are_one_layer(registry: FakeRegistry, store: ImageStore) -> None:
    tar = tar_of({"a": b"x" * 1000})

    def in_two(data: bytes) -> bytes:
        return gzip.compress(data[:700], mtime=0) + gzip.compress(data[700:], mtime=0)

    assert store.pull(registry.add("a", "1", FakeImage([tar], compress=in_two)))
