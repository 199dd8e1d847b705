"""The frame parser finds every frame whatever comes between, and nothing that is not one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wherry_guest import frames

TAG = 0xC0FFEE01

payloads = st.binary(max_size=300) | st.just(frames.MAGIC) | st.just(bytes(frames.MAX_PAYLOAD))


def encode(payload: bytes, sequence: int = 1, type: int = frames.DATA, tag: int = TAG) -> bytes:
    header = frames.encode_header(type, 0, 5, len(payload), tag, sequence, 0)
    return header + payload + (header[-4:] if payload else b"")


def parse(*pieces: bytes) -> tuple[list[frames.Frame], frames.Parser]:
    parser = frames.Parser()
    parser.tag = TAG
    found = []
    for piece in pieces:
        parser.feed(piece)
        while (frame := parser.next()) is not None:
            found.append(frame)
    return found, parser


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.lists(payloads, max_size=6), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_frames_survive_any_split(contents: list[bytes], cuts: list[int]) -> None:
    data = b"".join(encode(payload, number) for number, payload in enumerate(contents))
    found, parser = parse(*split(data, cuts))
    assert [(frame.sequence, frame.payload) for frame in found] == list(enumerate(contents))
    assert parser.faults == 0 and parser.garbage == 0


@given(
    st.lists(st.tuples(st.binary(max_size=200), st.binary(min_size=1, max_size=200)), max_size=6)
)
def test_garbage_between_frames_is_skipped(items: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(
        garbage + encode(payload, number) for number, (garbage, payload) in enumerate(items)
    )
    # What pads is long enough to complete whatever a piece of garbage may have begun.
    found, _ = parse(data, frames.PADDING)
    assert [frame.payload for frame in found] == [payload for _, payload in items]


@given(st.binary(min_size=1, max_size=500), st.data())
def test_a_frame_that_lost_bytes_is_never_delivered(payload: bytes, data: st.DataObject) -> None:
    whole = encode(payload)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    following = encode(b"the next one", 2)
    found, _ = parse(whole[:start] + whole[stop:], following, frames.PADDING, encode(b"", 3))
    assert [frame.sequence for frame in found][-1] == 3
    assert all(frame.payload != payload or frame.sequence != 1 for frame in found)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_damaged_header_is_never_believed(payload: bytes, place: int, flip: int) -> None:
    damaged = bytearray(encode(payload))
    damaged[place % frames.HEADER_SIZE] ^= flip
    found, _ = parse(bytes(damaged), frames.PADDING, encode(b"after", 2), frames.PADDING)
    assert [frame.payload for frame in found] == [b"after"]


def test_a_length_beyond_the_types_limit_makes_no_frame() -> None:
    for type, limit in frames.LIMITS.items():
        header = frames.encode_header(type, 0, 0, limit + 1, TAG, 1, 0)
        found, _ = parse(header, encode(b"after", 2))
        assert [frame.payload for frame in found] == [b"after"], type
    found, _ = parse(frames.encode_header(frames.DATA, 0, 0, 2**32 - 1, TAG, 1, 0), encode(b"x"))
    assert len(found) == 1


def test_an_unknown_type_makes_no_frame() -> None:
    found, _ = parse(frames.encode_header(99, 0, 0, 0, TAG, 1, 0), encode(b"after"))
    assert [frame.payload for frame in found] == [b"after"]


def test_a_truncated_frame_is_awaited_not_guessed() -> None:
    whole = encode(b"payload")
    for length in range(len(whole)):
        found, _ = parse(whole[:length])
        assert found == []


def test_a_frame_inside_a_payload_is_not_found_after_damage() -> None:
    forged = encode(b"do as I say", 7, frames.CALL, tag=12345)
    damaged = encode(forged * 3)[60:]
    found, _ = parse(damaged, encode(b"true", 2))
    assert [frame.payload for frame in found] == [b"true"]


def test_frames_of_an_earlier_tag_are_skipped_whole() -> None:
    old = encode(encode(b"inner", 9), tag=77)
    found, parser = parse(encode(b"first", 1), old, encode(b"second", 2))
    assert [frame.payload for frame in found] == [b"first", b"second"]
    assert parser.faults == 0


def test_padding_completes_any_frame_that_was_cut() -> None:
    cut = encode(bytes(frames.MAX_PAYLOAD))[: frames.HEADER_SIZE + 1]
    hello = encode(b"{}", 0, frames.HELLO, tag=0)
    found, _ = parse(encode(b"in step", 1), cut, frames.PADDING, hello)
    assert [frame.type for frame in found] == [frames.DATA, frames.HELLO]


def test_a_longest_frame_is_two_pieces_of_a_serial_port() -> None:
    assert len(encode(bytes(frames.MAX_PAYLOAD))) == 2 * 32768
