"""The link to the agent: calls, events and streams over one connection that comes and goes.

The rule: the protocol is `wire.Connection`'s, and its session outlives transports. A cut transport
is opened again and nobody notices; only when the agent has lost the session (it was restarted, or
the machine was) do calls in flight fail and streams get reset, and `on_peer_restart` tells. All of
it runs in one event loop; bytes go out in the same step in which they are asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from wherry.errors import AgentError, LinkClosed, LinkError
from wherry.link.stream import Stream
from wherry.link.transport import Connect, Transport
from wherry_guest import wire

log = logging.getLogger(__name__)

OUTPUT_BATCH = 256 * 1024
RECONNECT_FIRST, RECONNECT_LIMIT = 0.01, 1.0
"""Seconds before another try to connect: at first, and after back-off."""

EVENT_RETRY_FIRST, EVENT_RETRY_LIMIT = 0.1, 10.0
"""Seconds before a failed handler is called with the same event again."""

_UNREACHED = "there is no connection to the machine: wherry doctor tells whether its QEMU hangs"


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something that happened in the guest; see docs/agent-calls.md.

    `id` counts from 1 in the agent's life; `time_ns` is nanoseconds since the epoch, in the guest.
    """

    id: int
    name: str
    time_ns: int
    payload: dict[str, Any]


EventHandler = Callable[[AgentEvent], Awaitable[None]]
PeerCallback = Callable[[dict[str, Any]], None]


async def open_link(
    connect: Connect,
    *,
    epoch: str | None = None,
    deadline: float = 30.0,
    hello: dict[str, Any] | None = None,
) -> Link:
    """Connect to the agent and shake hands.

    Args:
        connect: opens a transport; called again whenever there is none.
        epoch: names this end's life to the agent; a random one when None.
        deadline: seconds from now until the agent must have answered.
        hello: what the agent shall know of us, as JSON.

    Raises:
        LinkError: no answer in time, or the agent speaks another wire version.
    """
    link = Link(connect, epoch=epoch, hello=hello)
    try:
        async with asyncio.timeout(deadline):
            await link.established()
    except TimeoutError:
        cause = link.last_error
        await link.aclose()
        detail = f": {cause}" if cause is not None else ""
        raise LinkError(
            f"the agent did not answer within {deadline:g} s{detail}",
            hint="the machine's console log says how far it came",
        ) from cause
    except BaseException:
        await link.aclose()
        raise
    return link


class Link:
    """See `open_link`. Must be made, and used, in one running event loop.

    Attributes:
        last_error: why there was no transport, the last time.
    """

    def __init__(
        self, connect: Connect, *, epoch: str | None = None, hello: dict[str, Any] | None = None
    ) -> None:
        self._connect = connect
        self._conn = wire.Connection(wire.Role.HOST, hello, epoch=epoch)
        self._loop = asyncio.get_running_loop()
        self._transport: Transport | None = None
        self._congested = False
        self._gone = asyncio.Event()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._closed: LinkError | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._tick_after: float | None = None
        self._retry_after = RECONNECT_FIRST
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked: dict[int, float] = {}
        self._refusal: LinkError | None = None
        self._streams: dict[int, Stream] = {}
        self._sessions = 0
        self._heard = self._loop.time()
        self._events: asyncio.Queue[tuple[int, AgentEvent]] = asyncio.Queue()
        self._handler: asyncio.Future[EventHandler] = self._loop.create_future()
        self._on_connect: list[PeerCallback] = []
        self._on_peer_restart: list[PeerCallback] = []
        self.last_error: Exception | None = None
        self._tasks = [
            self._loop.create_task(self._keep_connected(), name="link: connect"),
            self._loop.create_task(self._deliver_events(), name="link: events"),
        ]

    @property
    def peer(self) -> dict[str, Any]:
        """The agent's HELLO: `wire` (version), `epoch`, `agent` and what else it tells."""
        return self._conn.peer or {}

    @property
    def connected(self) -> bool:
        """Whether the agent is there right now; without it calls wait."""
        return self._conn.established

    @property
    def closed(self) -> bool:
        """Whether the link is of no use any more."""
        return self._closed is not None

    async def established(self) -> None:
        """Wait until the agent has answered for the first time.

        Raises:
            LinkError: it speaks another wire version, or the link was closed.
        """
        await asyncio.shield(self._ready)

    async def call(
        self, method: str, params: dict[str, Any] | None = None, *, timeout: float | None = 30.0
    ) -> dict[str, Any]:
        """Call the agent; returns its result ({} when it has none).

        Args:
            timeout: seconds, also those spent without a connection; None: wait for ever.

        Raises:
            AgentError: the agent answered with an error.
            LinkClosed: the agent was restarted meanwhile, and whether it did what was asked is
                unknown; or `aclose`.
            LinkError: no answer in time.
        """
        if (refused := self._closed or self._refusal) is not None:
            raise refused
        id = self._conn.call(method, params or {})
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._calls[id] = answer
        self._asked[id] = self._loop.time()
        try:
            self._pump()
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as error:
            raise LinkError(
                f"the agent did not answer {method} within {timeout:g} s",
                hint=None if self.connected else _UNREACHED,
            ) from error
        finally:
            self._calls.pop(id, None)
            self._asked.pop(id, None)

    @property
    def silence(self) -> float:
        """Seconds for which calls have waited without anything being heard; 0: none waits."""
        if not self._asked:
            return 0.0
        return self._loop.time() - max(min(self._asked.values()), self._heard)

    def refuse(self, error: LinkError | None) -> None:
        """The agent cannot answer, as somebody knows: calls in flight fail with `error`, others at
        once, until None says that it can. Streams wait: they go on then."""
        self._refusal = error
        if error is not None:
            for waiting in self._calls.values():
                if not waiting.done():
                    waiting.set_exception(error)

    def open_stream(self) -> Stream:
        """A new stream; put its id into the parameters of the call that wants it.

        Raises:
            LinkClosed: after `aclose`.
        """
        if self._closed is not None:
            raise self._closed
        state = self._conn.streams.open()
        stream = self._streams[state.id] = Stream(self, state)
        return stream

    def on_event(self, handler: EventHandler) -> None:
        """Give each event to `handler`, one at a time, in order; events before that are kept.

        An event is acknowledged, and never sent again, once the handler has returned. When it
        raises, that is logged, and it gets the same event again.
        """
        if self._handler.done():
            self._handler = self._loop.create_future()
        self._handler.set_result(handler)

    def on_connect(self, callback: PeerCallback) -> None:
        """Call `callback(peer)` after every handshake from now on, also those that only resume."""
        self._on_connect.append(callback)

    def on_peer_restart(self, callback: PeerCallback) -> None:
        """Call `callback(peer)` whenever an agent has answered that did not know our session:
        calls in flight have failed and streams were reset before."""
        self._on_peer_restart.append(callback)

    def redirect(self, connect: Connect) -> None:
        """Leave the present transport and open others by `connect` from now on; the session, with
        all calls and streams, goes on over them."""
        self._connect = connect
        self._retry_after = RECONNECT_FIRST
        self._gone.set()

    async def aclose(self) -> None:
        """Close the connection; calls in flight fail with LinkClosed, streams are reset."""
        self._shut(LinkClosed("the link to the machine was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The transport.

    async def _keep_connected(self) -> None:
        try:
            while True:
                await self._connect_once()
                await asyncio.sleep(self._retry_after)
                self._retry_after = min(2 * self._retry_after, RECONNECT_LIMIT)
        except Exception as error:
            log.exception("the link has failed")
            self._shut(LinkClosed(f"the link to the machine has failed: {error}"))

    async def _connect_once(self) -> None:
        """Open a transport and stay until it is lost."""
        connect = self._connect
        try:
            transport = await connect()
        except (OSError, LinkError) as error:
            self.last_error = error
            return
        if connect is not self._connect:  # redirected meanwhile
            transport.close()
            return
        self._gone.clear()
        self._transport = transport
        self._congested = False
        self._conn.begin()
        transport.start(self)
        self._step([])
        try:
            await self._gone.wait()
        finally:
            self._drop_transport()

    def _drop_transport(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self._conn.lost()
            self._arm()
        self._gone.set()

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._heard = self._loop.time()
            self._step(self._conn.receive(data))

    def writable(self) -> None:
        self._congested = False
        self._pump()

    def connection_lost(self, error: Exception | None) -> None:
        self.last_error = error or LinkError("the machine closed the connection")
        self._gone.set()

    def _step(self, events: list[wire.Event]) -> None:
        for event in events:
            self._on_event(event)
        self._pump()
        if self._conn.patience != self._tick_after:
            self._arm()

    def _pump(self) -> None:
        """Write what there is to write, as far as the transport takes it."""
        conn = self._conn
        while self._transport is not None and not self._congested:
            pieces = conn.take(OUTPUT_BATCH)
            if not pieces:
                break
            self._congested = not self._transport.write(pieces)
        for event in conn.events():
            self._on_event(event)

    def _arm(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        self._tick_after = self._conn.patience
        if self._tick_after is not None:
            self._tick = self._loop.call_later(self._tick_after, self._on_tick)

    def _on_tick(self) -> None:
        events = self._conn.tick()
        self._arm()
        self._step(events)

    # What the connection says.

    def _on_event(self, event: wire.Event) -> None:
        match event:
            case wire.DataReceived(id, data):
                if (stream := self._streams.get(id)) is not None:
                    stream.received(data)
            case wire.ResultReceived(id, result):
                self._answer(id, result or {})
            case wire.ErrorReceived(id, code, message, data):
                self._answer(id, AgentError(message, code=code, data=data))
            case wire.Writable(id):
                if (stream := self._streams.get(id)) is not None:
                    stream.writable()
            case wire.StreamEnded(id):
                if (stream := self._streams.get(id)) is not None:
                    stream.peer_ended()
            case wire.StreamClosed(id, reason):
                if (stream := self._streams.pop(id, None)) is not None and reason is not None:
                    stream.was_reset(reason)
            case wire.EventReceived(id, name, time_ns, payload):
                agent_event = AgentEvent(id, name, time_ns, payload)
                self._events.put_nowait((self._sessions, agent_event))
            case _:
                self._on_session_event(event)

    def _on_session_event(self, event: wire.Event) -> None:
        match event:
            case wire.SessionStarted(peer):
                self._sessions += 1
                self._on_established(peer)
                if self._sessions > 1:
                    for callback in self._on_peer_restart:
                        callback(peer)
            case wire.SessionResumed(peer):
                self._on_established(peer)
            case wire.SessionEnded(reason):
                self._fail_all(LinkClosed(reason))
            case wire.Incompatible(peer):
                self._shut(_incompatible(peer))
            case wire.Broken(reason):
                self._give_up_transport(LinkError(f"the agent broke the protocol: {reason}"))
                self._retry_after = RECONNECT_LIMIT
            case wire.Silent():
                self._give_up_transport(LinkError("the agent does not answer"))
            case _:
                raise AssertionError(f"a host does not hear {event}")

    def _on_established(self, peer: dict[str, Any]) -> None:
        self._retry_after = RECONNECT_FIRST
        if not self._ready.done():
            self._ready.set_result(None)
        for callback in self._on_connect:
            callback(peer)

    def _give_up_transport(self, error: LinkError) -> None:
        log.warning("%s; connecting again", error)
        self.last_error = error
        self._gone.set()

    def _answer(self, id: int, answer: dict[str, Any] | AgentError) -> None:
        waiting = self._calls.get(id)
        if waiting is None or waiting.done():
            return  # whoever asked has given up
        if isinstance(answer, AgentError):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)

    def _fail_all(self, error: LinkError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.was_reset(str(error))
        for waiting in self._calls.values():
            if not waiting.done():
                waiting.set_exception(error)

    def _shut(self, error: LinkError) -> None:
        if self._closed is not None:
            return
        self._closed = error
        self._drop_transport()
        if self._tick is not None:
            self._tick.cancel()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # it may be that nobody waits
        self._fail_all(error)
        for task in self._tasks:
            task.cancel()

    async def _deliver_events(self) -> None:
        while True:
            session, event = await self._events.get()
            await self._handle(event)
            if session == self._sessions:  # else it is another agent's id by now
                self._conn.ack_event(event.id)
                self._pump()

    async def _handle(self, event: AgentEvent) -> None:
        """Give the event to the handler until it has stored it."""
        delay = EVENT_RETRY_FIRST
        while True:
            handler = await asyncio.shield(self._handler)
            try:
                await handler(event)
                return
            except Exception:
                log.exception("the event %s (%d) could not be handled", event.name, event.id)
            await asyncio.sleep(delay)
            delay = min(2 * delay, EVENT_RETRY_LIMIT)

    # What streams ask for.

    def stream_send(self, state: wire.StreamState, data: bytes) -> bool:
        writable = self._conn.streams.send(state, data)
        self._pump()
        return writable

    def stream_end(self, state: wire.StreamState) -> None:
        self._conn.streams.end(state)
        self._pump()

    def stream_reset(self, state: wire.StreamState, reason: str) -> None:
        self._streams.pop(state.id, None)
        self._conn.streams.reset(state, reason)
        self._pump()

    def stream_consumed(self, state: wire.StreamState, count: int) -> None:
        self._conn.streams.consumed(state, count)
        self._pump()


def _incompatible(peer: dict[str, Any]) -> LinkError:
    return LinkError(
        f"the agent speaks wire protocol {peer.get('wire')}, this engine {wire.VERSION}",
        hint="restart the machine, so that it boots the agent of this version",
    )
