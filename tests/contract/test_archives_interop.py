"""Archives between us and others, both ways: skopeo, podman, umoci, docker's client. No VM."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Wherry
from image_fakes import gz, tar_of
from needs import require
from registry import skopeo, write_layout

from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

pytestmark = pytest.mark.contract

SECONDS = 120.0
BASE = tar_of({"bin/": b"", "bin/tool": b"#!/bin/sh\n" * 100})
TOP = tar_of({"etc/": b"", "etc/config": b"x=1\n", "bin/.wh.tool": b""})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    it = ImageStore(Home(tmp_path / "home"), Settings())
    yield it
    it.close()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image of two layers as an OCI layout."""
    directory = tmp_path / "layout"
    directory.mkdir()
    tars = []
    for name, data in (("base", BASE), ("top", TOP)):
        tars.append(tmp_path / f"{name}.tar")
        tars[-1].write_bytes(data)
    write_layout(directory, tars, {"Cmd": ["/bin/tool"]})
    return directory


@pytest.fixture
def podman(podman_root: Path) -> Callable[..., str]:
    program = require("podman", "podman")
    options = [
        f"--root={podman_root / 'root'}",
        f"--runroot={podman_root / 'run'}",
        "--storage-driver=vfs",
        "--events-backend=none",
    ]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *options, *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    return run


def write(store: ImageStore, path: Path, *refs: str, form: str = "docker-archive") -> Path:
    with path.open("wb") as file:
        for piece in store.archives.save(refs, form).pieces():
            file.write(piece)
    return path


def read(store: ImageStore, path: Path) -> list[str]:
    with path.open("rb") as file:
        loaded = store.archives.load(iter(lambda: file.read(1 << 16), b""))
    assert store.upkeep.verify().damages == ()
    return [name for image in loaded for name in image.names]


def ours(store: ImageStore, layout: Path) -> str:
    """The image in our store, as mine/image:1; its id."""
    return store.import_layout(layout, "mine/image:1").id


def inspected(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(skopeo("inspect", "--config", reference))
    return found


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_skopeo_reads_our_archives(
    store: ImageStore, layout: Path, tmp_path: Path, form: str
) -> None:
    ours(store, layout)
    path = write(store, tmp_path / "a.tar", "mine/image:1", form=form)
    place = f"{form}:{path}:mine/image:1"
    assert inspected(place)["config"]["Cmd"] == ["/bin/tool"]
    skopeo("copy", place, f"oci:{tmp_path / 'copy'}:x")
    assert inspected(f"oci:{tmp_path / 'copy'}:x")["rootfs"] == inspected(place)["rootfs"]


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_loads_our_archives(
    store: ImageStore, layout: Path, tmp_path: Path, podman: Callable[..., str], form: str
) -> None:
    image_id = ours(store, layout)
    path = write(store, tmp_path / "a.tar", "mine/image:1", form=form)
    podman("load", "-q", "-i", str(path))
    assert f"sha256:{podman('images', '-q', '--no-trunc').removeprefix('sha256:')}" == image_id
    names = podman("images", "--format", "{{.Repository}}:{{.Tag}}")
    assert names.endswith("mine/image:1")


def test_podman_loads_several_images_of_one_archive(
    store: ImageStore, tmp_path: Path, podman: Callable[..., str]
) -> None:
    ids = set()
    for name, data in (("one:1", BASE), ("two:1", gz(TOP))):
        ids.add(store.archives.import_rootfs(iter([data]), name=name).id)
    podman("load", "-q", "-i", str(write(store, tmp_path / "a.tar", "one:1", "two:1")))
    assert set(podman("images", "-q", "--no-trunc").split()) == ids


def test_umoci_unpacks_our_oci_archives(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    umoci = require("umoci", "umoci")
    ours(store, layout)
    path = write(store, tmp_path / "a.tar", "mine/image:1", form="oci-archive")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    index = json.loads((tmp_path / "unpacked" / "index.json").read_text())
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "x"
    (tmp_path / "unpacked" / "index.json").write_text(json.dumps(index))
    subprocess.run(
        [umoci, "unpack", "--image", f"{tmp_path / 'unpacked'}:x", str(tmp_path / "bundle")],
        check=True,
        timeout=SECONDS,
        capture_output=True,
    )
    rootfs = tmp_path / "bundle" / "rootfs"
    assert (rootfs / "etc" / "config").read_bytes() == b"x=1\n"
    assert not (rootfs / "bin" / "tool").exists()


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_we_load_skopeos_archives(
    store: ImageStore, layout: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "a.tar"
    skopeo("copy", f"oci:{layout}", f"{form}:{path}:example.com/mine/image:1")
    assert read(store, path) == ["example.com/mine/image:1"]
    image = store.resolve("example.com/mine/image:1")
    assert image.config["Cmd"] == ["/bin/tool"]
    assert image.id == ours(store, layout)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_we_load_podmans_archives(
    store: ImageStore, layout: Path, tmp_path: Path, podman: Callable[..., str], form: str
) -> None:
    path = tmp_path / "a.tar"
    podman("pull", "-q", f"oci:{layout}")
    identifier = podman("images", "-q", "--no-trunc").removeprefix("sha256:")
    podman("tag", identifier, "localhost/mine/image:1")
    podman("save", "-q", "--format", form, "-o", str(path), "localhost/mine/image:1")
    assert "localhost/mine/image:1" in read(store, path)
    image = store.resolve("localhost/mine/image:1")
    assert image.id.removeprefix("sha256:") == identifier or form == "oci-archive"
    assert len(store.layer_files(image)) == 2


def test_we_load_podmans_archives_of_several_images(
    store: ImageStore, tmp_path: Path, podman: Callable[..., str]
) -> None:
    for name, data in (("one", BASE), ("two", TOP)):
        tar = tmp_path / f"{name}.tar"
        tar.write_bytes(data)
        podman("import", "-q", str(tar), f"localhost/{name}:1")
    path = tmp_path / "a.tar"
    podman("save", "-q", "-m", "-o", str(path), "localhost/one:1", "localhost/two:1")
    assert set(read(store, path)) == {"localhost/one:1", "localhost/two:1"}


# Docker's own client on our socket.


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Wherry]:
    require("docker.io", "docker")
    root = tmp_path / "h"
    root.mkdir()
    wherry = Wherry(Home(root))
    wherry.run("images", check=True)  # starts the engine
    yield wherry
    wherry.run("machine", "rm", "--force", timeout=60)


def test_dockers_client_imports_saves_removes_and_loads(docker: Wherry, tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    tar.write_bytes(gz(BASE))
    change = ["--change", 'CMD ["/bin/tool"]', "--message", "by docker"]
    done = docker.docker("import", *change, str(tar), "mine:1", check=True)
    identifier = done.stdout.decode().strip()
    docker.docker("tag", "mine:1", "mine:2", check=True)
    archive = tmp_path / "a.tar"
    docker.docker("save", "-o", str(archive), "mine", check=True)
    docker.docker("rmi", "-f", identifier, check=True)
    loaded = docker.docker("load", "-i", str(archive), check=True).stdout.decode()
    assert "Loaded image: mine:1" in loaded
    assert "Loaded image: mine:2" in loaded
    found = docker.docker("image", "inspect", "--format", "{{.Id}} {{json .Config.Cmd}}", "mine:1")
    assert found.stdout.decode().strip() == f'{identifier} ["/bin/tool"]'
    history = docker.docker("history", "--format", "{{.Comment}}", "mine:1", check=True)
    assert history.stdout.decode().strip() == "by docker"


def test_dockers_client_saves_to_a_pipe_and_loads_from_one(docker: Wherry) -> None:
    docker.docker("import", "-", "mine:1", input=BASE, check=True)
    data = docker.docker("save", "mine:1", check=True).stdout
    docker.docker("rmi", "mine:1", check=True)
    for archive in (data, gz(data)):
        done = docker.docker("load", input=archive, check=True)
        assert b"Loaded image: mine:1" in done.stdout


def test_dockers_client_shows_why_an_archive_is_refused(docker: Wherry) -> None:
    done = docker.docker("load", input=b"<html>" + b"x" * 10_000)
    assert done.returncode == 1
    assert b"not a tar archive" in done.stderr
    done = docker.docker("import", "-", input=b"<html>" + b"x" * 10_000)
    assert done.returncode == 1
    assert b"not a tar archive" in done.stderr


def test_dockers_client_sees_disk_usage_and_prunes(docker: Wherry) -> None:
    docker.docker("import", "-", "mine:1", input=BASE, check=True)
    docker.docker("import", "-", input=TOP, check=True)
    usage = docker.docker("system", "df", "--format", "{{.Type}} {{.TotalCount}}", check=True)
    assert "Images 2" in usage.stdout.decode()
    docker.docker("system", "df", "-v", check=True)
    pruned = docker.docker("image", "prune", "-f", check=True).stdout.decode()
    assert "deleted: sha256:" in pruned
    assert docker.docker("images", "-q", check=True).stdout.decode().split() != []
    docker.docker("image", "prune", "-af", "--filter", "until=1h", check=True)
    assert docker.docker("images", "-q", check=True).stdout.decode().split() != []
    docker.docker("image", "prune", "-af", check=True)
    assert docker.docker("images", "-q", check=True).stdout.decode().split() == []


def test_dockers_client_filters_images(docker: Wherry) -> None:
    docker.docker("import", "-c", "LABEL a=1", "-", "mine:1", input=BASE, check=True)
    docker.docker("import", "-", input=TOP, check=True)
    for given, count in (
        ("dangling=true", 1),
        ("reference=mi*:1", 1),
        ("reference=other", 0),
        ("label=a=1", 1),
        ("before=mine:1", 0),
        ("until=1h", 0),
    ):
        found = docker.docker("images", "-q", "--filter", given, check=True)
        assert len(found.stdout.decode().split()) == count, given
