"""Mirrors, downloads and signatures: where packages come from, and what is believed of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from vmimage_samples import Archive, fill

from wherry_image.archive import Package
from wherry_image.errors import MirrorError, PackageGone, SignatureError
from wherry_image.fetch import fetch_bytes, fetch_packages
from wherry_image.index import resolve_lock
from wherry_image.mirror import SNAPSHOT, Mirror, apt_mirror, mirrors
from wherry_image.signature import archive_keyring, verified_text

TIME = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOW = datetime(2026, 1, 6, tzinfo=UTC)
ROOTS = ("busybox-static", "linux-image-cloud-amd64", "tool")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path / "mirror")
    fill(made)
    return made


@pytest.fixture
def apt(tmp_path: Path) -> Callable[..., Path]:
    def write(**files: str) -> Path:
        root = tmp_path / "apt"
        for name, text in files.items():
            file = root / name.replace("__", "/").replace("_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return root

    return write


def urls(found: list[Mirror]) -> list[str]:
    return [mirror.roots["debian"] for mirror in found]


def test_a_configured_mirror_is_the_only_one(apt: Callable[..., Path]) -> None:
    directory = apt(sources_list="deb http://apt.example/debian trixie main\n")
    (mirror,) = mirrors("https://one.example/debian/", TIME, {}, directory)
    assert mirror.url("debian/pool/a.deb") == "https://one.example/debian/pool/a.deb"
    assert mirror.url("debian-security/x") == "https://one.example/debian-security/x"
    environ = {"WHERRY_DEBIAN_MIRROR": "http://two.example/debian"}
    assert urls(mirrors(None, TIME, environ, directory)) == ["http://two.example/debian"]


def test_without_apt_the_snapshot_archive_is_asked(tmp_path: Path) -> None:
    found = mirrors(None, TIME, {}, tmp_path)
    assert urls(found) == [
        f"{SNAPSHOT}/debian/20260105T120000Z",
        f"{SNAPSHOT}/debian/20260106T120000Z",
    ]


def test_the_hosts_apt_comes_before_the_snapshot_archive(apt: Callable[..., Path]) -> None:
    directory = apt(sources_list="deb http://apt.example/debian bookworm main\n")
    assert urls(mirrors(None, TIME, {}, directory))[0] == "http://apt.example/debian"
    assert len(mirrors(None, TIME, {}, directory)) == 3


@pytest.mark.parametrize("url", ["ftp://x/debian", "x/debian", "/srv/debian"])
def test_a_mirror_must_be_a_url(url: str) -> None:
    with pytest.raises(MirrorError, match="is not the URL of a mirror"):
        mirrors(url, TIME, {})


def test_both_formats_of_apt_sources_are_read(apt: Callable[..., Path]) -> None:
    one_line = apt(
        sources_list="""
        # deb http://old.example/debian trixie main
        deb-src http://src.example/debian trixie main
        deb [arch=amd64 signed-by=/k.gpg] http://other.example/tool stable-tool main
        deb https://other.example/linux/debian bookworm stable
        deb [arch=amd64] http://a.example/debian/ bookworm main # remark
        deb http://sec.example/debian-security bookworm-security main
        """
    )
    found = apt_mirror(one_line)
    assert found is not None
    assert found.roots == {
        "debian": "http://a.example/debian",
        "debian-security": "http://sec.example/debian-security",
    }


def test_deb822_sources_are_read(apt: Callable[..., Path]) -> None:
    directory = apt(
        sources_list_d__a_sources="""\
Types: deb
URIs: http://off.example/debian
Suites: trixie
Enabled: no

Types: deb deb-src
# a remark
URIs: http://b.example/debian
Suites: bookworm
 bookworm-updates
Components: main

Types: deb
URIs: http://b.example/debian-security
Suites: bookworm-security
Components: main
"""
    )
    found = apt_mirror(directory)
    assert found is not None
    assert found.roots["debian"] == "http://b.example/debian"
    assert found.roots["debian-security"] == "http://b.example/debian-security"


def test_a_list_of_mirrors_is_read(apt: Callable[..., Path], tmp_path: Path) -> None:
    listed = tmp_path / "mirrors.list"
    listed.write_text("# ours\nhttps://e.example/debian/\tpriority:1\n")
    found = apt_mirror(apt(sources_list=f"deb mirror+{listed.as_uri()} trixie main\n"))
    assert found is not None
    assert found.roots["debian"] == "https://e.example/debian"


def test_the_security_archive_is_expected_beside_the_main_one(apt: Callable[..., Path]) -> None:
    found = apt_mirror(apt(sources_list="deb http://c.example/debian stable main\n"))
    assert found is not None
    assert found.roots["debian-security"] == "http://c.example/debian-security"


@pytest.mark.parametrize(
    "line",
    ["", "deb cdrom:[Debian] trixie main", "deb http://d.example/ubuntu noble main", "deb x"],
)
def test_foreign_apt_sources_are_no_mirror(line: str, apt: Callable[..., Path]) -> None:
    assert apt_mirror(apt(sources_list=line)) is None


def package(archive: Archive, content: bytes = b"content") -> Package:
    return archive.add("some", "1", content)


def source(*archives: Archive) -> Callable[[], list[Mirror]]:
    return lambda: [mirrors(archive.url, TIME)[0] for archive in archives]


def test_a_package_is_kept_under_its_digest(archive: Archive, tmp_path: Path) -> None:
    wanted = package(archive)
    told: list[tuple[str, int, int]] = []
    files = fetch_packages(
        [wanted], tmp_path / "c", source(archive), lambda *step: told.append(step)
    )
    assert files["some"].read_bytes() == b"content"
    assert files["some"].name == hashlib.sha256(b"content").hexdigest() + ".deb"
    assert told[-1] == ("download", 7, 7)


def test_nobody_is_asked_for_what_is_there(archive: Archive, tmp_path: Path) -> None:
    wanted = package(archive)
    fetch_packages([wanted], tmp_path / "c", source(archive))

    def nobody() -> list[Mirror]:
        raise AssertionError("asked")

    assert fetch_packages([wanted], tmp_path / "c", nobody)["some"].exists()


@pytest.mark.parametrize("content", [b"CONTENT", b"short", b"content and more", b""])
def test_other_bytes_than_promised_are_never_kept(
    content: bytes, archive: Archive, tmp_path: Path
) -> None:
    wanted = package(archive)
    (archive.root / wanted.path).write_bytes(content)
    with pytest.raises(MirrorError, match="SHA-256 is not what the lock promises"):
        fetch_packages([wanted], tmp_path / "c", source(archive))
    assert not list((tmp_path / "c").iterdir())


def test_the_next_mirror_is_asked_when_one_lies(archive: Archive, tmp_path: Path) -> None:
    liar, wanted = Archive(tmp_path / "liar"), package(archive)
    package(liar)
    (liar.root / wanted.path).write_bytes(b"CONTENT")
    files = fetch_packages([wanted], tmp_path / "c", source(liar, archive))
    assert files["some"].read_bytes() == b"content"


def test_a_package_that_no_mirror_has_is_gone(archive: Archive, tmp_path: Path) -> None:
    wanted = package(archive)
    (archive.root / wanted.path).unlink()
    with pytest.raises(PackageGone, match=r"no mirror has some_1_amd64\.deb any more"):
        fetch_packages([wanted], tmp_path / "c", source(archive))


def test_a_dead_mirror_is_no_proof_that_a_package_is_gone(tmp_path: Path) -> None:
    dead = [Mirror({"debian": "http://127.0.0.1:9/debian"})]
    with pytest.raises(MirrorError, match="cannot download x") as caught:
        fetch_bytes(dead, "debian/x", 10)
    assert not isinstance(caught.value, PackageGone)
    assert caught.value.hint is not None


def test_an_index_larger_than_promised_is_refused(archive: Archive) -> None:
    (archive.root / "debian/x").write_bytes(bytes(11))
    with pytest.raises(MirrorError, match="more than 10 bytes"):
        fetch_bytes(source(archive)(), "debian/x", 10)


def test_only_the_signed_text_is_returned(archive: Archive) -> None:
    signed = archive.sign("Codename: x\n- dash\n")
    message = b"Codename: evil\n" + signed + b"Codename: evil\n"
    try:
        text = verified_text(message, archive.keyring, "it")
    except SignatureError:
        return
    assert "evil" not in text


def test_a_good_signature_gives_the_text(archive: Archive) -> None:
    text = verified_text(archive.sign("Codename: x\n- dash\n"), archive.keyring, "it")
    assert text.splitlines() == ["Codename: x", "- dash"]


def test_altered_text_is_refused(archive: Archive) -> None:
    message = archive.sign("Codename: trixie\n").replace(b"trixie", b"frixie")
    with pytest.raises(SignatureError, match="the index is not signed by Debian"):
        verified_text(message, archive.keyring, "the index")


def test_a_strangers_signature_is_refused(archive: Archive) -> None:
    with pytest.raises(SignatureError, match="not signed by Debian"):
        verified_text(archive.sign("Codename: trixie\n"), archive_keyring(), "it")


def test_text_without_a_signature_is_refused(archive: Archive) -> None:
    for message in (b"", b"Codename: trixie\n"):
        with pytest.raises(SignatureError):
            verified_text(message, archive.keyring, "it")


def resolve(archive: Archive, **options: object) -> list[str]:
    found = resolve_lock(
        "amd64",
        ROOTS,
        source(archive)(),
        keyring=archive.keyring,
        now=NOW,
        **options,  # type: ignore[arg-type]  # not_before, as each test says
    )
    assert found.lock.timestamp == TIME
    return [package.name for package in found.lock.packages]


def test_a_lock_is_made_from_a_signed_index(archive: Archive) -> None:
    assert resolve(archive) == [
        "busybox-static",
        "libtool1",
        "linux-image-6.12.1-cloud",
        "linux-image-cloud-amd64",
        "tool",
    ]


def test_a_mirror_without_security_updates_is_remarked(archive: Archive) -> None:
    (archive.root / "debian-security/dists/trixie-security/InRelease").unlink()
    found = resolve_lock("amd64", ROOTS, source(archive)(), keyring=archive.keyring, now=NOW)
    assert found.notices == ("the mirror has no trixie-security: its updates are left out",)


def test_an_expired_index_is_refused(archive: Archive) -> None:
    archive.publish(**{"Valid-Until": "Mon, 05 Jan 2026 13:00:00 UTC"})
    with pytest.raises(SignatureError, match="expired on 2026-01-05"):
        resolve(archive)


def test_an_index_older_than_the_lock_is_refused(archive: Archive) -> None:
    with pytest.raises(SignatureError, match="older than the lock"):
        resolve(archive, not_before=NOW)


def test_another_suite_than_asked_for_is_refused(archive: Archive) -> None:
    archive.publish(Codename="bookworm")
    with pytest.raises(SignatureError, match="sent bookworm where trixie was asked for"):
        resolve(archive)


def test_the_next_mirror_is_asked_when_one_is_not_debians(archive: Archive, tmp_path: Path) -> None:
    stranger = Archive(tmp_path / "stranger")
    fill(stranger)
    sources = source(stranger, archive)()
    found = resolve_lock("amd64", ROOTS, sources, keyring=archive.keyring, now=NOW)
    assert found.lock.timestamp == TIME


def test_a_package_index_that_was_not_signed_is_refused(archive: Archive) -> None:
    path = archive.root / "debian/dists/trixie/main/binary-amd64/Packages.xz"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SignatureError, match="not the one that was signed"):
        resolve(archive)
