"""Images checked by fsck.erofs; layers unpacked by GNU tar and umoci, and what we made of them.

GNU tar and umoci are the reference for docs/erofs.md's table of what odd layers become.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from wherry.images.erofs import LayerError, layer_uuid, write_erofs

pytestmark = pytest.mark.contract

UUID = layer_uuid("sha256:test").bytes


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def written(tar: bytes | Path, image: Path) -> Path:
    data = tar.read_bytes() if isinstance(tar, Path) else tar
    with image.open("w+b") as out:
        write_erofs(io.BytesIO(data), out, uuid=UUID)
    return image


def unpacked_by_fsck(image: Path, to: Path) -> dict[str, tuple]:
    run(tool("fsck.erofs"), f"--extract={to}", image)
    return tree_of(to)


def tree_of(root: Path) -> dict[str, tuple]:
    """Path -> (type and mode, size or target, contents' digest) of everything below `root`."""
    found: dict[str, tuple] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        what: object = None
        if stat.S_ISREG(status.st_mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            what = path.readlink()
        found[str(path.relative_to(root))] = (stat.filemode(status.st_mode), what)
    return found


def sample_tree(root: Path) -> None:
    """Directories of many blocks, files of awkward sizes, links, a fifo, a file with a hole."""
    for i in range(400):
        (root / "many").mkdir(exist_ok=True)
        (root / "many" / f"file-{'x' * (i % 90)}{i}").write_bytes(b"%d" % i * i)
    for size in (0, 1, 2016, 2017, 4095, 4096, 4097, 100_000, 3 << 20):
        (root / f"size{size}").write_bytes(os.urandom(size))
    (root / "link").symlink_to("many/" + "y" * 200)
    os.link(root / "size1", root / "hard")
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"middle" * 1000)
        file.truncate(10 << 20)
    (root / "dir").mkdir()
    (root / ("n" * 255)).write_bytes(b"long name")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    if sys.platform != "linux":
        pytest.skip("the references run on Linux")
    root = tmp_path / "source"
    root.mkdir()
    sample_tree(root)
    return root


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix"],
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
    ],
    ids=lambda options: " ".join(options).replace("--", ""),
)
def test_gnu_tar_s_archives_pass_fsck_and_unpack_alike(
    options: list[str], source: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar"
    run(tool("tar"), "-c", *options, "-f", archive, "-C", source, ".")
    image = written(archive, tmp_path / "image")
    run(tool("fsck.erofs"), image)
    ours, theirs = unpacked_by_fsck(image, tmp_path / "out"), tree_of(source)
    if "--sparse" in options:
        # fsck.erofs 1.5 leaves holes out when it extracts; the kernel is asked in tests/guest.
        del ours["sparse"], theirs["sparse"]
    assert ours == theirs


def test_fsck_accepts_whiteouts_devices_and_xattrs(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (
            ("d/.wh.a", tarfile.REGTYPE),
            ("d/.wh..wh..opq", tarfile.REGTYPE),
            ("dev", tarfile.CHRTYPE),
            ("f", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.devmajor, info.devminor = 1, 3
            info.pax_headers = {"SCHILY.xattr.user.x": "y" * 5000}
            archive.addfile(info)
    run(tool("fsck.erofs"), written(out.getvalue(), tmp_path / "image"))


def test_an_empty_layer_passes_fsck(tmp_path: Path) -> None:
    run(tool("fsck.erofs"), written(bytes(1024), tmp_path / "image"))


# What odd layers become, according to those who unpack them into directories.

File = tuple[str, bytes, str]
ODD: dict[str, list[File]] = {
    "file over file": [("a", b"0", ""), ("a", b"0", "")],
    "directory over symlink": [
        ("t", b"5", ""),
        ("s", b"2", "t"),
        ("s", b"5", ""),
        ("s/f", b"0", ""),
    ],
    "below a symlink": [("t", b"5", ""), ("s", b"2", "t"), ("s/f", b"0", "")],
    "absolute symlink": [("t", b"5", ""), ("s", b"2", "/t"), ("s/f", b"0", "")],
    "symlink over directory": [
        ("d/f", b"0", ""),
        ("t", b"5", ""),
        ("d", b"2", "t"),
        ("d/g", b"0", ""),
    ],
    "file over directory": [("d/e/f", b"0", ""), ("d", b"0", "")],
    "fifo over directory": [("d/e/f", b"0", ""), ("d", b"6", "")],
    "directory over file": [("d", b"0", ""), ("d", b"5", ""), ("d/f", b"0", "")],
    "dangling symlink": [("s", b"2", "x/y"), ("s/f", b"0", "")],
    "climbing symlink": [("d", b"5", ""), ("d/s", b"2", "../../../t"), ("d/s/f", b"0", "")],
    "leading slash": [("/a/b", b"0", ""), ("./a/./c", b"0", "")],
    "hard link": [("a", b"0", ""), ("d/b", b"1", "a"), ("c", b"1", "/d/b")],
    "hard link to symlink": [("s", b"2", "t"), ("h", b"1", "s")],
    "below a file": [("f", b"0", ""), ("f/g", b"0", "")],
    "hard link to nothing": [("l", b"1", "nothing")],
    "hard link to a directory": [("d", b"5", ""), ("l", b"1", "d")],
    "loop of symlinks": [("a", b"2", "b"), ("b", b"2", "a"), ("a/f", b"0", "")],
}


def odd_layer(files: list[File]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, (name, kind, link) in enumerate(files):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.mode = 0o755 if kind == b"5" else 0o644
            data = b"%d" % number if kind == b"0" else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def unpacked_by_umoci(layer: bytes, work: Path) -> dict[str, tuple] | None:
    """What `umoci raw unpack` of an image with this one layer leaves; None when it refuses."""
    blobs = work / "oci" / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    vendor = "application/vnd.oci.image"
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "config": {},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{vendor}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{vendor}.config.v1+json"),
        "layers": [blob(gzip.compress(layer), f"{vendor}.layer.v1.tar+gzip")],
    }
    entry = blob(json.dumps(manifest).encode(), f"{vendor}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (work / "oci" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (work / "oci" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    argv = [tool("umoci"), "raw", "unpack", "--image", f"{work}/oci:x", f"{work}/root"]
    if os.geteuid():
        argv.insert(3, "--rootless")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    return tree_of(work / "root") if done.returncode == 0 else None


def unpacked_by_gnu_tar(layer: bytes, work: Path) -> dict[str, tuple] | None:
    (work / "out").mkdir()
    done = subprocess.run(
        [tool("tar"), "-x", "--recursive-unlink", "-C", work / "out"],
        input=layer,
        capture_output=True,
        timeout=100,
        check=False,
    )
    return tree_of(work / "out") if done.returncode == 0 else None


def unpacked_by_us(layer: bytes, work: Path) -> dict[str, tuple] | None:
    try:
        image = written(layer, work / "image")
    except LayerError:
        return None
    return unpacked_by_fsck(image, work / "ours")


@pytest.mark.parametrize("name", ODD)
def test_odd_layers_become_what_umoci_makes_of_them(name: str, tmp_path: Path) -> None:
    layer = odd_layer(ODD[name])
    assert unpacked_by_us(layer, tmp_path) == unpacked_by_umoci(layer, tmp_path)


# An absolute or climbing symlink leads GNU tar out of its directory, and it makes no dangling
# symlink's target; elsewhere it agrees.
_NOT_GNU_TAR = {"absolute symlink", "climbing symlink", "dangling symlink", "hard link"}


@pytest.mark.parametrize("name", sorted(ODD.keys() - _NOT_GNU_TAR))
def test_odd_layers_become_what_gnu_tar_makes_of_them(name: str, tmp_path: Path) -> None:
    layer = odd_layer(ODD[name])
    assert unpacked_by_us(layer, tmp_path) == unpacked_by_gnu_tar(layer, tmp_path)
