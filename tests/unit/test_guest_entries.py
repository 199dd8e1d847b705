"""The records of files on their way into a container."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest import entries
from wherry_guest.entries import LENGTH_BYTES, Entry, decode, encode

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)


@st.composite
def sparse(draw: st.DrawFn) -> Entry:
    segments, end = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 99)))):
        segments.append((end + gap, length))
        end += gap + length
    size = end + draw(st.integers(0, 99))
    return Entry(draw(NAMES), entries.FILE, size=size, segments=tuple(segments))


ANY = st.builds(
    Entry,
    name=NAMES,
    kind=st.sampled_from(entries.KINDS),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(-(2**70), 2**70),
    size=st.integers(0, 2**63 - 1),
    link=st.binary(max_size=300),
    device=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    xattrs=st.lists(st.tuples(NAMES, st.binary(max_size=50)), max_size=3).map(tuple),
)


@given(ANY | sparse())
def test_what_is_encoded_is_decoded(entry: Entry) -> None:
    data = encode(entry)
    assert int.from_bytes(data[:LENGTH_BYTES], "big") == len(data) - LENGTH_BYTES
    assert decode(data[LENGTH_BYTES:]) == entry


def test_only_files_have_contents() -> None:
    assert Entry(b"a", entries.FILE, size=10).stored == 10
    assert Entry(b"a", entries.FILE, size=10, segments=((0, 2), (8, 1))).stored == 3
    assert Entry(b"a", entries.DIRECTORY, size=10).stored == 0


GOOD = json.loads(encode(Entry(b"a", entries.FILE, size=10))[LENGTH_BYTES:])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "socket"},
        {"mode": -1},
        {"mode": 0o10000},
        {"uid": 2**32 - 1},
        {"size": -1},
        {"name": 3},
        {"device": [1]},
        {"device": [1, -1]},
        {"xattrs": [["a", "zz"]]},
        {"segments": [[5, 2], [4, 1]]},
        {"segments": [[5, 6]]},
        {"segments": [[-1, 1]]},
        {"mtime_ns": None},
    ],
)
def test_a_record_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        decode(json.dumps(GOOD | change).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_value_error(data: bytes) -> None:
    try:
        decode(data)
    except ValueError:
        pass
