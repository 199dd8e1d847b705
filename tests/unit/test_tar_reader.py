"""The tar reader against Python's tarfile, hand-made headers, and damaged archives."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tars import (
    END,
    Drip,
    directory,
    hard_link,
    member,
    padded,
    pax_header,
    raw_header,
    symlink,
    tar_of,
)

from wherry.images import tar
from wherry.images.tar import LayerError, TarEntry, TarLimits, TarReader, pax_records


def entries_of(data: bytes, limits: TarLimits | None = None) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(io.BytesIO(data), limits)
    found = []
    while (entry := reader.next()) is not None:
        pieces = []
        while piece := reader.read(1 << 16):
            pieces.append(piece)
        found.append((entry, b"".join(pieces)))
    return found


def one(data: bytes) -> TarEntry:
    ((entry, _),) = entries_of(data)
    return entry


names = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and not name.endswith(b"/") and name.strip(b"/")
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            names,
            st.integers(0, 0o7777),
            st.integers(0, 1 << 40),
            st.integers(-(1 << 40), 1 << 40),
            st.integers(0, 999_999_999),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.integers(1, 4000), min_size=1, max_size=4),
)
def test_entries_of_tarfile_come_back_whatever_the_pieces(
    wanted: list, format: int, sizes: list[int]
) -> None:
    pax = format == tarfile.PAX_FORMAT
    members = []
    for name, mode, uid, mtime, ns, data in wanted:
        fields: dict[str, object] = {"mode": mode, "uid": uid, "gid": uid // 2, "mtime": mtime}
        if pax and ns:
            fields["pax_headers"] = {"mtime": f"{mtime}.{ns:09}"}
        members.append(member(name.decode("utf-8", "surrogateescape"), data=data, **fields))
    reader = TarReader(Drip(tar_of(*members, format=format), sizes))
    for name, mode, uid, mtime, ns, data in wanted:
        entry = reader.next()
        assert entry is not None
        assert (entry.name, entry.mode, entry.uid, entry.gid) == (name, mode, uid, uid // 2)
        assert (entry.size, entry.kind) == (len(data), tar.REGULAR)
        assert reader.read_exactly(len(data)) == data
        if not pax:
            assert (entry.mtime, entry.mtime_ns) == (mtime, 0)
        elif mtime >= 0:
            assert (entry.mtime, entry.mtime_ns) == (mtime, ns)
    assert reader.next() is None


def test_contents_that_nobody_reads_are_skipped() -> None:
    data = tar_of(member("a", data=b"x" * 3_000_000), member("b", data=b"y"))
    reader = TarReader(Drip(data, (70_001,)))
    assert reader.next().name == b"a"
    assert reader.read(10) == b"x" * 10
    assert reader.next().name == b"b"
    assert reader.read_exactly(1) == b"y"


def test_links_directories_and_devices_have_no_contents() -> None:
    data = (
        raw_header(b"l", b"1", 700, linkname=b"target")
        + raw_header(b"s", b"2", 700, linkname=b"t" * 100)
        + raw_header(b"d/", b"5", 700)
        + raw_header(b"c", b"3", devmajor=b"0000005\0", devminor=b"0000001\0")
        + END
    )
    found = [entry for entry, _ in entries_of(data)]
    assert [entry.link for entry in found] == [b"target", b"t" * 100, b"", b""]
    assert [entry.size for entry in found] == [0] * 4
    assert (found[3].major, found[3].minor) == (5, 1)


def test_v7_archive_marks_directories_by_a_slash() -> None:
    data = raw_header(b"old/", b"\0", magic=bytes(8)) + raw_header(b"f", b"\0", magic=bytes(8))
    assert [entry.kind for entry, _ in entries_of(data + END)] == [tar.DIRECTORY, tar.REGULAR]


def test_ustar_prefix_is_joined_and_gnu_has_none() -> None:
    assert one(raw_header(b"base", prefix=b"some/dir") + END).name == b"some/dir/base"
    assert one(raw_header(b"base", prefix=b"junk", magic=b"ustar  \0") + END).name == b"base"


def test_base_256_numbers() -> None:
    data = raw_header(
        b"f",
        uid=b"\x80" + (1 << 31).to_bytes(7, "big"),
        mtime=b"\xff" + (2**88 - 5).to_bytes(11, "big"),
    )
    entry = one(data + END)
    assert (entry.uid, entry.mtime) == (1 << 31, -5)


@pytest.mark.parametrize(
    ("text", "seconds", "nanoseconds"),
    [
        (b"1700000000", 1700000000, 0),
        (b"1700000000.5", 1700000000, 500_000_000),
        (b"1.0000000019", 1, 1),
        (b"-1.5", -2, 500_000_000),
        (b"-0.0000000001", -1, 999_999_999),
        (b"3.", 3, 0),
    ],
)
def test_pax_times_are_exact_and_rounded_down(text: bytes, seconds: int, nanoseconds: int) -> None:
    entry = one(pax_header((b"mtime", text)) + raw_header(b"f") + END)
    assert (entry.mtime, entry.mtime_ns) == (seconds, nanoseconds)


def test_pax_values_override_and_an_empty_one_takes_back() -> None:
    header = pax_header(
        (b"path", b"long"), (b"uid", b"7"), (b"gid", b"8"), (b"path", b""), (b"comment", b"x")
    )
    entry = one(header + raw_header(b"short") + END)
    assert (entry.name, entry.uid, entry.gid) == (b"short", 7, 8)


def test_pax_size_counts_and_the_header_s_does_not() -> None:
    data = pax_header((b"size", b"5")) + raw_header(b"f", size=0) + padded(b"12345")
    ((entry, contents), (after, _)) = entries_of(data + raw_header(b"g") + END)
    assert (entry.size, contents, after.name) == (5, b"12345", b"g")


def test_xattrs_are_bytes_and_may_be_empty() -> None:
    header = pax_header(
        (b"SCHILY.xattr.security.capability", b"\0\1\n=\xff"), (b"SCHILY.xattr.user.e", b"")
    )
    entry = one(header + raw_header(b"f") + END)
    assert entry.xattrs == [(b"security.capability", b"\0\1\n=\xff"), (b"user.e", b"")]


def test_a_second_pax_header_takes_the_first_one_s_place() -> None:
    first = pax_header((b"uid", b"7"), (b"SCHILY.xattr.user.a", b"x"))
    entry = one(first + pax_header((b"gid", b"8")) + raw_header(b"f") + END)
    assert (entry.uid, entry.gid, entry.xattrs) == (0, 8, None)


def test_gnu_long_names_win_over_pax_paths() -> None:
    name = raw_header(b"././@LongLink", b"L", 5) + padded(b"long\0")
    entry = one(name + pax_header((b"path", b"pax")) + raw_header(b"f") + END)
    assert entry.name == b"long"


def test_global_pax_headers_are_passed_over() -> None:
    header = pax_header((b"path", b"evil"), (b"uid", b"7"), kind=b"g")
    entry = one(header + raw_header(b"f") + END)
    assert (entry.name, entry.uid) == (b"f", 0)


def test_gnu_long_names_and_links_apply_once() -> None:
    data = tar_of(symlink("n" * 400, "t" * 600), member("plain"), format=tarfile.GNU_FORMAT)
    found = [entry for entry, _ in entries_of(data)]
    assert (found[0].name, found[0].link) == (b"n" * 400, b"t" * 600)
    assert (found[1].name, found[1].link) == (b"plain", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        END,
        tar_of(directory("d"), hard_link("d/l", "x")).rstrip(b"\0").ljust(1024, b"\0"),
    ],
    ids=["empty", "only-the-end", "no-end-marker"],
)
def test_archives_may_end_early_between_entries(data: bytes) -> None:
    assert len(entries_of(data)) in (0, 2)


def test_the_last_entry_s_padding_may_be_missing() -> None:
    data = tar_of(member("a", data=b"x" * 600), member("b", data=b"y" * 10))
    contents = 512 + 1024 + 512 + 10
    for end in (contents, contents + 1, contents + 501):
        assert [it[1] for it in entries_of(data[:end])] == [b"x" * 600, b"y" * 10]


def test_every_truncation_inside_an_entry_is_an_error() -> None:
    data = tar_of(member("a", data=b"x" * 600), member("n" * 300, data=b"y" * 10))
    first = 512 + 1024
    for cut in (*range(1, 512 + 600, 37), *range(first + 1, len(data.rstrip(b"\0")), 37)):
        with pytest.raises(LayerError, match=r"cut short|ends after an extended"):
            entries_of(data[:cut])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b" + bytes(600), "not a tar archive"),
        (b"x" * 512, "not a tar archive"),
        (raw_header(b"f")[:-1] + b"!", "bad header checksum at its start"),
        (raw_header(b"f") + raw_header(b"g")[:-1] + b"!", "bad header checksum after 'f'"),
        (raw_header(b"f", b"M"), "'f' is of an unknown type: b'M'"),
        (raw_header(b"f", size=0, uid=b"12z4567\0"), "uid of an entry is not a number"),
        (raw_header(b"f", uid=b"1_0\0    "), "uid of an entry is not a number"),
        (raw_header(b"f", size=b"\xff" * 12), "impossible size: -1"),
        (raw_header(b"x", b"x", 2 << 20), "extended header of 2097152 bytes"),
        (raw_header(b"L", b"L", 2 << 20), "extended header of 2097152 bytes"),
        (pax_header((b"size", b"-1")) + raw_header(b"f"), "record size after '' is not a number"),
        (pax_header((b"size", b"9" * 30)) + raw_header(b"f"), "is not a number"),
        (pax_header((b"mtime", b"1e9")) + raw_header(b"f"), "is not a time"),
        (pax_header((b"path", b"a\0b")) + raw_header(b"f"), "has a NUL"),
        (pax_header((b"uid", b"1")) + END, "ends after an extended header"),
    ],
)
def test_damage_is_said_in_one_clear_line(data: bytes, message: str) -> None:
    with pytest.raises(LayerError) as caught:
        entries_of(data + END)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"5 a=b",
        b"99 a=b\n",
        b"0 a=b\n",
        b"6 a=bc",
        b"4 =\n\n",
        b"-6 a=b\n",
        b"6 abc\n",
        b"\0",
    ],
)
def test_malformed_pax_records(records: bytes) -> None:
    with pytest.raises(LayerError, match="malformed pax header"):
        pax_records(records)


@given(st.lists(st.tuples(st.binary(min_size=1).filter(lambda k: b"=" not in k), st.binary())))
def test_pax_records_come_back(records: list[tuple[bytes, bytes]]) -> None:
    block = pax_header(*records)
    size = int(block[124:135], 8)
    assert pax_records(block[512 : 512 + size]) == records


def test_signed_checksums_of_old_suns() -> None:
    block = bytearray(raw_header(b"caf\xe9"))
    others = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in others)
    assert one(bytes(block) + END).name == b"caf\xe9"


def test_a_high_checksum_is_not_taken_modulo() -> None:
    header = raw_header(b"\xff" * 100, linkname=b"\xff" * 100, prefix=b"\xff" * 155)
    entries_of(header + END)
    true = int(header[148:154], 8)
    assert true > 65521
    forged = header[:148] + b"%06o\0 " % (true - 65521) + header[156:]
    with pytest.raises(LayerError, match="checksum"):
        entries_of(forged + END)


# Sparse files: the same file of 20 blocks with data at the first, the sixth and the last.

SIZE = 20 * 512
SEGMENTS = [(0, 512), (5 * 512, 1024), (19 * 512, 512)]
STORED = b"a" * 512 + b"b" * 1024 + b"c" * 512


def old_gnu(segments: list[tuple[int, int]]) -> bytes:
    def pairs(part: list[tuple[int, int]]) -> bytes:
        return b"".join(b"%011o\0%011o\0" % pair for pair in part)

    first, rest = segments[:4], segments[4:]
    tail = pairs(first).ljust(96, b"\0") + (b"\1" if rest else b"\0") + b"%011o\0" % SIZE
    data = raw_header(b"f", b"S", len(STORED), magic=b"ustar  \0", sparse=tail)
    while rest:
        part, rest = rest[:21], rest[21:]
        data += (pairs(part).ljust(504, b"\0") + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return data + padded(STORED)


def pax_0_0() -> bytes:
    records = [(b"GNU.sparse.size", b"%d" % SIZE), (b"GNU.sparse.numblocks", b"3")]
    for offset, length in SEGMENTS:
        records += [
            (b"GNU.sparse.offset", b"%d" % offset),
            (b"GNU.sparse.numbytes", b"%d" % length),
        ]
    return pax_header(*records) + raw_header(b"f", size=len(STORED)) + padded(STORED)


def pax_0_1() -> bytes:
    numbers = b",".join(b"%d,%d" % pair for pair in SEGMENTS)
    header = pax_header(
        (b"GNU.sparse.size", b"%d" % SIZE),
        (b"GNU.sparse.numblocks", b"3"),
        (b"GNU.sparse.map", numbers),
        (b"GNU.sparse.name", b"f"),
    )
    return header + raw_header(b"GNUSparseFile.1/f", size=len(STORED)) + padded(STORED)


def pax_1_0() -> bytes:
    header = pax_header(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"f"),
        (b"GNU.sparse.realsize", b"%d" % SIZE),
    )
    numbers = padded(b"3\n" + b"".join(b"%d\n%d\n" % pair for pair in SEGMENTS))
    data = numbers + STORED
    return header + raw_header(b"GNUSparseFile.1/f", size=len(data)) + padded(data)


@pytest.mark.parametrize(
    "data",
    [old_gnu(SEGMENTS), pax_0_0(), pax_0_1(), pax_1_0()],
    ids=["old-gnu", "0.0", "0.1", "1.0"],
)
def test_all_sparse_formats(data: bytes) -> None:
    ((entry, contents), (after, _)) = entries_of(data + raw_header(b"next") + END)
    assert (entry.name, entry.size, entry.segments) == (b"f", SIZE, SEGMENTS)
    assert contents == STORED
    assert after.name == b"next"


def test_old_sparse_map_goes_on_in_more_blocks() -> None:
    segments = [(i * 32, 16) for i in range(128)]
    entry = one(old_gnu(segments) + END)
    assert entry.segments == segments


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(512, 1024), (0, 1024)], "out of order"),
        ([(0, 1024), (512, 1024)], "out of order"),
        ([(0, 1024), (SIZE - 512, 1024)], "longer than the file"),
        ([(0, 512)], "does not fit its data"),
    ],
)
def test_sparse_maps_are_not_believed(segments: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        entries_of(old_gnu(segments) + END)


def test_unknown_sparse_format_is_an_error() -> None:
    header = pax_header((b"GNU.sparse.major", b"2"), (b"GNU.sparse.realsize", b"1"))
    with pytest.raises(LayerError, match="unknown format"):
        entries_of(header + raw_header(b"f") + END)


def test_a_sparse_map_in_the_data_has_a_limit() -> None:
    header = pax_header((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"1"))
    data = b"1000000\n" + b"0\n" * 4000
    with pytest.raises(LayerError, match="too long a sparse map"):
        entries_of(
            header + raw_header(b"f", size=len(data)) + padded(data) + END,
            TarLimits(header_bytes=4096),
        )


def test_drain_reads_to_the_very_end() -> None:
    stream = Drip(tar_of(member("a")) + b"trailing" * 999, (333,))
    reader = TarReader(stream)
    while reader.next() is not None:
        pass
    reader.drain()
    assert stream.read() == b""
