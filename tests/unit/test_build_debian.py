"""What dpkg would have written when it unpacked, and the image that comes of it."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from vmimage_samples import deb as make_deb

from wherry.build import configure, slim
from wherry.build.bootstrap import (
    Packages,
    Sources,
    fill,
    finish,
    get_packages,
    parse_recipe,
)
from wherry.build.dpkg import UnpackedPackage, database_files, md5
from wherry.build.tree import Entry, FileTree
from wherry.errors import InvalidInput
from wherry.images import tar_entry as kinds
from wherry_guest import tarformat
from wherry_image.lock import Lock, format_lock

EPOCH = 1_700_000_000
CONTROL = "Package: {name}\nVersion: 1\nArchitecture: amd64\n{more}Description: none\n"


def package(name: str, more: str = "", **files: bytes) -> UnpackedPackage:
    control = {"control": CONTROL.format(name=name, more=more).encode(), **files}
    return UnpackedPackage(name, control, [f"/usr/share/{name}"], {})


def test_a_packages_files_have_dpkgs_names() -> None:
    files = database_files(
        [
            package("plain", postinst=b"#!/bin/sh\n"),
            package("libtwo", "Multi-Arch: same\n", shlibs=b"x"),
        ]
    )
    info = b"var/lib/dpkg/info/"
    assert files[info + b"format"] == (0o644, b"1\n")
    assert files[info + b"plain.list"] == (0o644, b"/.\n/usr/share/plain\n")
    assert files[info + b"plain.postinst"] == (0o755, b"#!/bin/sh\n")
    assert files[info + b"libtwo:amd64.shlibs"] == (0o644, b"x")
    assert info + b"plain.control" not in files


def test_the_status_says_unpacked_and_what_configuration_files_there_are() -> None:
    one = UnpackedPackage(
        "one",
        {"control": CONTROL.format(name="one", more="").encode()},
        ["/etc/one"],
        {"/etc/one": md5(b"text")},
    )
    status = database_files([one, package("two")])[b"var/lib/dpkg/status"][1].decode()
    first, second = status.split("\n\n")
    assert first.splitlines()[:2] == ["Package: one", "Status: install ok unpacked"]
    assert first.endswith(f"Conffiles:\n /etc/one {md5(b'text')}")
    assert second.startswith("Package: two\nStatus: install ok unpacked\n")


def test_triggers_are_registered_by_path_or_by_name() -> None:
    triggers = b"# comment\ninterest-noawait /usr/share/x\ninterest ldconfig\nactivate other\n"
    files = database_files([package("one", triggers=triggers)])
    assert files[b"var/lib/dpkg/triggers/File"][1] == b"/usr/share/x one/noawait\n"
    assert files[b"var/lib/dpkg/triggers/ldconfig"][1] == b"one\n"
    assert b"var/lib/dpkg/triggers/other" not in files


def test_the_basic_system_is_configured_before_what_was_asked_for() -> None:
    text = configure.script(
        [
            package("extra", preinst=b""),
            package("base-passwd", "Essential: yes\nDepends: libx\n", preinst=b""),
            package("aaa", "Priority: required\n", preinst=b""),
            package("libx"),
        ]
    ).decode()
    words = [
        "base-passwd.preinst",
        "aaa.preinst",
        "dpkg --configure base-passwd aaa libx",
        "extra.preinst",
        "dpkg --configure --pending",
    ]
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert "set -e" in text


def test_documentation_goes_and_licences_stay() -> None:
    gone = ("/usr/share/doc/x/README", "/usr/share/man/man1/x.1", "/usr/share/locale/de/x.mo")
    kept = ("/usr/share/doc/x/copyright", "/usr/share/locale/locale.alias", "/usr/share/doc")
    assert all(slim.is_documentation(path) for path in gone)
    assert not any(slim.is_documentation(path) for path in kept)


def test_traces_of_the_making_are_known() -> None:
    gone = (
        b"var/log/dpkg.log",
        b"var/log/apt/term.log",
        b"var/lib/dpkg/status-old",
        b"etc/passwd-",
        b"wherry-bootstrap/configure",
        b"var/cache/ldconfig/aux-cache",
        b"run/lock",
        b"tmp/x",
    )
    kept = (b"var/log", b"var/log/apt", b"var/lib/dpkg/status", b"etc/passwd", b"run", b"tmp")
    assert all(slim.is_leftover(path) for path in gone)
    assert not any(slim.is_leftover(path) for path in kept)
    assert slim.is_emptied(b"var/log/btmp")


def deb(name: str, files: dict[str, bytes | str], more: str = "") -> bytes:
    control = CONTROL.format(name=name, more=more).encode()
    return make_deb(files, control={"/control": control})


@pytest.mark.parametrize("wanted", ["ubuntu", "debian:bookworm", ""])
def test_other_distributions_are_refused(wanted: str) -> None:
    with pytest.raises(InvalidInput, match="cannot bootstrap"):
        parse_recipe(wanted, "amd64", [])


def test_names_and_architectures_are_checked() -> None:
    with pytest.raises(InvalidInput, match="riscv64"):
        parse_recipe("debian", "riscv64", [])
    with pytest.raises(InvalidInput, match="--force"):
        parse_recipe("debian", "amd64", ["--force"])
    assert parse_recipe("debian:13", "amd64", ["bb", "aa", "aa"]).packages == ("aa", "bb")


def lock(*roots: str, architecture: str = "amd64") -> Lock:
    return Lock(architecture, datetime.fromtimestamp(EPOCH, UTC), roots, ())


def test_a_lock_must_be_for_the_same_packages(tmp_path: Path) -> None:
    recipe = parse_recipe("debian", "amd64", ["tini"])
    sources = Sources(tmp_path, tmp_path)

    def use(it: Lock) -> Packages:
        return get_packages(
            recipe, sources, lock_text=format_lock(it), progress=lambda *facts: None
        )

    assert use(lock("apt", "tini")).files == {}
    with pytest.raises(InvalidInput, match="not for apt tini"):
        use(lock("apt"))
    with pytest.raises(InvalidInput, match="for arm64"):
        use(lock("apt", "tini", architecture="arm64"))


def test_the_lock_of_last_time_is_used_again(tmp_path: Path) -> None:
    recipe = parse_recipe("debian", "amd64", [])
    sources = Sources(tmp_path, tmp_path / "locks")
    sources.locks.mkdir()
    sources.lock_file(recipe).write_text(format_lock(lock("apt")))
    found = get_packages(recipe, sources, progress=lambda *facts: None)
    assert found.lock == lock("apt")


def filled(tree: FileTree, tmp_path: Path, *, is_slim: bool = False) -> None:
    debs = {
        "one": deb("one", {"/lib/one.so": b"library", "/usr/share/doc/one/NEWS": b"news"}),
        "two": deb("two", {"/bin/two": b"program"}, "Essential: yes\n"),
    }
    files = {}
    for name, data in debs.items():
        files[name] = tmp_path / f"{name}.deb"
        files[name].write_bytes(data)
    recipe = parse_recipe("debian", "amd64", [], slim=is_slim)
    assert fill(tree, recipe, Packages(lock("apt"), files), lambda *facts: None) == 2


def test_packages_are_unpacked_through_the_merged_usr(tmp_path: Path) -> None:
    with FileTree(tmp_path) as tree:
        filled(tree, tmp_path)
        assert tree.read(b"usr/lib/one.so") == b"library"
        assert tree.read(b"usr/bin/two") == b"program"
        assert b"usr/share/doc/one/NEWS" in tree
        listing = tree.read(b"var/lib/dpkg/info/one.list")
        assert b"/lib/one.so\n" in listing
        assert b"URIs: http://security.debian.org/debian-security\n" in tree.read(
            b"etc/apt/sources.list.d/debian.sources"
        )


def test_slim_leaves_documentation_out_and_tells_dpkg(tmp_path: Path) -> None:
    with FileTree(tmp_path) as tree:
        filled(tree, tmp_path, is_slim=True)
        assert b"usr/share/doc/one/NEWS" not in tree
        assert b"path-exclude /usr/share/man/*" in tree.read(b"etc/dpkg/dpkg.cfg.d/slim")


def test_two_runs_at_different_times_give_the_same_tar(tmp_path: Path) -> None:
    def made(now: int) -> bytes:
        data = b""
        for name, text in ((b"etc/passwd", b"root"), (b"var/log/dpkg.log", b"%d" % now)):
            data += tarformat.header(name, tarformat.REGULAR, size=len(text), mtime=now)
            data += text + tarformat.padding(len(text))
        with FileTree(tmp_path) as tree:
            filled(tree, tmp_path)
            tree.put(b"new", Entry(kinds.DIRECTORY, 0o755, mtime=now))
            finish(tree, io.BytesIO(data + tarformat.END), EPOCH)
            return b"".join(tree.tar())

    first = made(EPOCH + 100)
    assert made(EPOCH + 9_999) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        members = {member.name: member for member in tar}
    assert "var/log/dpkg.log" not in members
    assert "wherry-bootstrap" not in members
    assert members["etc/passwd"].mtime == EPOCH
    assert max(member.mtime for member in members.values()) <= EPOCH
