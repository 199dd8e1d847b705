"""`async def` without asyncio: a coroutine runs on the caller's stack until it awaits a `Promise`.

Sans-I/O, single-threaded: whoever settles a promise runs, right there, what waited for it. asyncio
would do the same for 100 ms of imports on an emulated CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Promise(Generic[T]):
    """A value that somebody delivers once, by `resolve` or `reject`; the first delivery counts."""

    __slots__ = ("_error", "_settled", "_value", "_waiters")

    def __init__(self) -> None:
        self._settled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiters: list[Callable[[], None]] = []

    @property
    def settled(self) -> bool:
        return self._settled

    def resolve(self, value: T) -> None:
        if not self._settled:
            self._value = value
            self._settle()

    def reject(self, error: BaseException) -> None:
        if not self._settled:
            self._error = error
            self._settle()

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call back once it is settled; at once when it is."""
        if self._settled:
            callback()
        else:
            self._waiters.append(callback)

    def result(self) -> T:
        """The value, or the error raised. Only when it is settled."""
        if self._error is not None:
            raise self._error
        assert self._settled
        return self._value  # type: ignore[return-value]  # settled by resolve, so it is a T

    def __await__(self) -> Generator[Promise[Any], None, T]:
        if not self._settled:
            yield self
        return self.result()

    def _settle(self) -> None:
        self._settled = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()


def run(coroutine: Coroutine[Promise[Any], None, T]) -> Promise[T]:
    """Start the coroutine now and drive it to its end; what it raises rejects the promise."""
    done: Promise[T] = Promise()

    def advance() -> None:
        try:
            awaited = coroutine.send(None)
        except StopIteration as stop:
            done.resolve(stop.value)
        except Exception as error:  # noqa: BLE001  # it is delivered to whoever awaits the result
            done.reject(error)
        else:
            awaited.when_settled(advance)

    advance()
    return done
