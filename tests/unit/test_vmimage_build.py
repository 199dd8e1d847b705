"""Whole images from small packages: reproducible, cached, atomic, clear about what is missing."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from vmimage_samples import BUSYBOX, CONFIG, Archive, deb, fill, program

from wherry_image import VmImage, agent_cpio, assemble, build, build_image, refresh_lock
from wherry_image.agent import DEFAULT_INIT
from wherry_image.busybox import applets
from wherry_image.cpio import read_cpio
from wherry_image.deb import data_members
from wherry_image.errors import (
    ConfigError,
    DependencyError,
    FormatError,
    LockError,
    PackageGone,
    VmImageError,
)
from wherry_image.kernels import parse_kernel
from wherry_image.tree import Node

FINISHED_SECONDS = 0.02
"""A finished image is found within this: it is asked for at every command that needs the VM."""


class Room:
    """A mirror, a configuration and the directories of one builder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.archive = Archive(root / "mirror")
        fill(self.archive)
        self.root = root
        self.config = root / "linuxkit.yml"
        self.config.write_text(CONFIG)
        self.locks = root / "locks"
        monkeypatch.setattr("wherry_image.index.archive_keyring", lambda: self.archive.keyring)

    def build(self, out: str = "out", **options: object) -> VmImage:
        arguments = {
            "arch": "amd64",
            "config": self.config,
            "locks": [self.locks],
            "packages": self.root / "packages",
            "out": self.root / out,
            "mirror": self.archive.url,
            **options,
        }
        return build_image(**arguments)  # type: ignore[arg-type]  # keyword by keyword, as above

    def refresh(self) -> list[str]:
        change = refresh_lock(
            arch="amd64", config=self.config, locks=[self.locks], mirror=self.archive.url
        )
        return list(map(str, change.packages))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


def files(image: VmImage) -> dict[str, Node]:
    return dict(read_cpio(image.initrd.read_bytes()))


def contents(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_an_image_is_built_from_signed_packages(room: Room) -> None:
    image = room.build()
    assert image.kernel.read_bytes() == b"a kernel, plain"
    assert image.fast_kernel == image.kernel
    assert image.kernel_version == "6.12.1-cloud"
    assert image.cmdline == "console=ttyS0 quiet"
    assert image.notices == ()
    found = files(image)
    assert found["/usr/bin/tool"].data.endswith(b"tool 1")
    assert found["/usr/bin/same"] == found["/usr/bin/tool"]
    assert found["/bin"].data == b"usr/bin"
    assert found["/etc/motd"] == Node(0o100600, b"hello")
    assert found["/dev/console"].device == (5, 1)
    assert b"tool 1.0 amd64\n" in found["/etc/wherry/packages"].data


def test_only_the_modules_that_are_wanted_are_there(room: Room) -> None:
    found = files(room.build())
    base = "/lib/modules/6.12.1-cloud/kernel"
    order = found["/etc/wherry/modules"].data.decode().splitlines()
    assert order == [f"{base}/scsi_mod.ko", f"{base}/virtio_scsi.ko"]
    modules = {path.rpartition("/")[2] for path in found if path.endswith(".ko")}
    assert modules == {"scsi_mod.ko", "virtio_scsi.ko", "erofs.ko"}
    assert "/usr/lib/modules/6.12.1-cloud/modules.dep" in found


def test_documentation_is_left_out(room: Room) -> None:
    assert not [path for path in files(room.build()) if "/doc" in path or "/man" in path]


def test_the_same_lock_gives_the_same_bytes(room: Room) -> None:
    one, two = room.build("one"), room.build("two")
    assert one.key == two.key
    assert contents(one.kernel.parent) == contents(two.kernel.parent)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_files_and_packages_does_not_show(
    seed: int, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = room.build("one")
    shuffle = random.Random(seed).sample

    def shuffled(data: bytes) -> list[object]:
        members = list(data_members(data))
        return shuffle(members, len(members))

    monkeypatch.setattr(assemble, "data_members", shuffled)
    make = build._Build.make

    def disordered(it: build._Build, lock: object, *rest: object) -> VmImage:
        packages = lock.packages  # type: ignore[attr-defined]  # a Lock
        mixed = replace(lock, packages=tuple(shuffle(packages, len(packages))))  # type: ignore[type-var]
        return make(it, mixed, *rest)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(build._Build, "make", disordered)
    two = room.build("two")
    assert contents(one.kernel.parent) == contents(two.kernel.parent)


def test_a_finished_image_is_found_at_once_and_without_a_mirror(room: Room) -> None:
    first = room.build()
    began = time.perf_counter()
    again = room.build(mirror="http://127.0.0.1:9/debian", packages=room.root / "none")
    assert time.perf_counter() - began < FINISHED_SECONDS
    assert again == first


def test_a_damaged_image_is_built_again(room: Room) -> None:
    first = room.build()
    first.initrd.write_bytes(b"short")
    assert room.build() == first
    assert first.initrd.stat().st_size > 1000


def test_another_configuration_is_another_image(room: Room) -> None:
    first = room.build()
    room.config.write_text(CONFIG.replace("hello", "good day"))
    assert room.build().key != first.key


def test_only_a_few_old_images_stay(room: Room) -> None:
    for number in range(5):
        room.config.write_text(CONFIG.replace("hello", str(number)))
        room.build()
    assert len(list((room.root / "out").iterdir())) == 3


def test_nothing_half_built_stays_behind(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wherry_image.write._make_durable", broken)
    with pytest.raises(OSError, match="No space left"):
        room.build()
    assert not list((room.root / "out").iterdir())


def test_progress_is_told_phase_by_phase(room: Room) -> None:
    told: list[tuple[str, int, int]] = []
    room.build(progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "index",
        "download",
        "unpack",
        "write",
    ]
    assert all(0 <= done <= total for _, done, total in told)


def test_a_new_package_is_taken_when_the_lock_is_refreshed(room: Room) -> None:
    assert len(room.refresh()) == 5
    first = room.build()
    assert room.refresh() == []
    fill(room.archive, tool=b"tool 2", version="2.0")
    assert room.refresh() == ["tool 1.0 -> 2.0"]
    assert files(room.build())["/usr/bin/tool"].data.endswith(b"tool 2")
    assert room.build().key != first.key


def withdraw(room: Room) -> None:
    """The mirror has a newer `tool` only, and nothing is cached."""
    room.refresh()
    (room.archive.root / "debian/pool/main/tool_1.0_amd64.deb").unlink()
    fill(room.archive, tool=b"tool 2", version="2.0")
    (room.archive.root / "debian/pool/main/tool_1.0_amd64.deb").unlink(missing_ok=True)


def test_a_package_that_is_gone_is_replaced_and_named(room: Room) -> None:
    withdraw(room)
    image = room.build()
    assert image.notices == (
        "no mirror has tool_1.0_amd64.deb any more",
        "packages changed: tool 1.0 -> 2.0",
    )
    assert "tool 2.0" in (room.locks / "amd64.lock").read_text()
    assert room.build().notices == ()


def test_locked_makes_a_package_that_is_gone_an_error(room: Room) -> None:
    withdraw(room)
    with pytest.raises(PackageGone, match=r"tool_1\.0_amd64\.deb"):
        room.build(locked=True)
    assert "tool 1.0" in (room.locks / "amd64.lock").read_text()


def test_locked_needs_a_lock_that_fits(room: Room) -> None:
    with pytest.raises(LockError, match="no lock fits"):
        room.build(locked=True)


def test_the_newest_fitting_lock_wins(room: Room) -> None:
    room.refresh()
    newer = room.root / "newer"
    newer.mkdir()
    text = (room.locks / "amd64.lock").read_text()
    (newer / "amd64.lock").write_text(text.replace("20260105", "20260106"))
    image = room.build(locks=[room.locks, newer])
    assert "timestamp 20260106" in (image.kernel.parent / "lock").read_text()


def test_a_lock_of_another_architecture_is_refused(room: Room) -> None:
    room.refresh()
    (room.locks / "arm64.lock").write_bytes((room.locks / "amd64.lock").read_bytes())
    with pytest.raises(LockError, match="a lock for amd64"):
        room.build(arch="arm64")


def test_a_library_that_was_left_out_is_noticed(room: Room) -> None:
    room.archive.add("tool", "3.0", deb({"/usr/bin/tool": program("libgone.so.9")}))
    room.archive.publish()
    with pytest.raises(DependencyError, match=r"/usr/bin/tool needs libgone\.so\.9"):
        room.build()


def test_a_damaged_package_is_named(room: Room) -> None:
    room.archive.add("tool", "3.0", b"!<arch>\nnot at all")
    room.archive.publish()
    with pytest.raises(FormatError, match=r"^tool: "):
        room.build()


@pytest.mark.parametrize(
    ("arch", "config", "message"),
    [("riscv64", None, "unknown architecture"), ("amd64", Path("/none/x.yml"), "cannot read")],
)
def test_bad_arguments_are_clear(arch: str, config: Path | None, message: str, room: Room) -> None:
    with pytest.raises(ConfigError, match=message):
        room.build(arch=arch, config=config)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize(
    ("kernel", "version"), [("default", "6.12."), ("6.1", "6.1."), ("testing", "7.")]
)
def test_the_shipped_locks_fit_the_shipped_configuration(
    arch: str, kernel: str, version: str
) -> None:
    inputs = build._Inputs.read(arch, None, parse_kernel(kernel), [])
    made = build._Build(inputs, [], None, lambda *_: None)
    lock = made.fitting_lock()
    remedy = f"make it anew: python -m wherry_image lock --arch {arch} --kernel {kernel}"
    assert lock is not None, remedy
    versions = {package.name: package.version for package in lock.packages}
    assert "python3.13-minimal" in versions
    assert versions[f"linux-image-cloud-{arch}"].startswith(version), remedy


def test_busybox_is_an_oci_layout(room: Room) -> None:
    root = room.build().busybox
    index = json.loads((root / "index.json").read_bytes())
    (descriptor,) = index["manifests"]

    def blob(digest: str) -> bytes:
        data = (root / "blobs" / digest.replace(":", "/")).read_bytes()
        assert "sha256:" + hashlib.sha256(data).hexdigest() == digest
        return data

    manifest = json.loads(blob(descriptor["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    assert config["config"]["Cmd"] == ["sh"]
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    assert BUSYBOX in blob(manifest["layers"][0]["digest"])


def test_applets_are_read_from_the_binary() -> None:
    assert applets(BUSYBOX) == ["[", "[[", "ash", "busybox", "cat", "sh"]
    with pytest.raises(FormatError, match="no table of applets"):
        applets(b"\x7fELF nothing")


def guest_package(root: Path, **sources: str) -> Path:
    package = root / "wherry_guest"
    (package / "core").mkdir(parents=True)
    for name, text in {"__init__": "", "core/__init__": "", **sources}.items():
        (package / f"{name}.py").write_text(text)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "init.cpython-313.pyc").write_bytes(b"x")
    return package


def test_the_agent_archive_holds_sources_and_init(tmp_path: Path) -> None:
    package = guest_package(tmp_path, init="INIT_SCRIPT: str = '#!/usr/bin/python3\\nrun()\\n'\n")
    found = dict(read_cpio(agent_cpio(package)))
    assert found["/init"] == Node(0o100755, b"#!/usr/bin/python3\nrun()\n")
    assert "/usr/lib/wherry/wherry_guest/core/__init__.py" in found
    assert not [path for path in found if "pyc" in path]


def test_init_has_a_default(tmp_path: Path) -> None:
    found = dict(read_cpio(agent_cpio(guest_package(tmp_path))))
    assert found["/init"].data.decode() == DEFAULT_INIT


def test_the_agent_archive_changes_with_its_sources_only(tmp_path: Path) -> None:
    one = agent_cpio(guest_package(tmp_path / "1", wire="a = 1\n"))
    assert one == agent_cpio(guest_package(tmp_path / "2", wire="a = 1\n"))
    other = agent_cpio(guest_package(tmp_path / "3", wire="a = 2\n"))
    assert one != other
    mtimes = {archive[46:54] for archive in (one, other)}
    assert len(mtimes) == 2


def test_the_installed_agent_is_found() -> None:
    assert "/usr/lib/wherry/wherry_guest/__init__.py" in dict(read_cpio(agent_cpio()))


def test_a_package_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VmImageError, match="holds no Python sources"):
        agent_cpio(tmp_path)
