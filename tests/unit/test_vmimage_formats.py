"""The formats an image is read from and written to: ar, deb, ELF, bzImage, newc, and the tree."""

from __future__ import annotations

import io
import lzma
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmimage_samples import ar, deb, module, program, zstd_compress

from wherry_image import kernel
from wherry_image.cpio import read_cpio, write_cpio
from wherry_image.deb import ar_members, data_members
from wherry_image.elf import needed, section
from wherry_image.errors import FormatError
from wherry_image.tree import DIRECTORY, Node, Tree, char_device, normal, regular, symlink

NAMES = st.text(
    st.characters(
        codec="utf-8", exclude_characters="/\0", categories=["L", "M", "N", "P", "S", "Zs"]
    ),
    min_size=1,
    max_size=20,
).filter(lambda name: name not in (".", "..", "TRAILER!!!"))
FILES = st.dictionaries(NAMES, st.binary(max_size=200), max_size=12)


@given(FILES, st.integers(0, 2**31))
def test_a_cpio_archive_gives_back_what_was_written(files: dict[str, bytes], mtime: int) -> None:
    tree = Tree()
    for name, data in files.items():
        tree.add_file(f"/d/{name}", data, 0o640)
    read = dict(read_cpio(write_cpio(tree, mtime)))
    assert {path: node for path, node in tree if path != "/"} == read


@given(FILES, FILES)
def test_concatenated_archives_read_as_one(
    first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    archives = b""
    for files in (first, second):
        tree = Tree()
        for name, data in files.items():
            tree.add_file(f"/{name}", data)
        archives += write_cpio(tree, 0)
    assert len(archives) % 4 == 0
    read = {path: node.data for path, node in read_cpio(archives)}
    assert read == {f"/{name}": data for name, data in {**first, **second}.items()}


@given(st.permutations(["/a", "/a/b", "/b/c/d", "/z", "/etc"]))
def test_the_order_of_adding_does_not_show(paths: list[str]) -> None:
    tree = Tree()
    for path in paths:
        tree.add(path, DIRECTORY)
    sorted_tree = Tree()
    for path in sorted(paths):
        sorted_tree.add(path, DIRECTORY)
    assert write_cpio(tree, 1) == write_cpio(sorted_tree, 1)


def test_parents_come_before_their_children() -> None:
    tree = Tree()
    for path in ("/a.b", "/a/c", "/a-b"):
        tree.add_file(path, b"")
    assert [path for path, _ in tree] == ["/", "/a", "/a/c", "/a-b", "/a.b"]


def test_devices_and_links_keep_their_kind() -> None:
    tree = Tree()
    tree.add("/dev/console", char_device(5, 1, 0o600))
    tree.add("/bin", symlink("usr/bin"))
    read = dict(read_cpio(write_cpio(tree, 0)))
    assert read["/dev/console"].device == (5, 1)
    assert stat.S_ISCHR(read["/dev/console"].mode)
    assert read["/bin"].data == b"usr/bin"


@given(st.binary(max_size=300))
def test_garbage_is_never_a_cpio_archive_with_entries(data: bytes) -> None:
    try:
        assert not list(read_cpio(data)) or data.lstrip(b"\0").startswith(b"070701")
    except (FormatError, ValueError):
        return


def test_a_file_lands_behind_the_links_above_it() -> None:
    tree = Tree()
    tree.add("/lib", symlink("usr/lib"))
    tree.add_file("/lib/modules/x", b"1")
    assert tree.get("/usr/lib/modules/x") == regular(b"1")
    assert tree.resolve("/lib/modules/x") == "/usr/lib/modules/x"


def test_a_link_that_leads_nowhere_resolves_to_nothing() -> None:
    tree = Tree()
    tree.add("/a", symlink("b"))
    tree.add("/b", symlink("a"))
    tree.add("/c", symlink("gone"))
    assert tree.resolve("/a") is None
    assert tree.resolve("/c") is None


def test_a_directory_does_not_replace_a_link() -> None:
    tree = Tree()
    tree.add("/bin", symlink("usr/bin"))
    tree.add("/bin", DIRECTORY)
    assert tree.get("/bin") == symlink("usr/bin")


def test_nothing_stands_below_a_file() -> None:
    tree = Tree()
    tree.add_file("/a", b"")
    with pytest.raises(FormatError, match="/a, which is not a directory"):
        tree.add_file("/a/b", b"")


@pytest.mark.parametrize("path", ["../../etc/x", "/../etc/x", "./etc//x", "etc/y/../x"])
def test_no_path_leaves_the_tree(path: str) -> None:
    assert normal(path) == "/etc/x"


@pytest.mark.parametrize("compression", [".xz", ".zst", ""])
def test_a_package_gives_its_files(compression: str) -> None:
    data = deb(
        {"/usr/bin/a": b"A", "/usr/bin/b": "-> a", "/usr/bin/c": "=> ./usr/bin/a"}, compression
    )
    members = {member.path: member for member in data_members(data)}
    assert (members["/usr/bin/a"].data, members["/usr/bin/a"].permissions) == (b"A", 0o755)
    assert (members["/usr/bin/b"].kind, members["/usr/bin/b"].target) == ("symlink", "a")
    assert (members["/usr/bin/c"].kind, members["/usr/bin/c"].target) == ("hardlink", "/usr/bin/a")


@given(st.lists(st.tuples(st.from_regex(r"[a-z.]{1,15}", fullmatch=True), st.binary(max_size=99))))
def test_an_ar_archive_gives_back_its_members(members: list[tuple[str, bytes]]) -> None:
    assert [(name, bytes(data)) for name, data in ar_members(ar(members))] == members


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>\n" + b"x" * 60,
        ar([("data.tar.xz", b"no xz at all")]),
        ar([("data.tar.lzo", b"")]),
        ar([("debian-binary", b"2.0\n")]),
        deb({"/a": b"x" * 100})[:-20],
    ],
)
def test_a_damaged_package_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(data_members(data))


def test_sections_and_needed_libraries_are_found() -> None:
    assert section(module(depends="a,b"), ".modinfo") == b"depends=a,b\0"
    assert section(module(), ".none") == b""
    assert needed(program("libc.so.6", "libm.so.6")) == ["libc.so.6", "libm.so.6"]
    assert needed(program()) == []


@given(st.integers(0, 300), st.integers(0, 255))
def test_damaged_elf_files_are_format_errors(at: int, value: int) -> None:
    for data in (module(depends="x"), program("libc.so.6")):
        damaged = bytearray(data)
        damaged[at % len(data)] = value
        try:
            section(bytes(damaged), ".modinfo")
            needed(bytes(damaged))
        except FormatError:
            continue


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def test_the_kernel_inside_a_bzimage_is_found() -> None:
    elf = program("none") + bytes(1000)
    size = len(elf).to_bytes(4, "little")
    assert kernel.uncompressed(bzimage(lzma.compress(elf) + size)) == elf
    assert kernel.uncompressed(bzimage(zstd_compress(elf) + size)) == elf


def test_a_plain_kernel_has_nothing_inside() -> None:
    assert kernel.uncompressed(b"MZ@\xfa" + bytes(2000)) is None


def test_a_damaged_kernel_is_a_clear_error() -> None:
    with pytest.raises(FormatError, match="not an ELF file"):
        kernel.uncompressed(bzimage(lzma.compress(b"text")))
    with pytest.raises(FormatError, match="unknown compression"):
        kernel.uncompressed(bzimage(b"LZO?" * 4))


def test_an_entry_too_large_for_newc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_image.cpio.MAX_FILE", 10)
    tree = Tree()
    tree.add("/big", Node(stat.S_IFREG, b"x" * 11))
    with pytest.raises(FormatError, match="too large"):
        write_cpio(tree, 0)


def test_a_member_is_read_whole_from_a_stream() -> None:
    big = io.BytesIO(b"0123456789" * 100_000).getvalue()
    (member,) = data_members(deb({"/usr/bin/big": big}))
    assert member.data == big
