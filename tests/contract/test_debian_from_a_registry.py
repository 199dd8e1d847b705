"""The main job on real parts: a Debian root file system, a registry, and both command lines."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from harness import Wherry
from needs import require
from registry import RunningRegistry
from rootfs import debian_tar

pytestmark = [pytest.mark.contract, pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def debian(test_cache: Path) -> Path:
    return debian_tar(test_cache)


@pytest.fixture(scope="module")
def image(debian: Path, registry: RunningRegistry, wherry: Wherry) -> str:
    name = registry.push_rootfs(debian, "debian:trixie", {"Cmd": ["bash"], "Env": ["FROM=image"]})
    wherry.run("pull", name, check=True, timeout=120)
    return name


def installed(debian: Path) -> int:
    """The number of packages, as the tar's own dpkg database has it."""
    with tarfile.open(debian) as tar:
        member = next(it for it in tar if it.name.endswith("var/lib/dpkg/status"))
        status = tar.extractfile(member)
        assert status is not None
        return status.read().count(b"Status: install ok installed")


def test_debian_says_who_it_is(wherry: Wherry, image: str) -> None:
    assert "VERSION_CODENAME=trixie" in wherry.out("run", "--rm", image, "cat", "/etc/os-release")


def test_apt_lists_exactly_what_is_installed(wherry: Wherry, image: str, debian: Path) -> None:
    script = "apt list --installed 2>/dev/null | grep -c /"
    assert wherry.out("run", "--rm", image, "sh", "-c", script) == str(installed(debian))


def test_the_same_through_dockers_command_line(wherry: Wherry, image: str, debian: Path) -> None:
    require("docker.io", "docker")
    release = wherry.docker("run", "--rm", image, "cat", "/etc/os-release", check=True).stdout
    assert b"VERSION_CODENAME=trixie" in release
    script = "apt list --installed 2>/dev/null | grep -c /"
    count = wherry.docker("run", "--rm", image, "sh", "-c", script, check=True).stdout
    assert int(count) == installed(debian)


def test_docker_pulls_through_the_same_engine(
    wherry: Wherry, debian: Path, registry: RunningRegistry
) -> None:
    require("docker.io", "docker")
    name = registry.push_rootfs(debian, "again:1")
    done = wherry.docker("pull", name, check=True, timeout=120)
    assert b"Status: Downloaded newer image" in done.stdout
    assert b"Status: Image is up to date" in wherry.docker("pull", name, check=True).stdout
    wherry.docker("rmi", name, check=True)


def test_every_file_reads_as_in_the_tar(wherry: Wherry, image: str, debian: Path) -> None:
    """Sums of all regular files, computed in the container and from the tar."""
    script = "cd / && find usr/share usr/bin -xdev -type f -print0 | sort -z | xargs -0 cat | cksum"
    inside = wherry.out("run", "--rm", image, "sh", "-c", f"LC_ALL=C; export LC_ALL; {script}")
    with tarfile.open(debian) as tar:
        files = {member.name.removeprefix("./"): member for member in tar if not member.isdir()}
        wanted = [
            name
            for name, member in files.items()
            if name.startswith(("usr/share/", "usr/bin/")) and (member.isreg() or member.islnk())
        ]
        cksum = subprocess.Popen(["cksum"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert cksum.stdin is not None
        for name in sorted(wanted, key=os.fsencode):
            content = tar.extractfile(files[name])
            assert content is not None
            cksum.stdin.write(content.read())
        expected = cksum.communicate()[0].decode().strip()
    assert inside == expected


def test_the_images_settings_reach_the_container(wherry: Wherry, image: str) -> None:
    assert wherry.out("run", "--rm", "-i", image, input=b"echo $FROM\n") == "image"


def test_a_registry_that_does_not_answer_is_said_in_one_line(wherry: Wherry) -> None:
    done = wherry.run("run", "--rm", "127.0.0.1:1/nothing", "true", timeout=120)
    assert done.returncode == 125
    assert b"127.0.0.1:1" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_image_that_is_not_in_the_registry_is_said(
    wherry: Wherry, registry: RunningRegistry
) -> None:
    done = wherry.run("pull", f"{registry.host}/no/such:thing")
    assert done.returncode == 1
    assert b"no/such" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_image_with_a_layer_twice_runs(
    wherry: Wherry, registry: RunningRegistry, tmp_path: Path
) -> None:
    layers = layer_tars(tmp_path, busybox_tar(wherry), ["a", "b", "a"])
    name = registry.push_layers(layers, "twice:1")
    output = wherry.out("run", "--rm", name, "sh", "-c", "cat /which; echo; ls /", timeout=120)
    assert output.split("\n")[0] == "a"
    assert {"a", "b"} <= set(output.split("\n"))


def test_an_image_of_120_layers_runs(
    wherry: Wherry, registry: RunningRegistry, tmp_path: Path
) -> None:
    layers = layer_tars(tmp_path, busybox_tar(wherry), [f"n{index}" for index in range(119)])
    name = registry.push_layers(layers, "many:120")
    output = wherry.out(
        "run", "--rm", name, "sh", "-c", "cat /which; echo; ls / | grep -c '^n'", timeout=180
    )
    assert output == "n118\n119"


def busybox_tar(wherry: Wherry) -> Path:
    """The layer of the image that comes with the VM, as an uncompressed tar."""
    wherry.run("machine", "start", check=True, timeout=120)
    facts = json.loads(wherry.out("inspect", "--type", "image", "localhost/busybox"))[0]
    store = wherry.home.store
    index = json.loads((store / "index.json").read_text())
    for entry in index["manifests"]:
        manifest = json.loads(blob(store, entry["digest"]).read_bytes())
        if manifest.get("config", {}).get("digest") == facts["Id"]:
            path = blob(store, manifest["layers"][0]["digest"])
            data = path.read_bytes()
            target = wherry.home.root / "busybox-layer.tar"
            target.write_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
            return target
    raise AssertionError("localhost/busybox is not in the layout's index")


def blob(store: Path, digest: str) -> Path:
    return store / "blobs" / digest.replace(":", "/")


def layer_tars(directory: Path, base: Path, names: list[str]) -> list[Path]:
    """`base`, and for each name a layer with a file of that name that also sets /which."""
    tars = [base]
    for name in names:
        tar_path = directory / f"{name}.tar"
        content = directory / "content"
        content.write_text(name)
        with tarfile.open(tar_path, "w") as tar:
            for member in (name, "which"):
                info = tar.gettarinfo(str(content), member)
                info.mtime = 0
                with content.open("rb") as file:
                    tar.addfile(info, file)
        tars.append(tar_path)
    return tars
