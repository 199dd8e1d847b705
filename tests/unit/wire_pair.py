"""Two `Connection`s and a transport that loses data at every cut, as virtio-serial does; no I/O.

`LossyPair` moves bytes when it is told to, in pieces of the test's choice; `Traffic` keeps streams
in both directions busy and knows what must arrive.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

from wherry_guest import wire

PATTERN = random.Random(7).randbytes(1 << 20)


class LossyPair:
    """`host` and `guest`, and what is under way between them."""

    def __init__(self, window: int = wire.WINDOW) -> None:
        self.window = window
        self.host = wire.Connection(wire.Role.HOST, window=window)
        self.guest = wire.Connection(wire.Role.GUEST, {"agent": {"version": "1"}}, window=window)
        self.to_guest = bytearray()
        self.to_host = bytearray()
        self.host_events: list[wire.Event] = []
        self.guest_events: list[wire.Event] = []

    def begin(self) -> None:
        self.host.begin()
        self.guest.begin()

    def move(self, guest_bytes: int = 1 << 30, host_bytes: int = 1 << 30) -> bool:
        """Let both ends write, then deliver so many bytes to each; whether anything moved."""
        self.to_guest += b"".join(self.host.take(1 << 17))
        self.to_host += b"".join(self.guest.take(1 << 17))
        down, up = bytes(self.to_guest[:guest_bytes]), bytes(self.to_host[:host_bytes])
        del self.to_guest[:guest_bytes], self.to_host[:host_bytes]
        self.guest_events += self.guest.receive(down) if down else self.guest.events()
        self.host_events += self.host.receive(up) if up else self.host.events()
        return bool(down or up)

    def settle(self) -> None:
        """Move until nothing moves any more."""
        for _ in range(100_000):
            if not self.move():
                return
        raise AssertionError("the two ends never come to rest")

    def cut(self, keep_down: int, keep_up: int, guest_notices: bool) -> None:
        """The host's connection ends and another begins; of what was under way a beginning arrives.

        What came up late is read by the host on the new connection, as from QEMU's buffers.
        """
        del self.to_guest[keep_down:], self.to_host[keep_up:]
        self.host.lost()
        self.host.begin()
        if guest_notices:
            self.guest.lost()
            self.guest.begin()

    def tick(self) -> None:
        self.host_events += self.host.tick()
        self.guest_events += self.guest.tick()

    def taken_events(self) -> tuple[list[wire.Event], list[wire.Event]]:
        """(the host's, the guest's) events since the last time."""
        result = self.host_events, self.guest_events
        self.host_events, self.guest_events = [], []
        return result


@dataclass
class Half:
    """One direction of a stream: what is still to be sent, and what has come."""

    sender: wire.Connection
    receiver: wire.Connection
    out: wire.StreamState
    into: wire.StreamState
    left: int
    sent: hashlib._Hash = field(default_factory=hashlib.sha256)
    received: hashlib._Hash = field(default_factory=hashlib.sha256)
    ended: bool = False
    reset: str | None = None
    writable: bool = True

    def write(self, chunk: int) -> None:
        while self.left and self.writable and not self.out.dead:
            data = PATTERN[self.left % 4096 :][: min(chunk, self.left)]
            self.left -= len(data)
            self.sent.update(data)
            self.writable = self.sender.streams.send(self.out, data)
        if not self.left:
            self.sender.streams.end(self.out)

    @property
    def complete(self) -> bool:
        return self.ended and self.sent.digest() == self.received.digest()


class Traffic:
    """Streams that are busy both ways over a pair."""

    def __init__(self, pair: LossyPair, streams: int, size: int, chunk: int = 70_000) -> None:
        self.pair = pair
        self.chunk = chunk
        self.down: dict[int, Half] = {}
        self.up: dict[int, Half] = {}
        opened = [pair.host.streams.open() for _ in range(streams)]
        pair.settle()
        _, guest_events = pair.taken_events()
        there = {e.stream.id: e.stream for e in guest_events if isinstance(e, wire.StreamOpened)}
        for here in opened:
            far = there[here.id]
            self.down[here.id] = Half(pair.host, pair.guest, here, far, size)
            self.up[here.id] = Half(pair.guest, pair.host, far, here, size)

    @property
    def halves(self) -> list[Half]:
        return [*self.down.values(), *self.up.values()]

    def work(self) -> None:
        """Write what may be written, and take in what has arrived."""
        for half in self.halves:
            half.write(self.chunk)
        host_events, guest_events = self.pair.taken_events()
        self._take(host_events, incoming=self.up, outgoing=self.down)
        self._take(guest_events, incoming=self.down, outgoing=self.up)

    def finish(self) -> None:
        for _ in range(100_000):
            self.work()
            if not self.pair.move():
                return
        raise AssertionError("the traffic never ends")

    def _take(
        self, events: list[wire.Event], incoming: dict[int, Half], outgoing: dict[int, Half]
    ) -> None:
        for event in events:
            match event:
                case wire.DataReceived(id, data):
                    half = incoming[id]
                    assert not half.ended
                    half.received.update(data)
                    half.receiver.streams.consumed(half.into, len(data))
                case wire.StreamEnded(id):
                    incoming[id].ended = True
                case wire.Writable(id):
                    outgoing[id].writable = True
                case wire.StreamClosed(id, str() as reason):
                    incoming[id].reset = outgoing[id].reset = reason
                case wire.SessionEnded(reason):
                    for half in self.halves:
                        half.reset = half.reset or reason
