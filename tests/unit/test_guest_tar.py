"""The guest's tar headers say what went in, in the words of two other readers."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from wherry.images.tar import TarReader
from wherry_guest import tarformat

part = st.binary(min_size=1, max_size=120).filter(
    lambda data: not set(data) & set(b"/\0") and data not in (b".", b"..")
)
paths = st.lists(part, min_size=1, max_size=5).map(b"/".join)
numbers = st.integers(0, 2**31) | st.integers(0, 8)
xattrs = st.dictionaries(
    st.text("abc.", min_size=1).map(lambda text: f"user.{text}".encode()),
    st.binary(max_size=40),
    max_size=3,
).map(lambda it: tuple(sorted(it.items())))


@given(paths, numbers, numbers, st.integers(-(2**33), 2**36), xattrs, st.integers(0, 0o7777))
def test_what_goes_in_comes_out(
    name: bytes,
    uid: int,
    gid: int,
    mtime: int,
    attributes: tuple[tuple[bytes, bytes], ...],
    mode: int,
) -> None:
    content = b"content"
    head = tarformat.header(
        name, tarformat.REGULAR, mode, uid, gid, len(content), mtime, xattrs=attributes
    )
    data = head + content + tarformat.padding(len(content)) + tarformat.END
    reader = TarReader(io.BytesIO(data))
    entry = reader.next()
    assert entry is not None
    assert (entry.name, entry.mode, entry.uid, entry.gid) == (name, mode, uid, gid)
    assert (entry.size, entry.mtime) == (len(content), mtime)
    assert tuple(entry.xattrs or ()) == attributes
    assert reader.next() is None


@given(st.text(min_size=1, max_size=300).filter(lambda text: "\0" not in text and "/" not in text))
def test_python_reads_long_links_and_names(text: str) -> None:
    name = text.encode("utf-8", "surrogatepass")[:255]
    try:
        wanted = name.decode()
    except UnicodeDecodeError:
        return
    data = tarformat.header(name, tarformat.SYMLINK, 0o777, link=name) + tarformat.END
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (member,) = tar.getmembers()
    assert (member.name.rstrip("/"), member.linkname) == (wanted.rstrip("/"), wanted)


def test_devices_and_huge_files() -> None:
    data = tarformat.header(b"null", tarformat.CHARACTER, 0o666, device=(1, 3))
    data += tarformat.header(b"disk", tarformat.BLOCK_DEVICE, 0o660, device=(8, 1048575))
    data += tarformat.header(b"directory/", tarformat.DIRECTORY, 0o1777, mtime=1)
    data += tarformat.header(b"huge", tarformat.REGULAR, size=1 << 40)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        null, disk, directory = (tar.next() for _ in range(3))
        huge = tar.next()
    assert null is not None and disk is not None and directory is not None and huge is not None
    assert (null.devmajor, null.devminor, disk.devminor) == (1, 3, 1048575)
    assert (directory.isdir(), directory.mode, directory.mtime) == (True, 0o1777, 1)
    assert huge.size == 1 << 40


def test_every_header_is_whole_blocks() -> None:
    for length in (1, 99, 100, 101, 155, 156, 255, 256, 257, 3000):
        head = tarformat.header(b"n" * length, tarformat.REGULAR)
        assert len(head) % tarformat.BLOCK == 0
