"""What other people's programs say about packages, signatures, archives and the busybox image."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import require

from wherry_image import VmImage, build_image
from wherry_image.build import _Inputs
from wherry_image.busybox import applets
from wherry_image.cpio import read_cpio, write_cpio
from wherry_image.deb import data_members
from wherry_image.errors import SignatureError
from wherry_image.fetch import fetch_bytes
from wherry_image.kernels import SHIPPED
from wherry_image.mirror import Mirror, mirrors
from wherry_image.signature import _with_gpgv, archive_keyring, verified_text
from wherry_image.tree import Tree, symlink
from wherry_image.version import compare

pytestmark = pytest.mark.contract

VERSIONS = st.from_regex(
    r"([0-9]:)?[0-9][0-9a-zA-Z.+~]{0,6}(-[0-9a-zA-Z.+~]{1,4})?", fullmatch=True
)


def output(*command: str, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"
    return done.stdout


@pytest.fixture(scope="module")
def image(test_cache: Path) -> VmImage:
    return build_image(arch="amd64", packages=test_cache / "packages", out=test_cache / "vm")


@settings(max_examples=60, deadline=None)
@given(VERSIONS, VERSIONS)
def test_dpkg_orders_versions_as_we_do(left: str, right: str) -> None:
    dpkg = require("dpkg", "dpkg")
    order = compare(left, right)
    relation = "lt" if order < 0 else "gt" if order > 0 else "eq"
    output(dpkg, "--compare-versions", left, relation, right)


def test_dpkg_unpacks_the_same_files(image: VmImage, test_cache: Path, tmp_path: Path) -> None:
    dpkg = require("dpkg", "dpkg-deb")
    (lock,) = _Inputs.read("amd64", None, SHIPPED, []).locks
    for package in lock.packages:
        if package.name not in ("nftables", "libc6"):
            continue
        file = test_cache / "packages" / f"{package.sha256}.deb"
        root = tmp_path / package.name
        output(dpkg, "--extract", str(file), str(root))
        ours = {m.path: m.data for m in data_members(file.read_bytes()) if m.kind == "file"}
        theirs = {
            f"/{path.relative_to(root).as_posix()}": path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        assert ours == theirs


def test_cpio_lists_and_unpacks_our_archive(tmp_path: Path) -> None:
    cpio = require("cpio", "cpio")
    tree = Tree()
    tree.add_file("/a/b", b"content", 0o640)
    tree.add("/l", symlink("a/b"))
    archive = write_cpio(tree, 1_000_000_000)
    done = subprocess.run([cpio, "-idm"], input=archive, cwd=tmp_path, timeout=60, check=True)
    assert done.returncode == 0
    assert (tmp_path / "l").read_bytes() == b"content"
    assert (tmp_path / "a/b").stat().st_mtime == 1_000_000_000


def test_we_read_what_cpio_writes(tmp_path: Path) -> None:
    cpio = require("cpio", "cpio")
    (tmp_path / "file").write_bytes(b"content")
    done = subprocess.run(
        [cpio, "-o", "-H", "newc"],
        input=b"file\n",
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=True,
    )
    ((path, node),) = read_cpio(done.stdout)
    assert (path, node.data) == ("/file", b"content")


def test_skopeo_reads_the_busybox_image(image: VmImage, tmp_path: Path) -> None:
    skopeo = require("skopeo", "skopeo")
    source = f"oci:{image.busybox}:localhost/busybox:latest"
    config = json.loads(output(skopeo, "inspect", "--config", source))
    assert config["architecture"] == "amd64"
    assert config["config"]["Cmd"] == ["sh"]
    output(skopeo, "copy", source, f"dir:{tmp_path}/copy")


def test_busybox_itself_knows_the_applets_that_we_read(image: VmImage, tmp_path: Path) -> None:
    binary = next(
        node.data
        for path, node in read_cpio(image.initrd.read_bytes())
        if path == "/usr/bin/busybox"
    )
    file = tmp_path / "busybox"
    file.write_bytes(binary)
    file.chmod(0o755)
    assert output(str(file), "--list").decode().split() == applets(binary)


def inrelease() -> bytes:
    (lock,) = _Inputs.read("amd64", None, SHIPPED, []).locks
    source: list[Mirror] = mirrors(None, lock.timestamp)
    return fetch_bytes(source, "debian/dists/trixie/InRelease", 1 << 20)


def test_debians_own_index_is_verified_by_both_programs() -> None:
    require("gpgv", "gpgv")
    message = inrelease()
    text = verified_text(message, archive_keyring(), "it")
    assert "Codename: trixie" in text
    assert _with_gpgv(message, archive_keyring(), "it").splitlines() == text.splitlines()


def test_gpgv_refuses_altered_text() -> None:
    require("gpgv", "gpgv")
    altered = inrelease().replace(b"Codename: trixie", b"Codename: frixie")
    with pytest.raises(SignatureError, match="not signed by Debian"):
        _with_gpgv(altered, archive_keyring(), "it")
    with pytest.raises(SignatureError, match="not signed by Debian"):
        _with_gpgv(b"Codename: trixie\n", archive_keyring(), "it")
