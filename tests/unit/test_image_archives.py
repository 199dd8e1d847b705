"""save, load, import: what goes out comes in again, and what is bad leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_fakes import FakeImage, digest, gz, simple_image, tar_of

from wherry.errors import ImageNotFound, InvalidInput, StorageError, WherryError
from wherry.images import spool
from wherry.images.pull import ImageLimits
from wherry.images.spool import ArchiveLimits
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SMALL = ImageLimits(layer_bytes=1 << 20, archive=ArchiveLimits(entries=200, total_bytes=2 << 20))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[ImageStore]:
    it = ImageStore(home, Settings(), limits=SMALL)
    yield it
    it.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[ImageStore]:
    it = ImageStore(Home(tmp_path / "other"), Settings(), limits=SMALL)
    yield it
    it.close()


def stored_files(home: Home) -> list[str]:
    places = [home.store / "blobs", home.layers, home.ingest]
    found = (path for place in places for path in place.rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.suffix != ".lock")


def saved(store: ImageStore, *refs: str, form: str = "docker-archive") -> bytes:
    archive = store.archives.save(refs, form)
    data = b"".join(archive.pieces())
    assert len(data) == archive.size
    return data


def names_in(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read()


def load(store: ImageStore, data: bytes, **options: Any) -> list[str]:
    """Load an archive in pieces; the names that were loaded."""
    pieces = (data[at : at + 1000] for at in range(0, len(data), 1000))
    return [name for image in store.archives.load(pieces, **options) for name in image.names]


def archive_of(*members: tuple[str, bytes]) -> bytes:
    return tar_of(dict(members))


def oci_archive(*images: FakeImage, names: tuple[str, ...] = ()) -> bytes:
    """As skopeo writes one."""
    blobs = {}
    entries = []
    for number, image in enumerate(images):
        for data in (image.config, image.manifest, *image.layers):
            blobs[f"blobs/sha256/{digest(data)[7:]}"] = data
        entry = image.descriptor()
        if number < len(names):
            entry["annotations"] = {"org.opencontainers.image.ref.name": names[number]}
        entries.append(entry)
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return tar_of({**blobs, "index.json": index, "oci-layout": b"{}"})


def docker_archive(image: FakeImage, *tags: str, **replaced: Any) -> bytes:
    """As Docker wrote them before 25, and podman does: layers first, uncompressed."""
    files = {f"{digest(tar)[7:]}.tar": tar for tar in image.tars}
    config = f"{image.id[7:]}.json"
    entry = {"Config": config, "RepoTags": list(tags), "Layers": list(files), **replaced}
    return tar_of({**files, config: image.config, "manifest.json": json.dumps([entry]).encode()})


# Saving.


def test_what_is_saved_is_loaded_with_ids_names_and_contents(
    store: ImageStore, other: ImageStore
) -> None:
    image = store.archives.import_rootfs(iter([tar_of({"a": b"1" * 5000})]), name="one:1")
    store.archives.import_rootfs(iter([gz(tar_of({"b": b"2"}))]), name="two")
    assert load(other, saved(store, "one:1", "two")) == [
        "one:1",
        "two:latest",
    ]
    assert other.resolve("one:1") == image
    assert [it.tags for it in other.list()] == [it.tags for it in store.list()]
    assert other.upkeep.verify().damages == ()


def test_saving_twice_gives_the_same_bytes(store: ImageStore) -> None:
    store.archives.import_rootfs(iter([tar_of({"a": b"1"})]), name="one")
    assert saved(store, "one") == saved(store, "one")


def test_a_repository_without_a_tag_means_all_of_its_tags(store: ImageStore) -> None:
    for tag in ("1", "2"):
        store.archives.import_rootfs(iter([tar_of({tag: b"1"})]), name=f"one:{tag}")
    manifest = json.loads(content(saved(store, "one"), "manifest.json"))
    assert [entry["RepoTags"] for entry in manifest] == [["one:1"], ["one:2"]]


def test_an_image_that_is_saved_by_id_has_no_name(store: ImageStore, other: ImageStore) -> None:
    image = store.archives.import_rootfs(iter([tar_of({"a": b"1"})]), name="one")
    (loaded,) = other.archives.load(iter([saved(store, image.id[7:19])]))
    assert (loaded.id, loaded.names) == (image.id, ())


def test_one_image_under_two_names_is_in_the_archive_once(store: ImageStore) -> None:
    store.archives.import_rootfs(iter([tar_of({"a": b"1"})]), name="one")
    store.tag("one", "two")
    data = saved(store, "one", "two")
    assert len(names_in(data)) == len(set(names_in(data)))
    (entry,) = json.loads(content(data, "manifest.json"))
    assert entry["RepoTags"] == ["one:latest", "two:latest"]


def test_an_oci_archive_has_no_manifest_of_dockers(store: ImageStore) -> None:
    store.archives.import_rootfs(iter([tar_of({"a": b"1"})]), name="one")
    assert "manifest.json" not in names_in(saved(store, "one", form="oci-archive"))


def test_saving_what_is_not_there_is_said(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound, match="nothing"):
        store.archives.save(["nothing"])
    with pytest.raises(InvalidInput, match="no archive format"):
        store.archives.save(["nothing"], "zip")


def test_an_image_that_is_removed_while_it_is_saved_stays_until_then(
    store: ImageStore, home: Home
) -> None:
    store.archives.import_rootfs(iter([tar_of({"a": b"1" * 5000})]), name="one")
    archive = store.archives.save(["one"])
    store.remove("one")
    assert len(b"".join(archive.pieces())) == archive.size
    assert stored_files(home) == []


def test_nothing_is_kept_for_a_save_that_was_closed(store: ImageStore, home: Home) -> None:
    store.archives.import_rootfs(iter([tar_of({"a": b"1"})]), name="one")
    archive = store.archives.save(["one"])
    pieces = archive.pieces()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]  # it is a generator
    assert store.holders() == []


# Loading.


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
def test_archives_may_be_compressed(store: ImageStore, compress: Callable[[bytes], bytes]) -> None:
    data = compress(docker_archive(simple_image(), "a:1"))
    assert load(store, data) == ["a:1"]


@pytest.mark.parametrize("compress", [bytes, gz, zstd.compress])
def test_an_image_layout_is_loaded(store: ImageStore, compress: Callable[[bytes], bytes]) -> None:
    fake = FakeImage([tar_of({"a": b"1"}), tar_of({"b": b"2"})], compress=compress)
    assert load(store, oci_archive(fake, names=("some:1",))) == ["some:1"]
    assert store.resolve("some:1").id == fake.id
    assert store.resolve("some:1").manifest_digest == fake.manifest_digest


def test_an_old_docker_archive_keeps_the_images_id(store: ImageStore) -> None:
    fake = FakeImage([tar_of({"a": b"1"}), tar_of({"b": b"2"})])
    assert load(store, docker_archive(fake, "a:1", "localhost/b:2")) == [
        "a:1",
        "localhost/b:2",
    ]
    assert store.resolve("a:1").id == fake.id
    assert len(store.layer_files(store.resolve("a:1"))) == 2


def test_links_between_layers_are_followed(store: ImageStore) -> None:
    """Docker before 25 linked layers that several images share."""
    fake = simple_image()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("v1/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../v0/layer.tar"
        archive.addfile(link)
        members = {
            "v0/layer.tar": fake.tars[0],
            "c.json": fake.config,
            "manifest.json": json.dumps(
                [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["v1/layer.tar"]}]
            ).encode(),
        }
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert load(store, out.getvalue()) == ["a:1"]


def test_images_that_share_a_layer_in_two_forms_are_loaded(store: ImageStore) -> None:
    tar = tar_of({"a": b"1"})
    plain = FakeImage([tar], compress=bytes)
    zipped = FakeImage([tar], config_extra={"author": "me"})
    assert len(load(store, oci_archive(plain, zipped, names=("a:1", "b:1")))) == 2
    assert store.upkeep.verify().damages == ()


def test_a_name_that_moves_is_told(store: ImageStore) -> None:
    load(store, docker_archive(simple_image(b"1"), "a:1"))
    (loaded,) = store.archives.load(iter([docker_archive(simple_image(b"2"), "a:1")]))
    assert loaded.renamed == ("a:1",)
    assert len(store.list()) == 2


def test_loading_again_changes_nothing(store: ImageStore, home: Home) -> None:
    data = docker_archive(simple_image(), "a:1")
    load(store, data)
    before = stored_files(home)
    load(store, data)
    assert stored_files(home) == before


def test_a_layout_without_names_is_loaded_without(store: ImageStore) -> None:
    (loaded,) = store.archives.load(iter([oci_archive(simple_image())]))
    assert loaded.names == ()
    assert store.resolve(loaded.id).tags == ()


def broken(image: FakeImage, old: bytes, new: bytes) -> bytes:
    return docker_archive(image, "a:1").replace(old, new)


MANY = FakeImage([tar_of({str(n): b""}) for n in range(3)])
BAD: dict[str, tuple[bytes, str]] = {
    "html": (b"<!DOCTYPE html><html>" + b"x" * 2000, "not a tar archive"),
    "short html": (b"<html>login first</html>", "no tar"),
    "nothing": (b"", "no images"),
    "a root file system": (tar_of({"etc/": b"", "etc/x": b"1"}), "no images"),
    "cut": (docker_archive(simple_image(), "a:1")[:700], "cut short"),
    "cut gzip": (gz(docker_archive(simple_image(), "a:1"))[:-20], "ends too early"),
    "manifest no json": (archive_of(("manifest.json", b"{")), "malformed"),
    "manifest of numbers": (archive_of(("manifest.json", b"[1]")), "malformed"),
    "index no index": (archive_of(("index.json", b"[]")), "malformed"),
    "no config": (docker_archive(simple_image(), "a:1", Config="nope"), "lacks the image config"),
    "no layer": (docker_archive(simple_image(), "a:1", Layers=["nope"]), "lacks the layer"),
    "more layers": (docker_archive(simple_image(), "a:1", Layers=[]), "0 layers, the config 1"),
    "bad tag": (docker_archive(simple_image(), "UPPER:1"), "lower case"),
    "layer changed": (
        broken(simple_image(b"hello\n"), b"hello\n", b"jello\n"),
        "unpacks to",
    ),
    "blob changed": (
        oci_archive(FakeImage([tar_of({"a": b"hello\n"})], compress=bytes)).replace(
            b"hello\n", b"jello\n"
        ),
        "has the content of",
    ),
    "bomb": (gz(docker_archive(simple_image(bytes(4 << 20)), "a:1")), "unpacks to more than"),
    "many entries": (archive_of(*((str(n), b"") for n in range(300))), "more than 200 entries"),
    "escape": (archive_of(("../../etc/passwd", b"")), "leads out of it"),
    "absolute": (archive_of(("/etc/passwd", b"")), "leads out of it"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_archive_is_one_error_and_leaves_nothing(
    store: ImageStore, home: Home, what: str
) -> None:
    data, message = BAD[what]
    with pytest.raises(WherryError, match=message):
        load(store, data)
    assert stored_files(home) == []
    assert store.list() == []
    assert store.holders() == []


def test_a_compressed_layer_that_is_a_bomb_leaves_nothing(store: ImageStore, home: Home) -> None:
    fake = FakeImage([tar_of({"a": bytes(4 << 20)})])
    with pytest.raises(WherryError, match="unpacks to more than"):
        load(store, oci_archive(fake))
    assert stored_files(home) == []


def test_ten_thousand_layers_are_refused(store: ImageStore, home: Home) -> None:
    fake = simple_image()
    config = json.loads(fake.config)
    config["rootfs"]["diff_ids"] = [f"sha256:{n:064x}" for n in range(10_000)]
    raw = json.dumps(config).encode()
    entry = {"Config": "c", "Layers": ["l"] * 10_000, "RepoTags": ["a:1"]}
    data = tar_of({"l": fake.tars[0], "c": raw, "manifest.json": json.dumps([entry]).encode()})
    with pytest.raises(InvalidInput, match="10000 layers, at most 500"):
        load(store, data)
    assert stored_files(home) == []


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (tarfile.SYMTYPE, "../../etc/passwd", "leads out of it"),
        (tarfile.SYMTYPE, "/etc/passwd", "leads out of it"),
        (tarfile.LNKTYPE, "../x", "leads out of it"),
        (tarfile.CHRTYPE, "", "no file that an image archive has"),
        (tarfile.SYMTYPE, "manifest.json", "loop of links"),
    ],
)
def test_links_and_devices_lead_nowhere(
    store: ImageStore, home: Home, kind: bytes, target: str, message: str
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("manifest.json")
        info.type, info.linkname = kind, target
        archive.addfile(info)
    with pytest.raises(InvalidInput, match=message):
        load(store, out.getvalue())
    assert stored_files(home) == []


def test_when_the_second_image_is_bad_the_first_is_not_stored(
    store: ImageStore, home: Home
) -> None:
    good, bad = simple_image(b"good"), FakeImage([tar_of({"a": b"1"})])
    bad.layers[0] = gz(tar_of({"a": b"2"}))
    bad.manifest = bad.make_manifest()
    with pytest.raises(WherryError, match="unpacks to"):
        load(store, oci_archive(good, bad, names=("a:1", "b:1")))
    assert store.list() == []
    assert stored_files(home) == []


def test_an_archive_that_does_not_fit_on_the_disk_is_refused(
    store: ImageStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = spool.shutil.disk_usage(home.root)
    monkeypatch.setattr(
        spool.shutil, "disk_usage", lambda _: usage._replace(free=spool._RESERVE_BYTES + 100)
    )
    with pytest.raises(StorageError, match="needs more than"):
        load(store, docker_archive(simple_image(), "a:1"))
    assert stored_files(home) == []


# Importing.


def test_an_import_takes_changes_message_and_platform(store: ImageStore) -> None:
    image = store.archives.import_rootfs(
        iter([tar_of({"bin/": b"", "bin/sh": b"#!"})]),
        name="mine:1",
        changes=["CMD /bin/sh", "ENV A=1"],
        message="by hand",
        platform="linux/arm64",
    )
    assert image.tags == ("mine:1",)
    assert image.config == {"Cmd": ["/bin/sh", "-c", "/bin/sh"], "Env": ["A=1"]}
    assert (image.architecture, image.size) == ("arm64", 2)
    assert [entry.comment for entry in store.history(image)] == ["by hand"]


@pytest.mark.parametrize("compress", [bytes, gz, zstd.compress])
def test_imports_of_one_tar_are_one_layer(
    store: ImageStore, compress: Callable[[bytes], bytes]
) -> None:
    tar = tar_of({"a": b"1"})
    image = store.archives.import_rootfs(iter([compress(tar)]))
    assert image.diff_ids == (digest(tar),)
    assert store.upkeep.verify().damages == ()


@pytest.mark.parametrize(
    "bad",
    [b"<html>" + b" " * 600, gz(tar_of({"a": b"1"}))[:-9], tar_of({"../a": b"1"}), b"\x1f\x8bxx"],
)
def test_a_bad_import_leaves_nothing(store: ImageStore, home: Home, bad: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot import"):
        store.archives.import_rootfs(iter([bad]), name="a")
    assert stored_files(home) == []
    assert store.list() == []


def test_an_import_with_a_bad_change_reads_nothing(store: ImageStore) -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("the tar was read")
        yield b""

    with pytest.raises(InvalidInput, match="RUN"):
        store.archives.import_rootfs(never(), changes=["RUN make"])


# Fuzzing.

GOOD = [
    docker_archive(MANY, "a:1"),
    oci_archive(MANY, names=("a:1",)),
    gz(docker_archive(simple_image(), "a:1")),
]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    base=st.sampled_from(GOOD),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=4),
)
def test_any_archive_is_loaded_or_refused_whole(
    tmp_path: Path, base: bytes, cuts: list[tuple[float, bytes]]
) -> None:
    data = bytearray(base)
    for place, replacement in cuts:
        at = int(place * len(data))
        data[at : at + max(1, len(replacement))] = replacement
    home = Home(tmp_path / "fuzz")
    store = ImageStore(home, Settings(), limits=replace(SMALL))
    try:
        loaded = store.archives.load(iter([bytes(data)]))
    except WherryError:
        assert store.list() == []
        assert stored_files(home) == []
    else:
        assert loaded
        store.upkeep.prune(store.list(), lambda _: True, tagged=True)
        assert stored_files(home) == []
    finally:
        store.close()
