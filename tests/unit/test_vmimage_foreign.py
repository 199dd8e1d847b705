"""What containers of other architectures need from Debian: pinned, renewed, made whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from vmimage_samples import BUSYBOX, Archive, deb, program

from wherry_image.addons import Fetched
from wherry_image.archive import Package
from wherry_image.errors import ConfigError, FormatError, LockError, MirrorError, SignatureError
from wherry_image.foreign import (
    EMULATOR_PACKAGE,
    QEMU_USER,
    busybox_layout,
    emulator_programs,
)
from wherry_image.lock import Lock
from wherry_image.lockfiles import newest_lock, write_lock

LATER = "Mon, 05 Jan 2099 12:00:00 UTC"
"""After the locks that are shipped."""


class Room:
    """A mirror whose index is newer than the shipped locks, and a user's directories."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.locks = root / "locks"
        self.archive = Archive(root / "mirror", date=LATER)
        monkeypatch.setattr("wherry_image.index.archive_keyring", lambda: self.archive.keyring)

    def publish(self, version: str) -> Package:
        content = deb({"/usr/bin/qemu-arm": program() + version.encode()})
        package = self.archive.add(EMULATOR_PACKAGE, version, content)
        self.archive.publish()
        return package

    def pin(self, package: Package, day: int = 1) -> None:
        moment = datetime(2098, 1, day, tzinfo=UTC)
        lock = Lock("amd64", moment, (EMULATOR_PACKAGE,), (package,))
        write_lock(self.locks / "emulators-amd64.lock", lock)

    def fetch(self) -> Fetched:
        return QEMU_USER.fetch(
            arch="amd64",
            packages=self.root / "packages",
            locks=[self.locks],
            mirror=self.archive.url,
        )

    def refresh(self) -> list[str]:
        mirror = self.archive.url
        return list(map(str, QEMU_USER.refresh(arch="amd64", locks=[self.locks], mirror=mirror)))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


def test_the_locked_package_is_taken(room: Room) -> None:
    old = room.publish("1.0")
    room.pin(old)
    room.publish("2.0")
    found = room.fetch()
    assert (found.package(EMULATOR_PACKAGE).version, found.notices) == ("1.0", ())
    assert dict(emulator_programs(found.files[EMULATOR_PACKAGE], ["qemu-arm"]))[
        "qemu-arm"
    ].endswith(b"1.0")


def test_a_package_that_is_gone_is_replaced_by_the_newest_and_pinned(room: Room) -> None:
    old = room.publish("1.0")
    room.pin(old)
    (room.archive.root / old.path).unlink()
    room.publish("2.0")
    found = room.fetch()
    assert found.package(EMULATOR_PACKAGE).version == "2.0"
    assert found.notices[0].startswith("no mirror has qemu-user_1.0_amd64.deb any more")
    assert QEMU_USER.lock("amd64", [room.locks]).packages[0].version == "2.0"
    assert room.fetch().notices == ()


def test_an_unsigned_replacement_is_refused_and_the_lock_stays(room: Room) -> None:
    old = room.publish("1.0")
    room.pin(old)
    (room.archive.root / old.path).unlink()
    room.archive.key = Archive(room.root / "other").key
    room.publish("2.0")
    room.archive.key = Archive(room.root / "other").key
    with pytest.raises(SignatureError):
        room.fetch()
    assert QEMU_USER.lock("amd64", [room.locks]).packages[0].version == "1.0"


def test_an_altered_package_is_refused(room: Room) -> None:
    package = room.publish("1.0")
    room.pin(package)
    file = room.archive.root / package.path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(MirrorError, match="not what the lock promises"):
        room.fetch()


def test_refreshing_pins_what_is_newer_and_writes_nothing_else(room: Room) -> None:
    room.pin(room.publish("1.0"))
    before = (room.locks / "emulators-amd64.lock").read_bytes()
    assert room.refresh() == []
    assert (room.locks / "emulators-amd64.lock").read_bytes() == before
    room.publish("2.0")
    assert room.refresh() == ["qemu-user 1.0 -> 2.0"]
    assert room.refresh() == []


def test_a_busybox_is_an_image_of_its_architecture(room: Room) -> None:
    content = deb({"/usr/bin/busybox": BUSYBOX})
    package = room.archive.add("busybox-static", "1:1.37-1", content)
    roots = ("busybox-static",)
    lock = Lock("arm64", datetime(2098, 1, 1, tzinfo=UTC), roots, (package,))
    write_lock(room.locks / "arm64.lock", lock)
    arguments = {"arch": "arm64", "packages": room.root / "p", "out": room.root / "out"}
    made = busybox_layout(**arguments, locks=[room.locks], mirror=room.archive.url)  # type: ignore[arg-type]  # as above
    (entry,) = json.loads((made / "index.json").read_bytes())["manifests"]
    assert entry["platform"] == {"architecture": "arm64", "os": "linux"}
    newer = Lock("arm64", datetime(2098, 1, 2, tzinfo=UTC), roots, (package,))
    write_lock(room.locks / "arm64.lock", newer)
    again = busybox_layout(**arguments, locks=[room.locks], mirror=room.archive.url)  # type: ignore[arg-type]  # as above
    assert [path.name for path in (room.root / "out").iterdir()] == [again.name]
    assert again != made


def test_what_is_wrong_is_said(room: Room, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown architecture s390x"):
        QEMU_USER.lock("s390x")
    file = tmp_path / "odd.deb"
    file.write_bytes(deb({"/usr/bin/qemu-arm": b"a script"}))
    with pytest.raises(FormatError, match="qemu-arm of qemu-user is not a static program"):
        list(emulator_programs(file, ["qemu-arm"]))


def test_a_lock_of_another_architecture_is_an_error(room: Room) -> None:
    package = room.publish("1.0")
    lock = Lock("arm64", datetime(2098, 1, 1, tzinfo=UTC), (EMULATOR_PACKAGE,), (package,))
    file = room.locks / "emulators-amd64.lock"
    write_lock(file, lock)
    with pytest.raises(LockError, match="is a lock for arm64"):
        newest_lock("amd64", [file], (EMULATOR_PACKAGE,))
