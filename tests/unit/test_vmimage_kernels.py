"""Kernels of one's choice: another release's, one's own with its modules, another file's."""

from __future__ import annotations

import gzip
import lzma
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from vmimage_samples import BUSYBOX, CONFIG, Archive, deb, fill, kernel_files, module, program

from wherry_image import VmImage, VmImageError, build_image, check_kernel, refresh_lock
from wherry_image.archive import suites_of
from wherry_image.errors import ConfigError, DependencyError, FormatError, SignatureError
from wherry_image.kernel import uncompressed
from wherry_image.kernels import SHIPPED, KernelChoice, parse_kernel
from wherry_image.localkernel import identify_kernel, open_kernel

OLD = parse_kernel("6.1")


def bzimage(version: str = "6.9.0-own", payload: bytes = b"") -> bytes:
    payload = payload or lzma.compress(program("none") + bytes(1000))
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x20E, 0x100)
    text = f"{version} (me@here) #1".encode() + b"\0"
    setup[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def arm_image(version: str = "6.9.0-arm") -> bytes:
    start = bytearray(0x40)
    start[0x38:0x3C] = b"ARM\x64"
    return bytes(start) + b"..Linux version " + version.encode() + b" (me@here) .."


class Room:
    """A mirror with trixie's kernel and bookworm's, and a directory with a kernel of one's own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.archive = Archive(root / "mirror")
        fill(self.archive)
        self.old = Archive(root / "mirror", key=self.archive.key)
        self.add_old()
        self.root = root
        self.config = root / "linuxkit.yml"
        self.config.write_text(CONFIG)
        monkeypatch.setattr("wherry_image.index.archive_keyring", lambda: self.archive.keyring)
        monkeypatch.setattr("wherry_image.build.shipped", lambda name: root / "shipped" / name)

    def add_old(self, version: str = "6.1.9-1", depends: str = "kmod") -> None:
        image = "linux-image-6.1.0-9-cloud"
        note: dict[str, bytes | str] = {"/boot/note": version.encode()}
        self.old.add("linux-image-cloud-amd64", version, deb(note), f"{image} (= {version})")
        self.old.add(image, version, deb({**kernel_files("6.1.0-9-cloud"), **note}), depends)
        self.old.publish(suites_of("bookworm"))

    def build(self, kernel: KernelChoice = SHIPPED, **options: object) -> VmImage:
        arguments = {
            "arch": "amd64",
            "config": self.config,
            "kernel": kernel,
            "locks": [self.root / "locks"],
            "packages": self.root / "packages",
            "out": self.root / "out",
            "mirror": self.archive.url,
            **options,
        }
        return build_image(**arguments)  # type: ignore[arg-type]  # keyword by keyword, as above

    def own(self, version: str = "6.9.0-own", lacking: str = "", builtin: str = "") -> KernelChoice:
        """A bzImage and its modules, as `make modules_install` leaves them."""
        home = self.root / "own"
        directory = home / "lib/modules" / version
        prefix = f"/usr/lib/modules/{version}/"
        for path, data in kernel_files(version).items():
            if path.startswith(prefix) and lacking not in path.split("/")[-1].split("."):
                file = directory / path.removeprefix(prefix)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data if isinstance(data, bytes) else data.encode())
        if builtin:
            (directory / "modules.builtin").write_text(builtin)
        (home / "bzImage").write_bytes(bzimage(version))
        return parse_kernel(str(home / "bzImage"), str(home))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


@pytest.mark.parametrize("text", ["default", "", "6.12"])
def test_the_base_releases_series_is_the_shipped_kernel(text: str) -> None:
    assert parse_kernel(text) == SHIPPED


@pytest.mark.parametrize(
    ("text", "modules", "message"),
    [
        ("5.10", "", "no kernel series '5.10'"),
        ("6.1", "/lib/modules", "brings its own"),
        ("/x/linuxkit.yml", "/lib/modules", "brings its own"),
        ("./bzImage", "", "not an absolute path"),
        ("/x/bzImage", "modules", "not an absolute path"),
    ],
)
def test_choices_that_make_no_sense_are_refused(text: str, modules: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_kernel(text, modules)


def test_a_series_takes_only_its_kernel_from_the_other_release(room: Room) -> None:
    image = room.build(OLD)
    assert image.kernel_version == "6.1.0-9-cloud"
    lock = (room.root / "locks" / "amd64-6.1.lock").read_text()
    assert "linux-image-cloud-amd64/bookworm" in lock
    assert "linux-image-6.1.0-9-cloud 6.1.9-1" in lock
    assert "6.12.1" not in lock
    assert "tool 1.0" in lock


def test_each_kernel_has_a_lock_and_images_of_its_own(room: Room) -> None:
    default, old = room.build(), room.build(OLD)
    assert default.kernel_version == "6.12.1-cloud"
    assert default.key != old.key
    assert room.build() == default
    assert room.build(OLD) == old
    assert sorted(path.name for path in (room.root / "locks").iterdir()) == [
        "amd64-6.1.lock",
        "amd64.lock",
    ]


def test_a_kernel_is_upgraded_within_its_series(room: Room) -> None:
    room.build()
    room.build(OLD)
    room.add_old("6.1.10-1")
    change = refresh_lock(
        arch="amd64",
        config=room.config,
        kernel=OLD,
        locks=[room.root / "locks"],
        mirror=room.archive.url,
    )
    assert {str(package) for package in change.packages} == {
        "linux-image-6.1.0-9-cloud 6.1.9-1 -> 6.1.10-1",
        "linux-image-cloud-amd64 6.1.9-1 -> 6.1.10-1",
    }


def test_old_images_of_one_kernel_do_not_push_out_anothers(room: Room) -> None:
    default = room.build()
    for number in range(10, 15):
        room.add_old(f"6.1.{number}-1")
        refresh_lock(
            arch="amd64",
            config=room.config,
            kernel=OLD,
            locks=[room.root / "locks"],
            mirror=room.archive.url,
        )
        room.build(OLD)
    assert len(list((room.root / "out").glob("amd64-6.1-*"))) == 3
    assert default.kernel.exists()


def test_a_linuxkit_yml_can_name_the_release_itself(room: Room) -> None:
    other = room.root / "mine.yml"
    other.write_text(CONFIG.replace("cloud-{arch}", "cloud-{arch}/bookworm"))
    image = room.build(parse_kernel(str(other)), config=None)
    assert image.kernel_version == "6.1.0-9-cloud"
    other.write_text(CONFIG.replace("cloud-{arch}", "cloud-{arch}/potato"))
    with pytest.raises(ConfigError, match=r"mine\.yml:2: .*'potato'"):
        room.build(parse_kernel(str(other)), config=None)
    other.write_text(CONFIG.replace("deb:tool", "deb:tool/bookworm"))
    with pytest.raises(ConfigError, match=r"mine\.yml:5: "):
        room.build(parse_kernel(str(other)), config=None)


def test_a_kernel_that_brings_user_space_along_is_refused(room: Room) -> None:
    room.old.add("extra", "1", deb({}))
    room.add_old("6.1.10-1", depends="extra")
    with pytest.raises(DependencyError, match="wants extra, but only kernels"):
        room.build(OLD)


def test_another_releases_index_is_verified_too(room: Room) -> None:
    stranger = Archive(room.root / "mirror")
    stranger.packages = room.old.packages
    stranger.publish(suites_of("bookworm"))
    with pytest.raises(SignatureError):
        room.build(OLD)


def test_a_release_answers_to_its_suites_name(room: Room) -> None:
    for suite in suites_of("testing"):
        room.old.publish([suite], Codename=suite.name.replace("testing", "forky"), Suite=suite.name)
    assert room.build(parse_kernel("testing")).kernel_version == "6.1.0-9-cloud"
    for suite in suites_of("testing"):
        room.old.publish([suite], Codename="sid", Suite="unstable")
    with pytest.raises(SignatureError, match="sent sid where testing was asked for"):
        room.build(parse_kernel("testing"), locks=[])


def test_one_split_in_packages_is_put_together(room: Room) -> None:
    version = "7.2.1-cloud"
    files = kernel_files(version)
    boot = {f"/usr/lib/modules/{version}/vmlinuz": files.pop(f"/boot/vmlinuz-{version}")}
    room.old.packages.clear()
    parts = "linux-binary-7.2 (= 7), linux-modules-7.2 (= 7)"
    room.old.add("linux-image-cloud-amd64", "7", deb({}), parts)
    room.old.add("linux-binary-7.2", "7", deb(boot))
    room.old.add("linux-modules-7.2", "7", deb(files))
    room.old.publish(suites_of("bookworm"))
    image = room.build(OLD)
    assert image.kernel_version == version
    assert image.kernel.read_bytes() == b"a kernel, plain"


def test_ones_own_kernel_is_booted_with_its_modules(room: Room) -> None:
    image = room.build(room.own())
    assert image.kernel_version == "6.9.0-own"
    assert image.kernel.read_bytes() == bzimage()
    assert image.fast_kernel.read_bytes().startswith(b"\x7fELF")
    listed = b"/lib/modules/6.9.0-own/kernel/virtio_scsi.ko"
    assert listed in image.initrd.read_bytes()


def test_ones_own_kernel_needs_no_other_lock_than_the_shipped_one(room: Room) -> None:
    room.build()
    (room.root / "shipped").mkdir()
    (room.root / "locks" / "amd64.lock").rename(room.root / "shipped" / "amd64.lock")
    assert room.build(room.own(), locked=True, mirror="file:///none/debian")


def test_a_module_that_was_built_anew_makes_another_image(room: Room) -> None:
    choice = room.own()
    first = room.build(choice)
    assert room.build(choice) == first
    file = room.root / "own/lib/modules/6.9.0-own/kernel/scsi_mod.ko.xz"
    file.write_bytes(lzma.compress(module(depends="", alias="scsi:t-new")))
    assert room.build(choice).key != first.key


def test_what_a_kernel_must_have_and_lacks_is_named(room: Room) -> None:
    choice = room.own(lacking="virtio_scsi")
    with pytest.raises(DependencyError, match=r"6\.9\.0-own has virtio_scsi neither built in nor"):
        room.build(choice)
    own = replace(choice, config=room.config)
    with pytest.raises(DependencyError, match="virtio_scsi"):
        check_kernel("amd64", own)


def test_what_is_built_in_need_be_no_module(room: Room) -> None:
    names = "kernel/fs/ext4/ext4.ko\nkernel/drivers/scsi/virtio_scsi.ko\n"
    assert room.build(room.own(lacking="virtio_scsi", builtin=names)).kernel_version == "6.9.0-own"


def test_modules_that_are_only_offered_may_be_missing(room: Room) -> None:
    image = room.build(room.own(lacking="erofs"))
    assert image.notices == ("kernel 6.9.0-own has no modules erofs",)


def test_the_modules_must_be_those_of_the_kernel(room: Room) -> None:
    choice = room.own()
    (room.root / "own" / "bzImage").write_bytes(bzimage("6.9.0-other"))
    with pytest.raises(ConfigError, match=r"modules of kernel 6\.9\.0-other are not in"):
        room.build(choice)
    (room.root / "own" / "bzImage").write_bytes(bzimage())
    (room.root / "own/lib/modules/6.9.0-own/modules.builtin").unlink()
    with pytest.raises(ConfigError, match=r"no modules\.builtin"):
        room.build(choice)


def test_the_modules_are_found_beside_the_kernel(room: Room) -> None:
    directory = room.root / "own/lib/modules/6.9.0-own"
    file = Path(str(room.own().image))
    for given in (None, room.root / "own", directory.parent, directory):
        assert open_kernel(file, given, "amd64").directory == directory


def test_kernels_are_told_apart() -> None:
    assert identify_kernel(bzimage(), "k") == ("amd64", "6.9.0-own")
    assert identify_kernel(arm_image(), "k") == ("arm64", "6.9.0-arm")
    assert identify_kernel(gzip.compress(arm_image()), "k") == ("arm64", "6.9.0-arm")
    vmlinux = program("none") + b"Linux version 6.5.0 (me)"
    assert identify_kernel(vmlinux, "k") == ("amd64", "6.5.0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ" * 600,
        BUSYBOX * 50,
        program("x"),
        b"\x1f\x8bnot gzip",
        gzip.compress(b"text", mtime=0),
    ],
)
def test_what_is_no_kernel_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(VmImageError, match="mykernel"):
        identify_kernel(data, "mykernel")


def test_a_kernel_of_another_architecture_is_refused(room: Room) -> None:
    file = room.root / "Image"
    file.write_bytes(arm_image())
    with pytest.raises(ConfigError, match="a kernel for arm64, the machine is amd64"):
        room.build(parse_kernel(str(file)))
    with pytest.raises(ConfigError, match="cannot read the kernel"):
        room.build(parse_kernel(str(room.root / "none")))


def test_an_lz4_kernel_is_left_to_the_guest() -> None:
    assert uncompressed(bzimage(payload=b"\x02\x21\x4c\x18" + bytes(100))) is None
    with pytest.raises(FormatError):
        uncompressed(bzimage(payload=b"LZO?" * 4))
