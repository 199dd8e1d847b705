"""Images mounted by the kernel, compared with what GNU tar unpacks; overlayfs on top of them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from wherry.images.erofs import layer_uuid, write_erofs

pytestmark = pytest.mark.guest

UUID = layer_uuid("sha256:test").bytes
CAPABILITY = b"\1\0\0\2\0\4\0\0" + bytes(12)  # cap_net_bind_service=ep, vfs_cap_data revision 2


def run(*argv: str | Path, **options: object) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False, **options)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"


@contextmanager
def mounted(what: list[str | Path], at: Path) -> Iterator[Path]:
    at.mkdir(parents=True, exist_ok=True)
    run("mount", *what, at)
    try:
        yield at
    finally:
        run("umount", at)


def written(tar: bytes | Path, image: Path) -> Path:
    with image.open("w+b") as out:
        if isinstance(tar, Path):
            with tar.open("rb") as file:
                write_erofs(file, out, uuid=UUID)
        else:
            write_erofs(io.BytesIO(tar), out, uuid=UUID)
    return image


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[bytes | Path], Path]]:
    """Writes a layer's image, mounts it, and unmounts it after the test."""
    with ExitStack() as stack:
        count = 0

        def mount_layer(tar: bytes | Path) -> Path:
            nonlocal count
            count += 1
            image = written(tar, tmp_path / f"image{count}")
            what = ["-t", "erofs", "-o", "loop,ro", image]
            return stack.enter_context(mounted(what, tmp_path / f"layer{count}"))

        yield mount_layer


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seen(root: Path) -> dict[str, tuple]:
    """Path -> all that stat(2), the xattrs and the contents say."""
    found: dict[str, tuple] = {}
    inodes: dict[int, str] = {}
    for directory, names, files in os.walk(root):
        names.sort()  # also the order in which os.walk goes on
        for name in (".", *names, *sorted(files)):
            path = Path(directory, name)
            status = path.lstat()
            key = os.path.relpath(path, root)
            if key in found:
                continue
            first = inodes.setdefault(status.st_ino, key)
            what: object = None
            if stat.S_ISLNK(status.st_mode):
                what = path.readlink()
            elif stat.S_ISREG(status.st_mode):
                what = digest(path)
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            found[key] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                size,
                status.st_mtime_ns,
                status.st_nlink,
                status.st_rdev,
                first,
                xattrs,
                what,
            )
    return found


def sample(root: Path) -> None:
    """One of everything that a layer may hold."""
    for i in range(1500):
        directory = root / f"dir{i % 7}" / "sub"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{'n' * (i % 100)}{i}").write_bytes(os.urandom(i * 7))
    (root / "link").symlink_to("t" * 4000)
    for i in range(5):
        os.link(root / "dir0" / "sub" / "0", root / f"hard{i}")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "sda", 0o060660, os.makedev(259, 70_000))
    (root / "empty").touch()
    (root / "tool").write_bytes(b"#!/bin/true\n")
    (root / "tool").chmod(0o4755)
    os.setxattr(root / "tool", "security.capability", CAPABILITY)
    (root / "noted").write_bytes(b"x" * 5000)
    os.setxattr(root / "noted", "user.note", b"n" * 3000)
    os.setxattr(root / "dir1", "user.note", b"")
    os.chown(root / "noted", 100_000, 3_000_000_000)
    os.utime(root / "noted", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "empty", ns=(0, -1_500_000_000))
    with (root / "hole").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(9 << 20)
    (root / os.fsdecode(b"\xff\xfe not utf-8")).touch()


@pytest.mark.parametrize(
    "options",
    [
        ["--format=posix"],
        ["--format=posix", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
    ],
    ids=["posix", "sparse-1.0", "sparse-0.1"],
)
def test_the_kernel_shows_what_gnu_tar_unpacks(
    options: list[str], tmp_path: Path, mount: Callable[[Path], Path]
) -> None:
    source, archive, unpacked = tmp_path / "source", tmp_path / "a.tar", tmp_path / "unpacked"
    source.mkdir()
    unpacked.mkdir()
    sample(source)
    include = ["--xattrs", "--xattrs-include=*"]
    run("tar", "-c", *options, *include, "-f", archive, "-C", source, ".")
    run("tar", "-x", *include, "--numeric-owner", "-f", archive, "-C", unpacked)
    assert seen(mount(archive)) == seen(unpacked)


def test_posix_acls_are_in_force(mount: Callable[[bytes], Path]) -> None:
    # u::rw- u:1000:r-- g::--- m::r-- o::---; struct posix_acl_xattr_entry, version 2
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, bits, who in (
            (1, 6, 0xFFFFFFFF),
            (2, 4, 1000),
            (4, 0, 0xFFFFFFFF),
            (16, 4, 0xFFFFFFFF),
            (32, 0, 0xFFFFFFFF),
        )
    )
    root = mount(
        tar_of(("f", tarfile.REGTYPE, b"secret", {"SCHILY.xattr.system.posix_acl_access": acl}))
    )
    assert os.getxattr(root / "f", "system.posix_acl_access") == acl


def tar_of(*members: tuple) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, data, *headers in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755
            info.size = len(data)
            if headers:
                # pax headers are text to tarfile: bytes travel as surrogates
                info.pax_headers = {
                    key: value.decode("utf-8", "surrogateescape")
                    for key, value in headers[0].items()
                }
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"") -> tuple:
    return name, tarfile.REGTYPE, data


def test_files_over_4_gib_with_holes(tmp_path: Path, mount: Callable[[Path], Path]) -> None:
    size = 5 << 30
    source = tmp_path / "big"
    with source.open("wb") as out:
        for offset in (0, 3 << 30, size - 6):
            out.seek(offset)
            out.write(b"marker")
    archive = tmp_path / "a.tar"
    run("tar", "-c", "--sparse", "-f", archive, "-C", tmp_path, "big")
    root = mount(archive)
    assert (tmp_path / "image1").stat().st_size < 4 << 20
    with (root / "big").open("rb") as big:
        assert big.seek(0, os.SEEK_END) == size
        for offset in (0, 3 << 30, size - 6):
            big.seek(offset)
            assert big.read(6) == b"marker"
        big.seek(1 << 30)
        assert big.read(1 << 16) == bytes(1 << 16)
        assert os.lseek(big.fileno(), 1 << 30, os.SEEK_DATA) > 2 << 30


class DenseTar:
    """The tar of one file of `size` zeros but for its first five and last three bytes."""

    def __init__(self, size: int) -> None:
        info = tarfile.TarInfo("big")
        info.size = size
        parts = [info.tobuf(tarfile.GNU_FORMAT), b"start"]
        self._head = b"".join(parts)
        self._zeros = size - 8
        self._tail = b"end" + bytes(-size % 512) + bytes(1024)

    def read(self, count: int) -> bytes:
        if self._head:
            piece, self._head = self._head[:count], self._head[count:]
        elif self._zeros:
            piece = bytes(min(count, self._zeros))
            self._zeros -= len(piece)
        else:
            piece, self._tail = self._tail[:count], self._tail[count:]
        return piece


def test_a_dense_file_over_4_gib(tmp_path: Path) -> None:
    size = (4 << 30) + 12_345
    image = tmp_path / "image"
    with image.open("w+b") as out:
        write_erofs(DenseTar(size), out, uuid=UUID)
    # zeros are holes of the image's file
    assert image.stat().st_blocks * 512 < 64 << 20
    what = ["-t", "erofs", "-o", "loop,ro", image]
    with mounted(what, tmp_path / "layer") as root, (root / "big").open("rb") as big:
        assert big.read(5) == b"start"
        assert big.seek(0, os.SEEK_END) == size
        big.seek(size - 3)
        assert big.read() == b"end"


def test_big_directories_can_be_looked_up(mount: Callable[[bytes], Path]) -> None:
    names = [f"{'k' * (i % 60)}{i}" for i in range(20_000)]
    root = mount(tar_of(*(file(f"d/{name}") for name in names)))
    assert sorted(path.name for path in (root / "d").iterdir()) == sorted(names)
    assert all((root / "d" / name).exists() for name in names[::37])
    assert not (root / "d" / "kk").exists()


def stacked(layers: list[Path], tmp_path: Path) -> list[str | Path]:
    """The mount of `layers` (lowest first) as overlayfs would be used for a container."""
    for name in ("upper", "work"):
        (tmp_path / "rw" / name).mkdir(parents=True, exist_ok=True)
    lower = ":".join(str(layer) for layer in reversed(layers))
    options = (
        f"lowerdir={lower},upperdir={tmp_path}/rw/upper,workdir={tmp_path}/rw/work,"
        "redirect_dir=nofollow,metacopy=off,index=off"
    )
    return ["-t", "overlay", "-o", options, "overlay"]


@pytest.fixture
def overlay(
    tmp_path: Path, mount: Callable[[bytes], Path]
) -> Iterator[Callable[[list[bytes]], Path]]:
    with ExitStack() as stack:
        # upper and work need a file system that overlayfs takes as upper
        stack.enter_context(mounted(["-t", "tmpfs", "tmpfs"], tmp_path / "rw"))

        def stack_layers(tars: list[bytes]) -> Path:
            what = stacked([mount(tar) for tar in tars], tmp_path)
            return stack.enter_context(mounted(what, tmp_path / "merged"))

        yield stack_layers


def tree(root: Path) -> set[str]:
    return {
        os.path.relpath(Path(directory, name), root)
        for directory, names, files in os.walk(root)
        for name in (*names, *files)
    }


LOWER = tar_of(
    file("a/x"), file("a/y"), file("b/x"), file("c/x"), file("d/x"), file("e"), file("f")
)


def test_whiteouts_hide_lower_files(overlay: Callable[[list[bytes]], Path]) -> None:
    upper = tar_of(file("a/.wh.x"), file(".wh.b"), file(".wh.e"), file("g"))
    assert tree(overlay([LOWER, upper])) == {"a", "a/y", "c", "c/x", "d", "d/x", "f", "g"}


def test_opaque_directory_hides_lower_files(overlay: Callable[[list[bytes]], Path]) -> None:
    upper = tar_of(file("a/new"), file("a/.wh..wh..opq"), file("b/z"))
    merged = overlay([LOWER, upper])
    assert tree(merged) == {
        *("a", "a/new", "b", "b/x", "b/z", "c", "c/x", "d", "d/x", "e", "f"),
    }


def test_a_directory_made_anew_hides_what_it_replaced(
    overlay: Callable[[list[bytes]], Path],
) -> None:
    upper = tar_of(file(".wh.a"), file("a/new"), file("b", b"now a file"))
    merged = overlay([LOWER, upper])
    assert tree(merged) == {"a", "a/new", "b", "c", "c/x", "d", "d/x", "e", "f"}
    assert (merged / "b").read_bytes() == b"now a file"


def test_a_third_layer_brings_hidden_names_back(overlay: Callable[[list[bytes]], Path]) -> None:
    second = tar_of(file(".wh.a"), file("c/.wh..wh..opq"))
    third = tar_of(file("a/back", b"again"), file("c/back"))
    merged = overlay([LOWER, second, third])
    assert tree(merged) == {"a", "a/back", "b", "b/x", "c", "c/back", "d", "d/x", "e", "f"}


def test_overlay_xattrs_of_a_layer_steer_nothing(overlay: Callable[[list[bytes]], Path]) -> None:
    hostile = {
        "SCHILY.xattr.trusted.overlay.opaque": b"y",
        "SCHILY.xattr.trusted.overlay.redirect": b"/b",
        "SCHILY.xattr.user.overlay.opaque": b"y",
    }
    upper = tar_of(("a", tarfile.DIRTYPE, b"", hostile), ("c", tarfile.DIRTYPE, b"", hostile))
    assert tree(overlay([LOWER, upper])) == tree_of_lower()


def tree_of_lower() -> set[str]:
    return {"a", "a/x", "a/y", "b", "b/x", "c", "c/x", "d", "d/x", "e", "f"}


def test_a_marker_at_the_root_hides_nothing_by_itself(
    overlay: Callable[[list[bytes]], Path],
) -> None:
    """Which is why ErofsInfo.opaque_root exists; Docker's overlay2 behaves alike."""
    assert tree(overlay([LOWER, tar_of(file(".wh..wh..opq"))])) == tree_of_lower()


def test_files_of_layers_can_be_changed_and_removed(
    overlay: Callable[[list[bytes]], Path],
) -> None:
    merged = overlay([LOWER])
    with (merged / "f").open("ab") as out:
        out.write(b"more")
    assert (merged / "f").read_bytes() == b"more"
    shutil.rmtree(merged / "a")
    (merged / "a").mkdir()
    assert list((merged / "a").iterdir()) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(merged / "s"))
    assert (merged / "s").is_socket()
