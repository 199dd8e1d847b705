"""Binds of volumes: what the image has is copied to an empty one, subpaths stay within."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from containers_harness import Machine, StartFailed
from waiting import eventually

pytestmark = pytest.mark.guest


def volume(machine: Machine, name: str) -> Path:
    path = machine.directory / "volumes" / name / "_data"
    path.mkdir(parents=True)
    return path


def image(machine: Machine, name: str) -> Path:
    """A layer above busybox with something in /data."""
    data = machine.directory / "l" / name / "data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("from the image\n")
    (data / "file").chmod(0o4755)
    os.chown(data / "sub", 1000, 1000)
    os.link(data / "file", data / "sub" / "again")
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "pipe")
    os.mknod(data / "null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.setxattr(data / "file", "user.note", b"kept")
    os.utime(data / "sub" / "again", ns=(0, 1_234_567_890_123_456_789))
    data.chmod(0o1770)
    os.chown(data, 33, 44)
    return data


def run(machine: Machine, layer: str, source: Path, *options: str, command: str = "true") -> str:
    spec = machine.spec("sh", "-c", command)
    mount: dict[str, Any] = {"destination": "/data", "type": "bind", "source": str(source)}
    spec["mounts"].append({**mount, "options": ["bind", "rprivate", *options]})
    rootfs = machine.rootfs(machine.new_key(), *dict.fromkeys((layer, "busybox")))
    result = machine.finish(machine.start(spec, rootfs=rootfs))
    return result.stdout + result.stderr


def test_an_empty_volume_gets_what_the_image_has_on_its_path(machine: Machine) -> None:
    image(machine, "full")
    data = volume(machine, "empty")
    assert run(machine, "full", data, "copyup", command="cat /data/file") == "from the image\n"
    status = (data / "file").stat()
    assert stat.S_IMODE(status.st_mode) == 0o4755
    assert status.st_nlink == 2
    assert status.st_mtime_ns == 1_234_567_890_123_456_789
    assert os.getxattr(data / "file", "user.note") == b"kept"
    assert (data / "link").readlink() == Path("/etc/passwd")
    assert stat.S_ISFIFO((data / "pipe").stat().st_mode)
    null = (data / "null").stat()
    assert (null.st_rdev, stat.S_IMODE(null.st_mode)) == (os.makedev(1, 3), 0o640)
    assert ((data / "sub").stat().st_uid, (data / "sub").stat().st_gid) == (1000, 1000)
    root = data.stat()
    assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o1770, 33, 44)


def test_a_volume_with_something_in_it_stays_as_it_is(machine: Machine) -> None:
    image(machine, "unused")
    data = volume(machine, "used")
    (data / "mine").write_text("")
    assert run(machine, "unused", data, "copyup", command="ls /data") == "mine\n"


def test_nothing_is_copied_without_copyup_or_without_a_directory(machine: Machine) -> None:
    image(machine, "nocopy")
    assert run(machine, "nocopy", volume(machine, "nocopy"), command="ls /data") == ""
    assert run(machine, "busybox", volume(machine, "new"), "copyup", command="ls /data") == ""


def test_a_tree_of_a_thousand_levels_is_copied(machine: Machine) -> None:
    layer, data = machine.directory / "l/deep", volume(machine, "deep")
    (layer / "data").mkdir(parents=True)
    try:
        here = os.open(layer / "data", os.O_RDONLY)
        for _ in range(1000):
            os.mkdir("d", dir_fd=here)
            here = below(here)
        os.close(here)
        run(machine, "deep", data, "copyup")
        here, depth = os.open(data, os.O_RDONLY), 0
        while os.listdir(here):  # noqa: PTH208  # of a descriptor
            here, depth = below(here), depth + 1
        os.close(here)
        assert depth == 1000
    finally:  # deeper than what pytest's own clearing can recurse
        subprocess.run(["rm", "-rf", layer, data], check=True)


def below(directory: int) -> int:
    inner = os.open("d", os.O_RDONLY, dir_fd=directory)
    os.close(directory)
    return inner


def test_what_is_mounted_in_the_container_is_not_copied(machine: Machine) -> None:
    """A destination that leads into /proc finds the image's own, which is empty."""
    layer = machine.directory / "l" / "tricky"
    layer.mkdir()
    (layer / "data").symlink_to("/proc/1/root")
    data = volume(machine, "tricky")
    spec = machine.spec("true")
    mount: dict[str, Any] = {"destination": "/data", "type": "bind", "source": str(data)}
    spec["mounts"].append({**mount, "options": ["bind", "copyup"]})
    rootfs = machine.rootfs(machine.new_key(), "tricky", "busybox")
    machine.finish(machine.start(spec, rootfs=rootfs))
    assert list(data.iterdir()) == []


def test_a_subpath_of_a_volume_is_mounted(machine: Machine) -> None:
    data = volume(machine, "parts")
    (data / "a/b").mkdir(parents=True)
    (data / "a/b/here").write_text("")
    assert run(machine, "busybox", data, "subpath=a/b", command="ls /data") == "here\n"


def test_a_link_in_a_subpath_stays_within_the_volume(machine: Machine) -> None:
    data = volume(machine, "hostile")
    (data / "etc").mkdir()
    (data / "etc/inside").write_text("")
    (data / "abs").symlink_to("/etc")
    (data / "up").symlink_to("../../../../etc")
    for name in ("abs", "up"):
        assert run(machine, "busybox", data, f"subpath={name}", command="ls /data") == "inside\n"
    (data / "magic").symlink_to("/proc/self/root/etc")
    with pytest.raises(StartFailed):
        run(machine, "busybox", data, "subpath=magic")


def test_a_missing_subpath_is_an_error_that_names_the_mount(machine: Machine) -> None:
    data = volume(machine, "poor")
    with pytest.raises(StartFailed, match=r"take .* for a bind mount"):
        run(machine, "busybox", data, "subpath=nothing/here")


def test_who_fills_a_volume_first_is_waited_for(machine: Machine) -> None:
    image(machine, "late")
    data = volume(machine, "shared")
    with ThreadPoolExecutor() as pool:
        parent = os.open(data.parent, os.O_RDONLY)
        fcntl.flock(parent, fcntl.LOCK_EX)
        other = pool.submit(run, machine, "late", data, "copyup", command="ls -A /data")
        eventually("the other one waits", lambda: "->" in Path("/proc/locks").read_text())
        (data / "first").write_text("")
        os.close(parent)
        assert other.result(30) == "first\n"
