"""The host's `Link` against the guest's `Channel`, over a port that loses data whenever it is cut.

The guest runs in a thread with its own loop. `Port` plays QEMU: the guest's end stays open all the
time, the host's end comes and goes, and what is under way at a cut is lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from wherry.errors import AgentError, LinkClosed, LinkError
from wherry.link import AgentEvent, Link, Receiver, Stream, StreamReset, open_link
from wherry_guest import wire
from wherry_guest.channel import DEFERRED, Call, CallError, Channel, GuestStream, Handler
from wherry_guest.loop import Loop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the guest's end needs os.readv")

DEADLINE = 30.0
Params = dict[str, Any]


class Port:
    """A virtio-serial port whose host side can be cut."""

    def __init__(self) -> None:
        self.guest, self._qemu = socket.socketpair()
        self._qemu.setblocking(False)
        self.transport: CuttableTransport | None = None
        self.cuts = self.lost_bytes = 0
        self.refuse = False

    def open(self) -> int:
        """The guest's side, as one more descriptor of it."""
        return self.guest.dup().detach()

    async def connect(self) -> CuttableTransport:
        if self.refuse:
            raise ConnectionRefusedError("QEMU is not there")
        self.transport = CuttableTransport(self._qemu)
        return self.transport

    def cut(self, rng: random.Random) -> None:
        """Cut the host off; some of what the guest has written meanwhile is lost."""
        if self.transport is not None and self.transport.receiver is not None:
            self.cuts += 1
            self.lost_bytes += self.transport.cut(rng.randrange(300_000))
            self.transport = None

    def close(self) -> None:
        self.guest.close()
        self._qemu.close()


class CuttableTransport:
    """A `Transport` over QEMU's side of the port."""

    def __init__(self, qemu: socket.socket) -> None:
        self._qemu = qemu
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._open = True
        self.receiver: Receiver | None = None

    def start(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._loop.add_reader(self._qemu, self._readable)

    def write(self, pieces: Iterable[wire.Buffer]) -> bool:
        self._pending += b"".join(pieces)
        self._flush()
        return not self._pending

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._qemu)
            self._loop.remove_writer(self._qemu)
            if self.receiver is not None:
                self._loop.call_soon(self.receiver.connection_lost, None)

    def cut(self, lose: int) -> int:
        """End the connection, losing up to `lose` bytes of the guest's; returns how many were."""
        lost = len(self._pending)
        self.close()
        while lose > 0:
            try:
                lost += (count := len(self._qemu.recv(lose)))
            except BlockingIOError:
                break
            lose -= count
        return lost

    def _readable(self) -> None:
        assert self.receiver is not None
        try:
            data = self._qemu.recv(65536)
        except BlockingIOError:
            return
        if data:
            self.receiver.data_received(data)
        else:
            self.close()

    def _flush(self) -> None:
        try:
            del self._pending[: self._qemu.send(self._pending)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.close()
        if self._pending and self._open:
            self._loop.add_writer(self._qemu, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._qemu)
        self._flush()
        if not self._pending and self.receiver is not None:
            self.receiver.writable()


class Guest:
    """A thread that runs `Loop` and `Channel` on the guest's end of a port."""

    def __init__(
        self, open_port: Callable[[], int], handlers: dict[str, Handler] | None = None
    ) -> None:
        self._wake, self._woken = socket.socketpair()
        self.loop = Loop()
        own = {"echo": _echo, "source": self._source, "sink": self._sink, "twice": self._twice}
        self.channel = Channel(
            self.loop,
            open_port,
            {**own, **(handlers or {})},
            {"agent": {"version": "1"}},
        )
        self._jobs: list[Callable[[], object]] = []
        self.resets: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], object]) -> None:
        """Run `job` in the guest's thread, soon."""
        self._jobs.append(job)
        self._wake.send(b"x")

    def stop(self) -> None:
        self.do(self.loop.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the guest's loop did not stop"
        self.channel.close()
        self.loop.close()
        self._wake.close()
        self._woken.close()

    def _run(self) -> None:
        self.loop.add_reader(self._woken.fileno(), self._work)
        self.channel.start()
        self.loop.run()

    def _work(self) -> None:
        for _ in self._woken.recv(100):
            self._jobs.pop(0)()

    def _stream(self, params: Params) -> GuestStream:
        stream = self.channel.stream(params["stream"])
        stream.on_reset(self.resets.append)
        return stream

    def _source(self, params: Params, call: Call) -> Params:
        """Sends `size` bytes from a seeded generator, then ends."""
        stream = self._stream(params)
        rng, left = random.Random(params["seed"]), [params["size"]]

        def go_on() -> None:
            while left[0]:
                chunk = rng.randbytes(min(50_000, left[0]))
                left[0] -= len(chunk)
                if not stream.write(chunk):
                    return
            stream.end()

        stream.on_writable(go_on)
        self.loop.call_soon(go_on)
        return {}

    def _sink(self, params: Params, call: Call) -> object:
        """Answers, at the end of the stream, with the digest of what came."""
        stream = self._stream(params)
        digest = hashlib.sha256()
        stream.on_data(digest.update)
        stream.on_end(lambda: call.reply({"digest": digest.hexdigest()}))
        return DEFERRED

    def _twice(self, params: Params, call: Call) -> None:
        """Sends everything back, stopping to read while it may not write."""
        stream = self._stream(params)

        def forward(data: bytes) -> None:
            if not stream.write(data):
                stream.pause()

        stream.on_data(forward)
        stream.on_writable(stream.resume)
        stream.on_end(stream.end)


def _echo(params: Params, call: Call) -> Params:
    return params


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def with_deadline() -> None:
        async with asyncio.timeout(DEADLINE):
            await test()

    asyncio.run(with_deadline())


@asynccontextmanager
async def linked(
    handlers: dict[str, Handler] | None = None,
) -> AsyncIterator[tuple[Link, Guest, Port]]:
    port = Port()
    guest = Guest(port.open, handlers)
    link = await open_link(port.connect, deadline=DEADLINE)
    try:
        yield link, guest, port
    finally:
        await link.aclose()
        guest.stop()
        port.close()


async def read_all(stream: Stream) -> bytes:
    parts = []
    while data := await stream.read(1 << 20):
        parts.append(data)
    return b"".join(parts)


async def write_all(stream: Stream, data: bytes) -> None:
    for at in range(0, len(data), 100_000):
        await stream.write(data[at : at + 100_000])
    await stream.end()


async def until(condition: Callable[[], bool], what: str) -> None:
    """The few things that only the other thread knows are asked for, a thousand times a second."""
    try:
        async with asyncio.timeout(DEADLINE / 2):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None


def test_a_call_is_answered() -> None:
    async def test() -> None:
        async with linked() as (link, _, _):
            assert link.connected
            assert link.peer["agent"] == {"version": "1"}
            answers = await asyncio.gather(*(link.call("echo", {"n": n}) for n in range(100)))
            assert answers == [{"n": n} for n in range(100)]

    run(test)


def test_a_handlers_errors_reach_the_caller() -> None:
    def conflict(params: Params, call: Call) -> None:
        raise CallError("conflict", "it runs", {"pid": 7})

    def bug(params: Params, call: Call) -> int:
        return {}["missing"]

    def unspeakable(params: Params, call: Call) -> Params:
        return {"set": {1, 2}}

    async def failure(link: Link, method: str) -> AgentError:
        with pytest.raises(AgentError) as caught:
            await link.call(method, {})
        return caught.value

    async def test() -> None:
        handlers = {"conflict": conflict, "bug": bug, "unspeakable": unspeakable}
        async with linked(handlers) as (link, _, _):
            error = await failure(link, "conflict")
            assert (error.code, error.message, error.data) == ("conflict", "it runs", {"pid": 7})
            assert "KeyError" in (await failure(link, "bug")).data["traceback"]
            assert (await failure(link, "unspeakable")).code == "failed"
            assert (await failure(link, "no.such")).code == "unsupported"
            assert (await link.call("echo", {"still": "there"})) == {"still": "there"}

    run(test)


def test_a_call_that_is_never_answered_times_out() -> None:
    async def test() -> None:
        async with linked({"never": lambda params, call: DEFERRED}) as (link, _, _):
            with pytest.raises(LinkError, match=r"did not answer never within 0\.05 s"):
                await link.call("never", {}, timeout=0.05)

    run(test)


def test_a_link_that_refuses_fails_its_calls_until_it_is_told_that_it_can_answer() -> None:
    async def test() -> None:
        async with linked({"never": lambda params, call: DEFERRED}) as (link, _, _):
            assert link.silence == 0.0
            waiting = asyncio.ensure_future(link.call("never", {}, timeout=DEADLINE))
            await until(lambda: link.silence > 0.05, "the silence is noticed")
            link.refuse(LinkError("it hangs"))
            with pytest.raises(LinkError, match="it hangs"):
                await waiting
            with pytest.raises(LinkError, match="it hangs"):
                await link.call("echo", {})
            assert link.silence == 0.0
            link.refuse(None)
            assert await link.call("echo", {"n": 1}, timeout=DEADLINE) == {"n": 1}

    run(test)


def test_streams_carry_every_byte_both_ways_at_once() -> None:
    async def test() -> None:
        async with linked() as (link, _, _):
            data = random.Random(3).randbytes(5_000_000)
            stream = link.open_stream()
            await link.call("twice", {"stream": stream.id})
            back, _ = await asyncio.gather(read_all(stream), write_all(stream, data))
            assert back == data

    run(test)


def test_small_reads_get_what_big_reads_get() -> None:
    async def test() -> None:
        async with linked() as (link, _, _):
            stream = link.open_stream()
            await link.call("source", {"stream": stream.id, "seed": 4, "size": 200_000})
            parts = []
            while data := await stream.read(777):
                parts.append(data)
            assert max(map(len, parts)) <= 777
            assert hashlib.sha256(b"".join(parts)).digest() == _digest_of_source(4, 200_000)

    run(test)


def _digest_of_source(seed: int, size: int) -> bytes:
    rng, digest = random.Random(seed), hashlib.sha256()
    while size:
        chunk = rng.randbytes(min(50_000, size))
        size -= len(chunk)
        digest.update(chunk)
    return digest.digest()


def test_a_guest_that_does_not_consume_stops_the_writer() -> None:
    held: list[GuestStream] = []

    async def test() -> None:
        async with linked() as (link, guest, _):

            def hold(params: Params, call: Call) -> None:
                held.append(guest.channel.stream(params["stream"]))

            guest.channel._handlers = {**guest.channel._handlers, "hold": hold}
            stream = link.open_stream()
            await link.call("hold", {"stream": stream.id})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await write_all(stream, bytes(4 * wire.WINDOW))
            received: list[int] = []
            guest.do(lambda: held[0].on_data(lambda data: received.append(len(data))))
            await until(lambda: sum(received) >= wire.WINDOW, "the data that was held")
            await write_all(stream, b"the rest")

    run(test)


def test_a_guest_that_writes_on_without_credit_is_stopped() -> None:
    errors: list[str] = []

    async def test() -> None:
        async with linked() as (link, guest, _):

            def flood(params: Params, call: Call) -> None:
                stream = guest.channel.stream(params["stream"])
                try:
                    for _ in range(100):
                        stream.write(bytes(65536))
                except BufferError as error:
                    errors.append(str(error))

            guest.channel._handlers = {**guest.channel._handlers, "flood": flood}
            stream = link.open_stream()
            await link.call("flood", {"stream": stream.id})
            assert "without waiting" in errors[0]

    run(test)


def test_a_reset_by_the_host_reaches_the_guest() -> None:
    async def test() -> None:
        async with linked() as (link, guest, _):
            stream = link.open_stream()
            await link.call("source", {"stream": stream.id, "seed": 1, "size": 10_000_000})
            await stream.read()
            stream.reset("the client is gone")
            with pytest.raises(StreamReset, match="the client is gone"):
                await stream.read()
            await until(lambda: guest.resets == ["the client is gone"], "the guest's on_reset")

    run(test)


def test_a_reset_by_the_guest_reaches_a_waiting_reader_and_writer() -> None:
    async def test() -> None:
        async with linked() as (link, guest, _):
            streams: list[GuestStream] = []

            def hold(params: Params, call: Call) -> None:
                streams.append(guest.channel.stream(params["stream"]))

            guest.channel._handlers = {**guest.channel._handlers, "hold": hold}
            stream = link.open_stream()
            await link.call("hold", {"stream": stream.id})
            reader = asyncio.create_task(stream.read())
            writer = asyncio.create_task(write_all(stream, bytes(4 * wire.WINDOW)))
            await asyncio.sleep(0)
            guest.do(lambda: streams[0].reset("the process is gone"))
            for task in (reader, writer):
                with pytest.raises(StreamReset, match="the process is gone"):
                    await task

    run(test)


def test_an_event_waits_for_a_handler_and_is_repeated_until_one_returns() -> None:
    async def test() -> None:
        async with linked() as (link, guest, _):
            guest.do(lambda: guest.channel.emit("container.exit", {"id": "a"}))
            guest.do(lambda: guest.channel.emit("container.exit", {"id": "b"}))
            await link.call("echo", {})
            seen: list[str] = []
            done = asyncio.Event()

            async def handler(event: AgentEvent) -> None:
                seen.append(event.payload["id"])
                if len(seen) == 1:
                    raise RuntimeError("the disk is full")
                if event.payload["id"] == "b":
                    done.set()

            link.on_event(handler)
            await done.wait()
            assert seen == ["a", "a", "b"]
            await until(lambda: not guest.channel._conn._kept_events, "the acknowledgement")

    run(test)


def test_a_new_engine_gets_the_events_that_the_old_one_did_not_store() -> None:
    async def test() -> None:
        async with linked() as (link, guest, port):
            never = asyncio.Event()
            started = asyncio.Event()

            async def stuck(event: AgentEvent) -> None:
                started.set()
                await never.wait()

            link.on_event(stuck)
            guest.do(lambda: guest.channel.emit("container.exit", {"id": "a"}))
            await started.wait()
            await link.aclose()
            second = await open_link(port.connect, deadline=DEADLINE)
            events: asyncio.Queue[AgentEvent] = asyncio.Queue()
            second.on_event(events.put)
            event = await events.get()
            assert (event.id, event.name, event.payload) == (1, "container.exit", {"id": "a"})
            await second.aclose()

    run(test)


def test_fifty_reconnects_under_full_load_lose_nothing() -> None:
    async def source(link: Link, seed: int, size: int) -> bool:
        stream = link.open_stream()
        await link.call("source", {"stream": stream.id, "seed": seed, "size": size})
        digest = hashlib.sha256()
        while data := await stream.read(1 << 18):
            digest.update(data)
        return digest.digest() == _digest_of_source(seed, size)

    async def sink(link: Link, seed: int, size: int) -> bool:
        data = random.Random(seed).randbytes(size)
        stream = link.open_stream()
        answer = asyncio.create_task(link.call("sink", {"stream": stream.id}, timeout=None))
        await write_all(stream, data)
        return (await answer)["digest"] == hashlib.sha256(data).hexdigest()

    async def load(work: Callable[[int], Awaitable[bool]], stop: asyncio.Event) -> int:
        rounds = 0
        while not stop.is_set():
            assert await work(rounds), "a stream was silently short"
            rounds += 1
        return rounds

    async def test() -> None:
        async with linked() as (link, guest, port):
            restarts: list[Params] = []
            link.on_peer_restart(restarts.append)
            stop = asyncio.Event()
            work = [
                asyncio.create_task(load(lambda n: source(link, n, 3_000_000), stop)),
                asyncio.create_task(load(lambda n: source(link, n + 99, 40_000), stop)),
                asyncio.create_task(load(lambda n: sink(link, n, 2_000_000), stop)),
            ]
            rng = random.Random(5)
            while port.cuts < 50:
                await asyncio.sleep(rng.random() * 0.02)
                port.cut(rng)
            stop.set()
            rounds = await asyncio.gather(*work)
            assert min(rounds) >= 1
            assert port.lost_bytes > 500_000
            assert restarts == [] and guest.resets == []

    run(test)


def test_a_restarted_agent_fails_calls_resets_streams_and_is_told_of() -> None:
    async def test() -> None:
        never: dict[str, Handler] = {"never": lambda params, call: DEFERRED}
        async with linked(never) as (link, guest, port):
            restarted = asyncio.Event()
            link.on_peer_restart(lambda peer: restarted.set())
            stream = link.open_stream()
            await link.call("source", {"stream": stream.id, "seed": 1, "size": 50_000_000})
            call = asyncio.create_task(link.call("never", {}, timeout=None))
            await stream.read()
            guest.stop()
            replacement = Guest(port.open)
            with pytest.raises(LinkClosed, match="restarted"):
                await call
            with pytest.raises(StreamReset):
                await read_all(stream)
            await restarted.wait()
            assert await link.call("echo", {"a": 1}) == {"a": 1}
            replacement.stop()
            guest.__init__(port.open)  # type: ignore[misc]  # for the fixture to stop

    run(test)


def test_a_call_during_an_outage_waits_for_the_reconnect() -> None:
    async def test() -> None:
        async with linked() as (link, _, port):
            port.refuse = True
            port.cut(random.Random(1))
            await until(lambda: not link.connected, "the cut")
            call = asyncio.create_task(link.call("echo", {"a": 1}))
            await asyncio.sleep(0)
            port.refuse = False
            assert await call == {"a": 1}

    run(test)


def test_closing_the_link_fails_what_is_under_way() -> None:
    async def test() -> None:
        async with linked({"never": lambda params, call: DEFERRED}) as (link, _, _):
            stream = link.open_stream()
            call = asyncio.create_task(link.call("never", {}))
            reader = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            await link.aclose()
            with pytest.raises(LinkClosed):
                await call
            with pytest.raises(StreamReset):
                await reader
            with pytest.raises(LinkClosed):
                await link.call("echo", {})
            with pytest.raises(LinkClosed):
                link.open_stream()
            assert link.closed

    run(test)


def test_no_answer_within_the_deadline_says_why() -> None:
    async def test() -> None:
        port = Port()
        port.refuse = True
        with pytest.raises(LinkError, match=r"within 0\.05 s: QEMU is not there"):
            await open_link(port.connect, deadline=0.05)
        port.close()

    run(test)


def test_the_guest_is_told_when_everything_has_arrived() -> None:
    settled = threading.Event()

    async def test() -> None:
        async with linked() as (_, guest, _):
            guest.do(lambda: guest.channel.emit("e", {}))
            guest.do(lambda: guest.channel.when_settled(settled.set, timeout=DEADLINE))
            await until(settled.is_set, "when_settled")

    run(test)


def test_a_socket_port_is_opened_anew_when_it_ends() -> None:
    """As over vsock: the guest's end closes with the connection."""

    async def test() -> None:
        ours: list[socket.socket] = []
        lock = threading.Condition()

        def dial() -> int:
            with lock:
                one, other = socket.socketpair()
                ours.append(other)
                lock.notify()
            return one.detach()

        async def connect() -> CuttableTransport:
            def take() -> socket.socket:
                with lock:
                    assert lock.wait_for(lambda: ours, DEADLINE), "the guest did not dial"
                    return ours.pop()

            qemu = await asyncio.to_thread(take)
            qemu.setblocking(False)
            taken.append(qemu)
            return CuttableTransport(qemu)

        taken: list[socket.socket] = []
        guest = Guest(dial)
        link = await open_link(connect, deadline=DEADLINE)
        assert await link.call("echo", {"n": 1}) == {"n": 1}
        taken[0].shutdown(socket.SHUT_RDWR)
        assert await link.call("echo", {"n": 2}) == {"n": 2}
        assert len(taken) == 2
        await link.aclose()
        guest.stop()
        for sock in taken + ours:
            sock.close()

    run(test)
