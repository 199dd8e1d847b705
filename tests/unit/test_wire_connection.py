"""The wire's promises: complete or explicitly reset, whatever the transport loses."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_pair import LossyPair, Traffic

from wherry_guest import frames, messages, wire


def opened(window: int = wire.WINDOW) -> LossyPair:
    pair = LossyPair(window)
    pair.begin()
    pair.settle()
    pair.taken_events()
    return pair


def of_type(events: list[wire.Event], kind: type) -> list[wire.Event]:
    return [event for event in events if isinstance(event, kind)]


def stream_pair(pair: LossyPair) -> tuple[wire.StreamState, wire.StreamState]:
    """A stream as (host's, guest's) state."""
    here = pair.host.streams.open()
    pair.settle()
    (event,) = of_type(pair.taken_events()[1], wire.StreamOpened)
    assert isinstance(event, wire.StreamOpened)
    return here, event.stream


def test_hello_tells_each_side_of_the_other() -> None:
    pair = LossyPair()
    pair.begin()
    pair.settle()
    assert pair.host.established and pair.guest.established
    assert pair.host.peer is not None and pair.host.peer["agent"] == {"version": "1"}
    assert pair.host.peer["epoch"] == pair.guest.epoch
    assert pair.guest.peer is not None and pair.guest.peer["epoch"] == pair.host.epoch


def test_a_host_that_waits_for_a_booting_guest_is_answered() -> None:
    pair = LossyPair()
    pair.host.begin()
    pair.to_guest += b"".join(pair.host.take(1 << 20))
    for _ in range(5):
        pair.host.tick()
    pair.guest.begin()
    pair.settle()
    assert pair.host.established and pair.guest.established


def test_call_and_result() -> None:
    pair = opened()
    id = pair.host.call("container.kill", {"id": "c1", "signal": 9})
    pair.settle()
    assert pair.taken_events()[1] == [
        wire.CallReceived(id, "container.kill", {"id": "c1", "signal": 9})
    ]
    pair.guest.reply(id, None)
    pair.guest.fail(7, "not_found", "no such container", {"id": "c1"})
    pair.settle()
    assert pair.taken_events()[0] == [
        wire.ResultReceived(id, None),
        wire.ErrorReceived(7, "not_found", "no such container", {"id": "c1"}),
    ]


def test_a_message_longer_than_a_frame_arrives_whole() -> None:
    pair = opened()
    text = "x" * 1_000_000
    pair.host.call("a", {"text": text})
    pair.host.call("b", {})
    pair.settle()
    assert pair.taken_events()[1] == [
        wire.CallReceived(1, "a", {"text": text}),
        wire.CallReceived(2, "b", {}),
    ]


def test_a_message_beyond_the_limit_is_refused_at_its_sender() -> None:
    pair = opened()
    with pytest.raises(ValueError, match="allowed"):
        pair.host.call("a", {"text": "x" * (messages.MAX_MESSAGE + 1)})


def test_file_names_that_are_not_utf8_survive() -> None:
    pair = opened()
    pair.guest.reply(1, {"name": b"caf\xe9".decode(errors="surrogateescape")})
    pair.settle()
    (result,) = pair.taken_events()[0]
    assert isinstance(result, wire.ResultReceived) and result.result is not None
    assert result.result["name"].encode(errors="surrogateescape") == b"caf\xe9"


def test_a_call_arrives_before_the_data_of_the_stream_that_it_names() -> None:
    pair = opened()
    busy, _ = stream_pair(pair)
    pair.host.streams.send(busy, bytes(300_000))
    stream = pair.host.streams.open()
    pair.host.call("exec.start", {"stream": stream.id})
    pair.host.streams.send(stream, b"input")
    pair.settle()
    kinds = [
        type(event)
        for event in pair.taken_events()[1]
        if not isinstance(event, wire.DataReceived) or event.id == stream.id
    ]
    assert kinds == [wire.StreamOpened, wire.CallReceived, wire.DataReceived]


def test_half_close_leaves_the_other_direction_open() -> None:
    pair = opened()
    here, there = stream_pair(pair)
    pair.host.streams.send(here, b"question")
    pair.host.streams.end(here)
    pair.settle()
    assert pair.taken_events()[1] == [wire.DataReceived(here.id, b"question"), wire.StreamEnded(1)]
    pair.guest.streams.send(there, b"answer")
    pair.guest.streams.end(there)
    pair.settle()
    assert pair.taken_events()[0] == [
        wire.DataReceived(here.id, b"answer"),
        wire.StreamEnded(1),
        wire.StreamClosed(1, None),
    ]


def test_writing_after_the_end_is_an_error() -> None:
    pair = opened()
    here, _ = stream_pair(pair)
    pair.host.streams.end(here)
    with pytest.raises(ValueError, match="ended"):
        pair.host.streams.send(here, b"more")


def test_reset_reaches_the_other_side_and_drops_what_was_queued() -> None:
    pair = opened()
    here, there = stream_pair(pair)
    pair.guest.streams.send(there, bytes(2 * wire.WINDOW))
    pair.move()
    pair.host.streams.reset(here, "the client is gone")
    pair.settle()
    assert wire.StreamClosed(1, "the client is gone") in pair.taken_events()[1]
    assert there.queued == 0 and pair.guest.streams.send(there, b"into the void")
    pair.settle()


def test_credit_stops_a_sender_until_the_data_is_consumed() -> None:
    pair = opened()
    here, there = stream_pair(pair)
    assert pair.guest.streams.send(there, bytes(wire.WINDOW + 100)) is False
    pair.settle()
    host_events, guest_events = pair.taken_events()
    received = sum(len(e.data) for e in host_events if isinstance(e, wire.DataReceived))
    assert received == wire.WINDOW and there.queued == 100
    pair.host.streams.consumed(here, received)
    pair.settle()
    host_events, guest_events = pair.taken_events()
    assert sum(len(e.data) for e in host_events if isinstance(e, wire.DataReceived)) == 100
    assert guest_events == [wire.Writable(1)]


def test_a_stalled_stream_does_not_hold_up_a_busy_one() -> None:
    pair = opened()
    _, stalled = stream_pair(pair)
    busy_here, busy = stream_pair(pair)
    pair.guest.streams.send(stalled, bytes(4 * wire.WINDOW))
    moved, writable = 0, True
    for _ in range(200):
        while writable:
            writable = pair.guest.streams.send(busy, bytes(65536))
        pair.move()
        host_events, guest_events = pair.taken_events()
        for event in host_events:
            if isinstance(event, wire.DataReceived) and event.id == busy_here.id:
                moved += len(event.data)
                pair.host.streams.consumed(busy_here, len(event.data))
        writable = wire.Writable(busy.id) in guest_events
    assert moved > 20 * wire.WINDOW
    assert stalled.queued == 3 * wire.WINDOW


def test_busy_streams_take_turns() -> None:
    pair = opened()
    states = [stream_pair(pair)[1] for _ in range(3)]
    for state in states:
        pair.guest.streams.send(state, bytes(4 * frames.MAX_PAYLOAD))
    pair.settle()
    order = [event.id for event in pair.taken_events()[0] if isinstance(event, wire.DataReceived)]
    assert order[:6] == [1, 2, 3, 1, 2, 3]


def test_what_is_kept_for_sending_again_is_bounded() -> None:
    pair = opened()
    traffic = Traffic(pair, streams=1, size=20 * wire.WINDOW)
    most = 0
    while not all(half.ended for half in traffic.halves):
        traffic.work()
        pair.move()
        most = max(most, pair.guest._outbox.kept_bytes)
    assert most <= 2 * wire.WINDOW


def test_one_way_calls_are_acknowledged_without_answers() -> None:
    pair = opened()
    for number in range(1000):
        pair.host.call("system.set_time", {"time_ns": number})
    pair.settle()
    assert len(pair.host._outbox._kept) < 100


def test_a_cut_without_a_loss_of_session_is_invisible() -> None:
    pair = opened()
    traffic = Traffic(pair, streams=3, size=2_000_000)
    for _ in range(5):
        traffic.work()
        pair.move(50_000, 50_000)
    pair.cut(keep_down=1000, keep_up=1000, guest_notices=True)
    traffic.finish()
    assert all(half.complete for half in traffic.halves)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_streams_are_complete_whatever_is_cut_and_when(data: st.DataObject) -> None:
    pair = opened(window=65536)
    traffic = Traffic(pair, streams=2, size=300_000, chunk=data.draw(st.integers(1, 90_000)) | 1024)
    some_bytes = st.sampled_from([0, 1, 39, 40, 41, 300, 32768, 65536, 65537, 1 << 20])
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(data.draw(st.integers(0, 6))):
            traffic.work()
            pair.move(data.draw(some_bytes), data.draw(some_bytes))
        pair.cut(data.draw(some_bytes), data.draw(some_bytes), data.draw(st.booleans()))
    traffic.finish()
    assert all(half.complete for half in traffic.halves), [half.reset for half in traffic.halves]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_bytes_lost_within_a_connection_are_sent_again(data: st.DataObject) -> None:
    pair = opened(window=65536)
    traffic = Traffic(pair, streams=2, size=300_000)
    for _ in range(data.draw(st.integers(1, 4))):
        for _ in range(data.draw(st.integers(1, 4))):
            traffic.work()
            pair.move(data.draw(st.integers(0, 70_000)), data.draw(st.integers(0, 70_000)))
        for way in (pair.to_guest, pair.to_host):
            start = data.draw(st.integers(0, 5000))
            lost = data.draw(st.integers(1, 100_000))
            garbage = data.draw(st.binary(max_size=50))
            if len(garbage) != len(way[start : start + lost]):  # bytes are lost, never altered
                way[start : start + lost] = garbage
    for _ in range(100):
        traffic.finish()
        if all(half.complete or half.reset for half in traffic.halves):
            break
        # Nothing moves: an end waits for the rest of a frame that is lost. Pings, then the link
        # connecting anew, are what gets it going.
        pair.cut(0, 0, guest_notices=True)
    assert all(half.complete or half.reset for half in traffic.halves)


def test_fifty_cuts_under_full_load_lose_nothing() -> None:
    pair = opened()
    rng = random.Random(1)
    traffic = Traffic(pair, streams=4, size=8_000_000)
    lost = 0
    for _ in range(50):
        for _ in range(rng.randrange(1, 6)):
            traffic.work()
            pair.move(rng.randrange(200_000), rng.randrange(200_000))
        under_way = len(pair.to_guest) + len(pair.to_host)
        pair.cut(rng.randrange(150_000), rng.randrange(150_000), rng.random() < 0.5)
        lost += under_way - len(pair.to_guest) - len(pair.to_host)
    assert lost > 1_000_000
    traffic.finish()
    assert all(half.complete for half in traffic.halves)


def test_an_agent_that_was_restarted_resets_streams_on_the_host() -> None:
    pair = opened()
    traffic = Traffic(pair, streams=2, size=2_000_000)
    traffic.work()
    pair.move(30_000, 30_000)
    pair.guest = wire.Connection(wire.Role.GUEST)
    del pair.to_host[10_000:]
    pair.to_guest.clear()
    pair.guest.begin()
    pair.settle()
    host_events, _ = pair.taken_events()
    assert of_type(host_events, wire.SessionEnded) == [wire.SessionEnded("the agent was restarted")]
    assert isinstance(host_events[-1], wire.SessionStarted)
    pair.host.call("system.info", {})
    pair.settle()
    assert of_type(pair.taken_events()[1], wire.CallReceived)


def test_a_new_engine_resets_streams_in_the_guest() -> None:
    pair = opened()
    traffic = Traffic(pair, streams=2, size=2_000_000)
    traffic.work()
    pair.move(30_000, 30_000)
    pair.host = wire.Connection(wire.Role.HOST)
    pair.host.begin()
    pair.settle()
    guest_events = pair.taken_events()[1]
    assert of_type(guest_events, wire.SessionEnded) == [wire.SessionEnded("another session began")]
    here, there = stream_pair(pair)
    pair.guest.streams.send(there, b"fresh")
    pair.settle()
    assert wire.DataReceived(here.id, b"fresh") in pair.taken_events()[0]


def test_an_event_is_sent_again_until_it_is_acknowledged() -> None:
    pair = opened()
    pair.guest.emit("container.exit", {"id": "c1"}, 1)
    pair.guest.emit("container.exit", {"id": "c2"}, 2)
    pair.settle()
    first, second = pair.taken_events()[0]
    assert isinstance(first, wire.EventReceived) and first.payload == {"id": "c1"}
    pair.host.ack_event(first.id)
    pair.settle()
    for _ in range(2):
        pair.host = wire.Connection(wire.Role.HOST)
        pair.host.begin()
        pair.settle()
        assert of_type(pair.taken_events()[0], wire.EventReceived) == [second]


def test_events_from_before_the_first_host_are_delivered_in_order() -> None:
    pair = LossyPair()
    for number in range(3 * wire.EVENTS_IN_FLIGHT):
        pair.guest.emit("e", {"n": number}, number)
    pair.begin()
    numbers = []
    for _ in range(10):
        pair.settle()
        for event in of_type(pair.taken_events()[0], wire.EventReceived):
            assert isinstance(event, wire.EventReceived)
            numbers.append(event.payload["n"])
            pair.host.ack_event(event.id)
    assert numbers == list(range(3 * wire.EVENTS_IN_FLIGHT))


def test_events_that_nobody_fetched_are_dropped_only_aloud() -> None:
    pair = LossyPair()
    for number in range(wire.EVENTS_KEPT + 3):
        pair.guest.emit("e", {}, number)
    pair.begin()
    pair.settle()
    assert pair.host.peer is not None and pair.host.peer["events_lost"] == 3


def test_another_major_version_is_told_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = LossyPair()
    monkeypatch.setattr(wire, "VERSION", "2.0")
    pair.guest.begin()
    pair.host.begin()
    hello = b"".join(pair.host.take(1 << 20))
    pair.guest_events += pair.guest.receive(hello)
    monkeypatch.setattr(wire, "VERSION", "1.0")
    pair.host_events += pair.host.receive(b"".join(pair.guest.take(1 << 20)))
    host_events, guest_events = pair.taken_events()
    assert isinstance(guest_events[0], wire.Incompatible) and not pair.guest.established
    assert isinstance(host_events[0], wire.Incompatible) and not pair.host.established


def test_the_lower_minor_version_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MINOR", 3)
    monkeypatch.setattr(wire, "VERSION", "1.2")
    pair = opened()
    assert pair.host.minor == pair.guest.minor == 2


def test_a_dead_guest_is_noticed_by_its_silence() -> None:
    pair = opened()
    pair.host.tick()
    events: list[wire.Event] = []
    for _ in range(wire.PINGS_UNANSWERED + 1):
        events += pair.host.tick()
    assert events == [wire.Silent()]


def test_a_guest_that_answers_pings_is_alive() -> None:
    pair = opened()
    for _ in range(10):
        pair.tick()
        pair.settle()
    assert not of_type(pair.taken_events()[0], wire.Silent)


def test_data_beyond_its_credit_breaks_the_session() -> None:
    pair = opened()
    _, there = stream_pair(pair)
    there.limit += 1 << 20
    pair.guest.streams.send(there, bytes(1 << 20))
    pair.settle()
    assert of_type(pair.taken_events()[0], wire.Broken)


def test_a_flood_of_events_breaks_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = opened()
    monkeypatch.setattr(wire, "EVENTS_IN_FLIGHT", 10_000)
    for number in range(300):
        pair.guest.emit("e", {}, number)
    monkeypatch.setattr(wire, "EVENTS_IN_FLIGHT", 256)
    pair.settle()
    assert wire.Broken("too many events at once") in pair.taken_events()[0]


@settings(deadline=None)
@given(
    st.sampled_from([frames.RESULT, frames.ERROR, frames.EVENT, frames.CALL, frames.CREDIT]),
    st.binary(max_size=8)
    | st.just(b"[" * 5000)
    | st.sampled_from([b"{}", b"[]", b"1", b'{"a":1}']),
    st.integers(0, 3),
)
def test_a_hostile_guest_cannot_make_the_host_raise(type: int, payload: bytes, id: int) -> None:
    pair = opened()
    stream_pair(pair)
    pair.guest._outbox.post(type, id, payload[: frames.LIMITS[type]])
    pair.settle()


@given(st.binary(max_size=400), st.integers(1, 40))
def test_a_hostile_guests_bytes_cannot_make_the_host_raise(data: bytes, repeat: int) -> None:
    pair = LossyPair()
    pair.host.begin()
    pair.host.receive(data * repeat)
    pair.host.receive(frames.encode_header(frames.HAIL, 0, 0, 0, 0, 0, 0) * repeat)
    assert sum(len(piece) for piece in pair.host.take(1 << 20)) < 70_000


def test_a_peer_that_never_gets_a_frame_right_loses_its_session() -> None:
    pair = opened()
    events: list[wire.Event] = []
    for _ in range(wire.RESYNCS_IN_VAIN + 1):
        events += pair.host.receive(bytes(frames.FRAME_SIZE))
        pair.settle()
    assert wire.SessionEnded("the stream of frames was damaged") in [*events, *pair.host_events]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 140_000), max_size=3), max_size=6))
def test_writes_in_several_pieces_arrive_as_one_sequence_of_bytes(writes: list[list[int]]) -> None:
    pair = opened()
    here, there = stream_pair(pair)
    sent = b""
    for number, lengths in enumerate(writes):
        pieces = [bytes([number + 1, at]) * (length // 2) for at, length in enumerate(lengths)]
        sent += b"".join(pieces)
        pair.guest.streams.send(there, *pieces)
    received = b""
    for _ in range(100):
        pair.settle()
        for event in pair.taken_events()[0]:
            if isinstance(event, wire.DataReceived):
                received += event.data
                pair.host.streams.consumed(here, len(event.data))
        if len(received) == len(sent):
            break
    assert received == sent


def test_what_is_taken_comes_in_pieces_that_a_port_takes_whole() -> None:
    pair = opened()
    _, there = stream_pair(pair)
    pair.guest.streams.send(there, b"head", bytes(60_000))
    pair.guest.streams.send(there, bytes(200_000))
    pieces = pair.guest.take(1 << 20)
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 32 * 1024
