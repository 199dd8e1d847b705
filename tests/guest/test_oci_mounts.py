"""Propagation of mounts, and what is recursive: the same for us, crun and runc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oci_harness import Runtime, change

pytestmark = pytest.mark.guest


@pytest.fixture
def shared(runtime: Runtime) -> Iterator[Path]:
    """A shared mount in the runtimes' namespace, with a mount and an empty directory in it."""
    yield from _shared(runtime)


@pytest.fixture
def ours_shared(wherry_oci: Runtime) -> Iterator[Path]:
    yield from _shared(wherry_oci)


def _shared(runtime: Runtime) -> Iterator[Path]:
    path = runtime.host.directory / "bundle-mounts"
    for name in ("", "below", "empty"):
        (path / name).mkdir()
    mount = runtime.host.run
    for arguments in (
        ["--bind", path, path],
        ["--make-shared", path],
        ["-t", "tmpfs", "tmpfs", path / "below"],
    ):
        assert mount("mount", *map(str, arguments)).returncode == 0
    yield path
    assert mount("umount", "--recursive", str(path)).returncode == 0


def bind(spec: dict[str, Any], source: Path, *options: str) -> dict[str, Any]:
    spec["mounts"].append(
        {"destination": "/mnt", "source": str(source), "type": "bind", "options": list(options)}
    )
    return spec


def sees_later_mounts(runtime: Runtime, shared: Path, id: str) -> bool:
    """Whether a mount made outside now appears in the running container's /mnt/empty."""
    target = str(shared / "empty")
    assert runtime.host.run("mount", "-t", "tmpfs", "tmpfs", target).returncode == 0
    try:
        return "/mnt/empty " in runtime.ok("exec", id, "cat", "/proc/mounts")
    finally:
        assert runtime.host.run("umount", target).returncode == 0


def test_a_plain_bind_is_not_recursive(runtime: Runtime, shared: Path) -> None:
    spec = bind(runtime.spec("grep", "-c", " /mnt", "/proc/mounts"), shared, "bind", "private")
    assert runtime.lines(spec) == ["1"]


def test_rbind_takes_what_is_mounted_below(runtime: Runtime, shared: Path) -> None:
    spec = bind(runtime.spec("grep", "-c", " /mnt", "/proc/mounts"), shared, "rbind", "rprivate")
    assert runtime.lines(spec) == ["2"]


def test_a_private_bind_hears_of_nothing(runtime: Runtime, shared: Path) -> None:
    id = runtime.start(bind(runtime.spec("sleep", "100"), shared, "rbind", "rprivate"))
    assert not sees_later_mounts(runtime, shared, id)


def test_a_slave_bind_hears_of_mounts_outside(runtime: Runtime, shared: Path) -> None:
    spec = bind(runtime.spec("sleep", "100"), shared, "rbind", "rslave")
    change(spec, "linux.rootfsPropagation", "rslave")
    id = runtime.start(spec)
    assert sees_later_mounts(runtime, shared, id)


def test_a_shared_bind_tells_of_mounts_inside(ours_shared: Path, wherry_oci: Runtime) -> None:
    spec = bind(wherry_oci.spec("sleep", "100"), ours_shared, "rbind", "rshared")
    spec["process"]["capabilities"]["bounding"].append("CAP_SYS_ADMIN")
    for kind in ("effective", "permitted"):
        spec["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
    id = wherry_oci.start(spec)
    assert sees_later_mounts(wherry_oci, ours_shared, id)
    wherry_oci.ok("exec", id, "mount", "-t", "tmpfs", "tmpfs", "/mnt/empty")
    outside = Path(f"/proc/{wherry_oci.host.keeper.pid}/mounts").read_text()
    assert f" {ours_shared}/empty " in outside
    wherry_oci.ok("exec", id, "umount", "/mnt/empty")


@pytest.mark.parametrize(
    ("option", "field"),
    [("rshared", "shared:"), ("rslave", "master:"), ("rprivate", ""), ("unbindable", "unbindable")],
)
def test_every_mode_is_seen_in_mountinfo(
    wherry_oci: Runtime, ours_shared: Path, option: str, field: str
) -> None:
    spec = bind(
        wherry_oci.spec("grep", " /mnt ", "/proc/self/mountinfo"), ours_shared, "bind", option
    )
    (line,) = wherry_oci.lines(spec)
    optional = " ".join(line.split(" - ")[0].split()[6:])
    assert (field in optional) if field else optional == ""


@pytest.mark.parametrize(
    ("mode", "field"),
    [("shared", "shared:"), ("rshared", "shared:"), ("private", ""), ("unbindable", "unbindable")],
)
def test_root_propagation(wherry_oci: Runtime, mode: str, field: str) -> None:
    spec = change(
        wherry_oci.spec("grep", " / / ", "/proc/self/mountinfo"), "linux.rootfsPropagation", mode
    )
    spec["process"]["args"] = ["awk", '$5 == "/"', "/proc/self/mountinfo"]
    (line,) = wherry_oci.lines(spec)
    optional = " ".join(line.split(" - ")[0].split()[6:])
    assert (field in optional) if field else optional == ""


def test_the_root_hears_of_later_mounts_when_it_is_a_slave(
    wherry_oci: Runtime, ours_shared: Path
) -> None:
    wherry_oci.host.run("cp", "-a", f"{wherry_oci.host.rootfs}/.", f"{ours_shared}/empty")
    spec = wherry_oci.spec("sleep", "100")
    spec["root"]["path"] = f"{ours_shared}/empty"
    change(spec, "linux.rootfsPropagation", "rslave")
    id = wherry_oci.start(spec)
    target = f"{ours_shared}/empty/srv"
    wherry_oci.host.run("mount", "-t", "tmpfs", "tmpfs", target)
    assert " /srv " in wherry_oci.ok("exec", id, "cat", "/proc/mounts")
    wherry_oci.host.run("umount", target)


def test_nothing_of_a_container_shows_outside(runtime: Runtime, shared: Path) -> None:
    outside = Path(f"/proc/{runtime.host.keeper.pid}/mounts")
    before = outside.read_text()
    id = runtime.start(bind(runtime.spec("sleep", "100"), shared, "rbind", "rprivate"))
    assert outside.read_text() == before
    runtime.ok("delete", "--force", id)


def test_ro_is_the_top_mounts_and_rro_all_mounts(wherry_oci: Runtime, ours_shared: Path) -> None:
    script = "touch /mnt/x 2>/dev/null || echo top; touch /mnt/below/x 2>/dev/null || echo below"
    for options, said in ((["rbind", "ro"], ["top"]), (["rbind", "rro"], ["top", "below"])):
        spec = bind(wherry_oci.spec("sh", "-c", script), ours_shared, *options)
        assert wherry_oci.run(spec).stdout.split() == said


@pytest.mark.parametrize("word", ["nosuid", "nodev", "noexec", "noatime", "nosymfollow"])
def test_flags_and_their_recursive_twins(wherry_oci: Runtime, ours_shared: Path, word: str) -> None:
    spec = wherry_oci.spec("grep", " /mnt", "/proc/mounts")
    top, below = wherry_oci.lines(bind(spec, ours_shared, "rbind", word))
    assert word in top.split()[3].split(",")
    assert word not in below.split()[3].split(",")
    spec = wherry_oci.spec("grep", " /mnt", "/proc/mounts")
    for line in wherry_oci.lines(bind(spec, ours_shared, "rbind", f"r{word}")):
        assert word in line.split()[3].split(",")
