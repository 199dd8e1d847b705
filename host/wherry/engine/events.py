"""Docker's events: stored with the change they tell of, read back, followed live.

An event is written in the transaction of its change, so that neither is without the other. A
follower holds a position and reads from the store, so a slow one costs nothing but its own time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from wherry.engine.model import Container, Event
from wherry.engine.state import State, Transaction
from wherry.errors import InvalidInput, StorageError

log = logging.getLogger(__name__)

Filters = Mapping[str, Sequence[str]]

_KNOWN_FILTERS = (
    "container", "event", "id", "image", "label", "network", "scope", "type", "volume",
)  # fmt: skip
_LATE_SECONDS = 0.05
"""How long an event that tells of no change of state may wait for a commit to travel with."""
_AGAIN_SECONDS = 5.0
"""Later, when it could not be stored: the disk is full."""


def container_event(container: Container, action: str, **attributes: str) -> Event:
    """An event of a container now: its image, labels and name are attributes, as Docker's."""
    return Event(
        "container",
        action,
        container.id,
        time.time_ns(),
        {**container.labels, "image": container.image, "name": container.name, **attributes},
    )


class EventBus:
    """The events of one machine."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._subscribers: set[Subscription] = set()
        self._late: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        state.on_events = self._notify

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction of the state; events that wait go along, before the block's own."""
        late, self._late = self._late, []
        try:
            with self._state.transaction() as transaction:
                for event in late:
                    transaction.add_event(event)
                yield transaction
        except BaseException:
            self._late[:0] = late
            raise
        self._stop_timer()

    def publish(self, event: Event) -> None:
        """Store an event by itself, now."""
        with self.transaction() as transaction:
            transaction.add_event(event)

    def publish_late(self, event: Event) -> None:
        """Store an event that changes nothing (attach, resize): soon, off every critical path, and
        as soon as it is possible while the disk is full."""
        self._late.append(event)
        if self._timer is None:
            self._store_in(_LATE_SECONDS)

    def flush(self) -> None:
        """Store what waits; what cannot be stored goes on waiting."""
        self._stop_timer()
        if not self._late:
            return
        try:
            with self.transaction():
                pass
        except StorageError as error:
            log.warning("%d events wait until they can be stored: %s", len(self._late), error)
            self._store_in(_AGAIN_SECONDS)

    def _store_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.flush)

    def subscribe(
        self,
        since_ns: int | None = None,
        until_ns: int | None = None,
        filters: Filters | None = None,
    ) -> Subscription:
        """Events from `since_ns` (None: from this call on) to `until_ns` (None: without end).

        The subscription counts from the call, not from the first event awaited.

        Raises:
            InvalidInput: a filter that there is not.
        """
        for name in filters or ():
            if name not in _KNOWN_FILTERS:
                raise InvalidInput(f"invalid filter '{name}'")
        self.flush()
        position = 0 if since_ns is not None else self._state.last_event()
        return Subscription(
            self._state, self._subscribers, position, since_ns or 0, until_ns, dict(filters or {})
        )

    def close(self) -> None:
        """End every subscription and store what waits, if that is possible."""
        self.flush()
        self._stop_timer()
        for subscriber in tuple(self._subscribers):
            subscriber.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _notify(self) -> None:
        for subscriber in self._subscribers:
            subscriber.wake()


class Subscription(AsyncIterator[Event]):
    """One follower of the events. Use it as an async iterator, and `close` it."""

    def __init__(
        self,
        state: State,
        registry: set[Subscription],
        position: int,
        since_ns: int,
        until_ns: int | None,
        filters: Filters,
    ) -> None:
        self._state = state
        self._registry = registry
        self._position = position
        self._since_ns = since_ns
        self._until_ns = until_ns
        self._filters = filters
        self._batch: list[Event] = []
        self._news = asyncio.Event()
        self._closed = False
        registry.add(self)

    def wake(self) -> None:
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._registry.discard(self)
        self._news.set()

    async def aclose(self) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._closed:
            while self._batch:
                event = self._batch.pop(0)
                if self._until_ns is not None and event.time_ns > self._until_ns:
                    continue
                if matches(event, self._filters):
                    return event
            self._news.clear()
            self._batch = self._state.events_after(self._position, since_ns=self._since_ns)
            if self._batch:
                self._position = self._batch[-1].seq
            elif not await self._wait():
                break
        self.close()
        raise StopAsyncIteration

    async def _wait(self) -> bool:
        """Wait for news; False when `until` has come."""
        if self._until_ns is None:
            await self._news.wait()
            return True
        left = (self._until_ns - time.time_ns()) / 1e9
        if left <= 0:
            return False
        try:
            async with asyncio.timeout(left):
                await self._news.wait()
        except TimeoutError:
            pass  # `until` has come: look once more, then end
        return True


def matches(event: Event, filters: Filters) -> bool:
    """Docker's rule: every filter must hold, any of a filter's values is enough."""
    return all(not wanted or _holds(event, name, wanted) for name, wanted in filters.items())


def _holds(event: Event, name: str, wanted: Sequence[str]) -> bool:
    if name == "type":
        return event.type in wanted
    if name == "event":
        return event.action in wanted or event.action.partition(":")[0] in wanted
    if name == "scope":
        return "local" in wanted
    if name == "label":
        return all(_has_label(event.attributes, label) for label in wanted)
    if name == "id":
        return any(event.actor_id.startswith(value) for value in wanted)
    if name == "image" and event.type == "container":
        return any(_same_image(event.attributes.get("image", ""), value) for value in wanted)
    if event.type != name:
        return False
    return any(_is_actor(event, value.removeprefix("/")) for value in wanted)


def _is_actor(event: Event, value: str) -> bool:
    return event.actor_id.startswith(value) or event.attributes.get("name") == value


def _has_label(attributes: Mapping[str, Any], label: str) -> bool:
    name, separator, value = label.partition("=")
    return name in attributes and (not separator or attributes[name] == value)


def _same_image(image: str, wanted: str) -> bool:
    """`busybox` matches `busybox:1.36`, as Docker's filter does."""
    return image == wanted or image.partition("@")[0].rpartition(":")[0] == wanted
