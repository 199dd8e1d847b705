"""Log frames, however they are cut; lines counted from the end; attachments that are cut off."""

from __future__ import annotations

import asyncio
import struct

import pytest
from engine_fakes import FakeStream, collect, frame
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine.attach import StreamAttachment
from wherry.engine.frames import HEADER, MAX_PAYLOAD, FrameParser
from wherry.engine.logs import Tail
from wherry.engine.model import LogFrame
from wherry.errors import LinkError
from wherry.link import StreamReset

FRAMES = st.lists(
    st.builds(
        LogFrame,
        stream=st.sampled_from([1, 2]),
        time_ns=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=40),
    )
)


def encoded(frames: list[LogFrame]) -> bytes:
    return b"".join(frame(it.payload, it.stream, it.time_ns) for it in frames)


@given(frames=FRAMES, cuts=st.lists(st.integers(1, 60)))
def test_frames_survive_every_cut(frames: list[LogFrame], cuts: list[int]) -> None:
    data = encoded(frames)
    parser = FrameParser()
    found: list[LogFrame] = []
    position = 0
    for cut in [*cuts, len(data) + 1]:
        found += parser.feed(data[position : position + cut])
        position += cut
    parser.finish()
    assert found == frames
    assert parser.consumed == len(data)


@given(frames=FRAMES, cut=st.integers(0, 200))
def test_consumed_is_where_another_stream_goes_on(frames: list[LogFrame], cut: int) -> None:
    data = encoded(frames)
    first = FrameParser()
    found = first.feed(data[:cut])
    found += FrameParser().feed(data[first.consumed :])
    assert found == frames


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_an_error_or_waits_for_more(data: bytes) -> None:
    parser = FrameParser()
    try:
        for item in parser.feed(data):
            assert item.stream in (1, 2)
        parser.finish()
    except LinkError:
        pass  # the other allowed outcome


@pytest.mark.parametrize(
    "header",
    [
        (0, 0, 0, 1, 1),
        (3, 0, 0, 1, 1),
        (1, 1, 0, 1, 1),
        (1, 0, 1, 1, 1),
        (1, 0, 0, MAX_PAYLOAD + 1, 1),
    ],
)
def test_a_wrong_header_is_an_error(header: tuple[int, ...]) -> None:
    with pytest.raises(LinkError, match="not log frames"):
        FrameParser().feed(struct.pack(">BBHIQ", *header))


def test_an_end_inside_a_frame_is_an_error() -> None:
    parser = FrameParser()
    assert parser.feed(frame(b"whole") + frame(b"half")[: HEADER.size + 1])
    with pytest.raises(LinkError, match="middle of a frame"):
        parser.finish()


def _last_lines(frames: list[LogFrame], count: int) -> list[tuple[int, bytes]]:
    """The plain way: all lines, where they begin, the last of them."""
    lines: list[list[tuple[int, bytes]]] = []
    open_lines: dict[int, list[tuple[int, bytes]]] = {}
    for it in frames:
        for number, part in enumerate(parts := it.payload.split(b"\n")):
            text = part + (b"\n" if number < len(parts) - 1 else b"")
            if not text:
                continue
            if it.stream not in open_lines:
                open_lines[it.stream] = []
                lines.append(open_lines[it.stream])
            open_lines[it.stream].append((it.stream, text))
            if text.endswith(b"\n"):
                del open_lines[it.stream]
    kept = lines[-count:] if count else []
    return [(stream, b"".join(t for _, t in line)) for line in kept for stream in {line[0][0]}]


LINES = st.lists(
    st.builds(
        LogFrame,
        stream=st.sampled_from([1, 2]),
        time_ns=st.just(1),
        payload=st.lists(st.sampled_from([b"a", b"bb", b"\n"]), max_size=5).map(b"".join),
    ),
    max_size=30,
)


@given(frames=LINES, count=st.integers(0, 6))
def test_a_tail_is_the_last_lines(frames: list[LogFrame], count: int) -> None:
    tail = Tail(count)
    for number, it in enumerate(frames):
        tail.feed(LogFrame(it.stream, number, it.payload))
    found = tail.frames()
    wanted = _last_lines(frames, count)
    for stream in (1, 2):
        text = b"".join(it.payload for it in found if it.stream == stream)
        assert text == b"".join(line for number, line in wanted if number == stream)


def test_a_tail_keeps_few_frames() -> None:
    tail = Tail(3)
    for number in range(1000):
        tail.feed(LogFrame(1, number, b"line\n"))
    assert len(tail._kept) < 10
    assert b"".join(it.payload for it in tail.frames()) == b"line\n" * 3


def attachment(
    stdin: bool = False, streams: frozenset[int] = frozenset({1, 2})
) -> StreamAttachment:
    return StreamAttachment(tty=False, streams=streams, stdin=stdin)


def test_an_attachment_goes_on_after_a_cut_without_losing_or_repeating_a_byte() -> None:
    async def scene() -> None:
        log = frame(b"one") + frame(b"two") + frame(b"three")
        streams: list[FakeStream] = []

        async def reopen(offset: int) -> FakeStream:
            streams.append(FakeStream(9))
            streams[-1].send(log[offset:])
            streams[-1].finish()
            return streams[-1]

        first = FakeStream(1)
        first.send(log[:25])
        held = attachment()
        held.bind(first, offset=0, reopen=reopen)
        output = asyncio.ensure_future(collect(held))
        await asyncio.sleep(0)
        first.cut("the agent was replaced")
        assert await output == {1: b"onetwothree"}
        assert len(streams) == 1

    asyncio.run(scene())


def test_an_attachment_with_open_input_is_reset_by_a_cut() -> None:
    async def scene() -> None:
        async def reopen(_offset: int) -> FakeStream:
            raise AssertionError("input cannot be repeated")

        stream = FakeStream(1)
        held = attachment(stdin=True)
        held.bind(stream, reopen=reopen)
        stream.cut("gone")
        with pytest.raises(StreamReset):
            await collect(held)

    asyncio.run(scene())


def test_a_stream_that_is_cut_again_and_again_is_given_up() -> None:
    async def scene() -> None:
        opened = 0

        async def reopen(_offset: int) -> FakeStream:
            nonlocal opened
            opened += 1
            stream = FakeStream(1)
            stream.cut("no")
            return stream

        held = attachment()
        held.bind(await reopen(0), reopen=reopen)
        with pytest.raises(StreamReset):
            await collect(held)
        assert opened < 10

    asyncio.run(scene())


def test_input_waits_for_the_start_and_is_dropped_after_the_end() -> None:
    async def scene() -> None:
        held = attachment(stdin=True)
        writing = asyncio.ensure_future(held.write(b"early"))
        await asyncio.sleep(0)
        assert not writing.done()
        stream = FakeStream(1)
        held.bind(stream)
        await writing
        await held.write(b" late")
        await held.end_input()
        assert stream.received == b"early late"
        assert stream.input_ended
        stream.finish()
        assert await collect(held) == {}
        await held.write(b"too late")
        assert stream.received == b"early late"

    asyncio.run(scene())


def test_the_end_of_the_output_releases_a_writer_that_nobody_reads() -> None:
    async def scene() -> None:
        stream = FakeStream(1)
        stream.writable.clear()
        held = attachment(stdin=True)
        held.bind(stream)
        writing = asyncio.ensure_future(held.write(b"x" * 1000))
        await asyncio.sleep(0)
        stream.finish()
        await collect(held)
        async with asyncio.timeout(5):
            await writing

    asyncio.run(scene())


def test_unwanted_streams_are_left_out() -> None:
    async def scene() -> None:
        stream = FakeStream(1)
        stream.send(frame(b"out") + frame(b"err", stream=2))
        stream.finish()
        held = attachment(streams=frozenset({2}))
        held.bind(stream)
        assert await collect(held) == {2: b"err"}

    asyncio.run(scene())


def test_letting_go_before_the_start_ends_everything() -> None:
    async def scene() -> None:
        released: list[StreamAttachment] = []
        held = StreamAttachment(
            tty=True, streams=frozenset({1}), stdin=True, released=released.append
        )
        output = asyncio.ensure_future(collect(held))
        await asyncio.sleep(0)
        await held.aclose()
        await held.aclose()
        assert await output == {}
        assert released == [held]
        stream = FakeStream(1)
        held.bind(stream)
        assert stream.reset_reason is not None

    asyncio.run(scene())
