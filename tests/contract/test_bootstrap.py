"""A Debian without a registry, and a registry in it: bootstrapped, run, pushed to, pulled from."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Wherry
from relay import relay
from rootfs import debian_tar
from waiting import eventually

pytestmark = [pytest.mark.contract, pytest.mark.vm, pytest.mark.timeout(600)]

NAME = "local-registry:1"
PACKAGE = "docker-registry"
BUSYBOX = "localhost/busybox"
CONFIG_FILE = "/etc/docker/registry/local.yml"
CONFIG = b"""\
version: 0.1
storage:
  filesystem: {rootdirectory: /var/lib/docker-registry}
  delete: {enabled: true}
http: {addr: ":5000"}
"""


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lock") / "registry.lock"


@pytest.fixture(scope="module")
def image(wherry: Wherry, lock: Path) -> str:
    """The id of a Debian with docker-registry."""
    words = ["bootstrap", "debian:trixie", "-t", NAME, "--include", PACKAGE, "--lock", str(lock)]
    return wherry.out("image", *words, timeout=400)


@pytest.fixture(scope="module")
def served(wherry: Wherry, image: str) -> Iterator[str]:
    """`127.0.0.1:port` of the registry that runs in a container, made as the documentation says."""
    script = f"cat > {CONFIG_FILE}"
    wherry.run("run", "-i", "--name", "set-up", NAME, "sh", "-c", script, input=CONFIG, check=True)
    command = json.dumps([PACKAGE, "serve", CONFIG_FILE])
    wherry.run("commit", "-c", f"CMD {command}", "set-up", "registry:1", check=True)
    wherry.run("rm", "set-up", check=True)
    container = wherry.out("run", "-d", "registry:1")

    def listens() -> bool:
        script = "exec 3<>/dev/tcp/127.0.0.1/5000"
        return wherry.run("exec", container, "bash", "-c", script).returncode == 0

    try:
        eventually("the registry listens", listens, 60)
        with relay(wherry, container, 5000) as host:
            yield host
    finally:
        wherry.run("rm", "-f", container)


def facts(wherry: Wherry, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(wherry.out("inspect", "--type", "image", name))[0]
    return found


def layer(wherry: Wherry, name: str) -> Path:
    """The one layer of a bootstrapped image: an uncompressed tar."""
    (diff_id,) = facts(wherry, name)["RootFS"]["Layers"]
    return wherry.home.store / "blobs" / diff_id.replace(":", "/")


def test_it_is_a_debian_with_all_packages_installed(wherry: Wherry, image: str, lock: Path) -> None:
    script = ". /etc/os-release; echo $VERSION_CODENAME; dpkg -l | grep -c ^ii; dpkg --audit"
    names = [line for line in lock.read_text().splitlines() if line.count(" ") == 5]
    out = wherry.out("run", "--rm", NAME, "sh", "-c", script)
    assert out == f"trixie\n{len(names)}"
    apt = wherry.out("run", "--rm", NAME, "sh", "-c", "apt-get check; apt list --installed | wc -l")
    assert int(apt.splitlines()[-1]) == len(names) + 1


def test_the_same_lock_gives_the_same_image(wherry: Wherry, image: str, lock: Path) -> None:
    words = ["bootstrap", "-t", "again:1", "--include", PACKAGE, "--lock", str(lock)]
    assert wherry.out("image", *words, timeout=400) == image
    one, other = facts(wherry, NAME), facts(wherry, "again:1")
    assert one["RootFS"] == other["RootFS"]
    assert one["Created"] == other["Created"]


def test_the_files_are_those_that_mmdebstrap_makes(
    wherry: Wherry, image: str, test_cache: Path
) -> None:
    ours, theirs = contents(layer(wherry, NAME)), contents(debian_tar(test_cache))
    made_by_hand = ("etc/apt/sources.list", "etc/fstab", "etc/hostname", "etc/resolv.conf")
    compared = 0
    for name, facts_of in theirs.items():
        ours_too = name.startswith(("usr/", "etc/", "var/lib/dpkg/info/"))
        ends = (".list", "-", ".lock", "ld.so.cache", "passwd", "group", "shadow")
        if not ours_too or name in made_by_hand or name.endswith(ends):
            continue
        if name.startswith(("etc/rc", "usr/sbin/policy")):  # docker-registry's links are there too
            continue
        assert ours.get(name) == facts_of, name
        compared += 1
    assert compared > 4000


def contents(tar_file: Path) -> dict[str, tuple[object, ...]]:
    """Of every file but directories: mode, owner, and what is in it or where it leads."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(tar_file) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                found[name] = (member.mode, member.uid, member.gid, digest)
            elif member.issym():
                found[name] = (member.linkname,)
    return found


def test_nothing_is_left_of_the_making(wherry: Wherry, image: str) -> None:
    names = set(contents(layer(wherry, NAME)))
    assert not {name for name in names if name.startswith(("wherry", "run/", "tmp/"))}
    assert not {name for name in names if name.endswith((".log", ".dpkg-new", "-old"))}
    assert wherry.out("ps", "-aq", "--filter", "status=exited", "--filter", "name=bootstrap") == ""
    assert wherry.out("images", "-q", "--filter", "dangling=true") == ""


def test_a_package_that_does_not_exist_is_said(wherry: Wherry) -> None:
    done = wherry.run("image", "bootstrap", "--include", "no-such-package", timeout=120)
    assert done.returncode == 1
    assert b"there is no package no-such-package" in done.stderr


def test_the_registry_takes_and_gives_images(wherry: Wherry, served: str) -> None:
    name = f"{served}/team/busybox:1"
    wherry.run("tag", BUSYBOX, name, check=True)
    wherry.run("push", name, check=True, timeout=120)
    pushed = facts(wherry, BUSYBOX)["Id"]
    wherry.run("rmi", name, check=True)
    wherry.run("pull", name, check=True, timeout=120)
    assert facts(wherry, name)["Id"] == pushed
    assert wherry.out("run", "--rm", name, "echo", "from the registry") == "from the registry"
    wherry.run("rmi", name, check=True)


def test_what_it_does_not_have_is_said(wherry: Wherry, served: str) -> None:
    done = wherry.run("pull", f"{served}/team/nothing:1", timeout=60)
    assert done.returncode == 1
    assert b"team/nothing" in done.stderr
