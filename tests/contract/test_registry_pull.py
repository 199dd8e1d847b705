"""Pulls from docker-registry of what skopeo and umoci made, and skopeo's view of our store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_fakes import FakeImage, FakeRegistry, Handler, digest, running, tar_of
from needs import require
from registry import RunningRegistry, skopeo, write_layout
from waiting import eventually

import wherry
from wherry.images.auth import Credentials
from wherry.images.store import Image, ImageStore
from wherry.paths import Home
from wherry.settings import Settings

pytestmark = pytest.mark.contract

PULL_SECONDS = 60.0
_PULLER = """
import sys
from pathlib import Path
from wherry.images.auth import Credentials
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings
store = ImageStore(Home(Path(sys.argv[1])), Settings(), own_process_bytes=int(sys.argv[3]))
image = store.pull(
    sys.argv[2], auth=Credentials(), progress=lambda e: print(e.status, e.id, flush=True)
)
print(image.id)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[ImageStore]:
    with_store = ImageStore(home, Settings())
    yield with_store
    with_store.close()


def pull(store: ImageStore, name: str, platform: str | None = None) -> Image:
    return store.pull(name, platform, auth=Credentials())


def layer_tar(directory: Path, number: int, size: int = 20_000) -> Path:
    path = directory / f"layer{number}.tar"
    if not path.exists():
        path.write_bytes(tar_of({f"file{number}": os.urandom(size)}))
    return path


def check_by_skopeo(home: Home, image: Image, name: str, tmp_path: Path) -> None:
    """skopeo finds the image by its name, reads every blob and agrees on the layers."""
    seen = json.loads(skopeo("inspect", "--config", f"oci:{home.store}:{name}"))
    assert tuple(seen["rootfs"]["diff_ids"]) == image.diff_ids
    tmp_path.mkdir(exist_ok=True)
    skopeo("copy", f"oci:{home.store}:{name}", f"dir:{tmp_path / 'by-skopeo'}")


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "oci"),
        ("--format", "v2s2"),
        ("--format", "oci", "--dest-compress-format", "zstd"),
    ],
    ids=["oci", "schema2", "zstd"],
)
def test_what_skopeo_pushed_is_pulled_and_read_by_skopeo_again(
    registry: RunningRegistry,
    store: ImageStore,
    home: Home,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    tars = [layer_tar(tmp_path, 1), layer_tar(tmp_path, 2)]
    config = {"Cmd": ["/bin/true"]}
    name = registry.push_layers(tars, f"kinds/{options[-1]}:1", *options, config=config)
    image = pull(store, name)
    assert image.config == config
    assert len(store.layer_files(image)) == 2
    assert image.size == 40_000
    check_by_skopeo(home, image, name, tmp_path)
    known = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert image.digests == (f"{registry.host}/kinds/{options[-1]}@{known['Digest']}",)


def test_an_image_made_by_umoci_is_pulled_and_imported(
    registry: RunningRegistry, store: ImageStore, home: Home, tmp_path: Path
) -> None:
    umoci = require("umoci", "umoci")
    layout = tmp_path / "umoci"
    content = tmp_path / "content"
    (content / "etc").mkdir(parents=True)
    (content / "etc" / "motd").write_text("hello\n")
    for command in (
        ["init", "--layout", str(layout)],
        ["new", "--image", f"{layout}:one"],
        ["insert", "--rootless", "--image", f"{layout}:one", str(content), "/srv"],
        ["config", "--image", f"{layout}:one", "--config.cmd", "/srv/run"],
    ):
        subprocess.run([umoci, *command], check=True, timeout=60, capture_output=True)
    name = registry.push_layout(f"{layout}:one", "umoci/one:1")
    pulled = pull(store, name)
    assert pulled.config["Cmd"] == ["/srv/run"]
    imported = store.import_layout(layout, "localhost/one")
    assert imported.id == pulled.id
    assert set(imported.tags) == {name, "localhost/one:latest"}
    assert "/srv/run" in str(imported.config) and store.history(imported)
    check_by_skopeo(home, imported, "localhost/one:latest", tmp_path)


def test_twelve_layers_and_a_layer_twice(
    registry: RunningRegistry, store: ImageStore, home: Home, tmp_path: Path
) -> None:
    tars = [layer_tar(tmp_path, number) for number in range(12)]
    name = registry.push_layers([*tars, tars[3]], "many/layers:1")
    image = pull(store, name)
    assert len(image.diff_ids) == 13
    stack = [layer.diff_id for layer in store.layer_files(image)]
    assert len(stack) == 12
    assert stack[-1] == image.diff_ids[3]
    check_by_skopeo(home, image, name, tmp_path)


def test_an_index_gives_every_platform_its_own_image(
    registry: RunningRegistry, store: ImageStore, home: Home, tmp_path: Path
) -> None:
    layout = tmp_path / "multi"
    entries = []
    for number, architecture in enumerate(("amd64", "arm64", "s390x")):
        write_layout(layout, [layer_tar(tmp_path, number)], architecture=architecture)
        entries += json.loads((layout / "index.json").read_text())["manifests"]
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }
    (layout / "inner.json").write_text(json.dumps(index))
    write_index(layout)
    name = registry.push_layout(str(layout), "multi/arch:1", "--all")
    for architecture in ("arm64", "s390x", "amd64"):
        image = pull(store, name, f"linux/{architecture}")
        assert image.architecture == architecture
        assert store.resolve(name).id == image.id
        check_by_skopeo(home, image, name, layout / architecture)
    assert len({digest for it in store.list() for digest in it.digests}) == 1


def write_index(layout: Path) -> None:
    """Let index.json name the index in inner.json."""
    import hashlib

    data = (layout / "inner.json").read_bytes()
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / name).write_bytes(data)
    entry = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": f"sha256:{name}",
        "size": len(data),
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def test_a_pushed_root_file_system_keeps_owners_links_and_attributes(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    (rootfs / "bin" / "sh").write_bytes(b"#!" * 5000)
    (rootfs / "bin" / "bash").hardlink_to(rootfs / "bin" / "sh")
    (rootfs / "lib").symlink_to("usr/lib")
    from_directory = pull(store, registry.push_rootfs(rootfs, "rootfs/directory:1"))
    tar = tmp_path / "rootfs.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(rootfs, ".")
    from_tar = pull(store, registry.push_rootfs(tar, "rootfs/tar:1"))
    assert from_directory.size == from_tar.size == 10_000


def start_pull(home: Home, name: str, own_process_bytes: int = 1) -> subprocess.Popen[str]:
    source_root = str(Path(wherry.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", _PULLER, str(home.root), name, str(own_process_bytes)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source_root},
    )


def test_processes_that_pull_the_same_image_fetch_each_layer_once(
    registry: RunningRegistry, home: Home, tmp_path: Path
) -> None:
    name = registry.push_layers([layer_tar(tmp_path, n) for n in range(6)], "race/six:1")
    before = registry.fetched()
    pullers = [start_pull(home, name) for _ in range(3)]
    results = [puller.communicate(timeout=PULL_SECONDS)[0].splitlines()[-1] for puller in pullers]
    assert [puller.returncode for puller in pullers] == [0, 0, 0]
    store = ImageStore(home, Settings())
    image = store.resolve(name)
    assert set(results) == {image.id}
    layers = set(layer_blobs(home, image))
    counts = registry.fetched() - before
    assert {counts[blob] for blob in layers} == {1}
    assert len(store.layer_files(image)) == 6
    store.close()


def layer_blobs(home: Home, image: Image) -> list[str]:
    manifest = home.store / "blobs" / "sha256" / image.manifest_digest.removeprefix("sha256:")
    return [layer["digest"] for layer in json.loads(manifest.read_text())["layers"]]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("own_process_bytes", [1, 1 << 40], ids=["process", "here"])
@pytest.mark.parametrize(
    ("status", "times"),
    [("Pulling", 2), ("Downloading", 1), ("Extracting", 1), ("Pull complete", 1),
     ("Pull complete", 4), ("Digest", 1)],
)  # fmt: skip
def test_a_killed_pull_is_finished_by_the_next_one(
    registry: RunningRegistry,
    home: Home,
    tmp_path: Path,
    status: str,
    times: int,
    own_process_bytes: int,
) -> None:
    tars = [layer_tar(tmp_path, number, 400_000) for number in range(6)]
    case = f"{status}{times}{own_process_bytes}".lower().replace(" ", "")
    name = registry.push_layers(tars, f"killed/{case}:1")
    before = registry.fetched()
    complete = kill_when(start_pull(home, name, own_process_bytes), status, times)
    store = ImageStore(home, Settings())
    image = pull(store, name)
    counts = registry.fetched() - before
    for blob in layer_blobs(home, image):
        assert counts[blob] in ((1,) if blob[7:19] in complete else (1, 2)), blob
    assert len(store.layer_files(image)) == 6
    check_by_skopeo(home, image, name, tmp_path)
    assert [path for path in home.ingest.iterdir() if path.is_file()] == []
    assert {path.name for path in home.layers.iterdir()} == {
        layer.path.name for layer in store.layer_files(image)
    }
    store.remove(name)
    assert list((home.store / "blobs" / "sha256").iterdir()) == []
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("own_process_bytes", [1, 1 << 40], ids=["process", "here"])
def test_a_pull_killed_in_the_middle_of_a_blob_goes_on_there(
    home: Home, own_process_bytes: int
) -> None:
    image = FakeImage([tar_of({"noise": os.urandom(3 << 20)})])
    blob = image.layers[0]

    def half(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(blob)))
        handler.end_headers()
        handler.wfile.write(blob[: 2 << 20])
        handler.wfile.flush()
        return handler.released()

    with running(FakeRegistry()) as fake:
        name = fake.add("a", "1", image)
        fake.fault(digest(blob), half, times=1)
        puller = start_pull(home, name, own_process_bytes)
        partial = home.ingest / f"{digest(blob)[7:]}.partial"
        eventually("half of the blob", lambda: partial.exists() and partial.stat().st_size >> 20)
        puller.kill()
        puller.communicate(timeout=10)
        had = partial.stat().st_size
        store = ImageStore(home, Settings(), own_process_bytes=own_process_bytes)
        pulled = pull(store, name)
        assert [layer.diff_id for layer in store.layer_files(pulled)] == [digest(image.tars[0])]
        assert fake.headers[-1]["Range"] == f"bytes={had}-"
        assert not partial.exists()
        store.close()


def kill_when(puller: subprocess.Popen[str], status: str, times: int) -> set[str]:
    """Kill a pull at its so-manieth line that begins so; the layers that it had finished."""
    complete: set[str] = set()
    watchdog = threading.Timer(PULL_SECONDS, puller.kill)
    watchdog.start()
    assert puller.stdout is not None
    for line in puller.stdout:
        if line.startswith("Pull complete"):
            complete.add(line.split()[-1])
        if line.startswith(status):
            times -= 1
            if not times:
                break
    watchdog.cancel()
    assert times == 0, f"the pull ended before its line {status}"
    puller.send_signal(signal.SIGKILL)
    puller.stdout.close()
    puller.wait(10)
    return complete
