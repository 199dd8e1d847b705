"""What all handlers share: checked parameters in, an answer or a `CallError` out, now or later."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.tasks import Promise, run
from wherry_guest.channel import DEFERRED, Call, CallError, Handler

T = TypeVar("T")

Answer = dict[str, Any] | None
Coro = Coroutine[Promise[Any], None, Answer]


class Params:
    """A call's parameters, read by name and type.

    Raises (all methods): CallError `invalid`, which names the parameter.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @property
    def values(self) -> Mapping[str, Any]:
        """All of them, as they came."""
        return self._values

    def text(self, name: str) -> str:
        return self._get(name, str)

    def number(self, name: str) -> int:
        return self._get(name, int)

    def mapping(self, name: str) -> dict[str, Any]:
        return self._get(name, dict)

    def items(self, name: str, kind: type[T]) -> list[T]:
        """A list whose items are all of one type."""
        values: list[Any] = self._get(name, list)
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise CallError("invalid", f"{name} must hold {kind.__name__}s only")
        return values

    def flag(self, name: str, default: bool = False) -> bool:
        return self._get(name, bool) if self.given(name) else default

    def optional_number(self, name: str) -> int | None:
        return self._get(name, int) if self.given(name) else None

    def seconds(self, name: str, default: float) -> float:
        """A duration, whole or not, that is not negative."""
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise CallError("invalid", f"{name} must be a number of seconds")
        return float(value)

    def optional_text(self, name: str) -> str:
        """ "" when it is not given."""
        return self._get(name, str) if self.given(name) else ""

    def optional_mapping(self, name: str) -> dict[str, Any] | None:
        return self._get(name, dict) if self.given(name) else None

    def identifier(self, name: str) -> str:
        """An id: it becomes a directory's name, so it must be `[a-zA-Z0-9][a-zA-Z0-9_.-]*`."""
        value = self._get(name, str)
        if not is_safe_name(value):
            raise CallError("invalid", f"{name} {value!r} is not [a-zA-Z0-9][a-zA-Z0-9_.-]*")
        return value

    def raw(self, name: str) -> Any:
        """Whatever was given; None when nothing was."""
        return self._values.get(name)

    def given(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _get(self, name: str, kind: type[T]) -> T:
        value = self._values.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            what = "is missing" if value is None else f"must be of type {kind.__name__}"
            raise CallError("invalid", f"{name} {what}")
        return value


def at_once(function: Callable[[Params], Answer]) -> Handler:
    """A handler that answers when it returns."""
    return lambda values, call: function(Params(values))


def later(function: Callable[[Params], Coro]) -> Handler:
    """A handler whose coroutine runs until its first wait at once, and answers when it is done."""

    def handle(values: dict[str, Any], call: Call) -> object:
        done = run(function(Params(values)))
        done.when_settled(lambda: _answer(call, done))
        return DEFERRED

    return handle


def one_line(error: BaseException) -> str:
    """An error as one line for a person; of an OSError the reason and the path."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _answer(call: Call, done: Promise[Answer]) -> None:
    try:
        result = done.result()
    except CallError as error:
        call.fail(error.code, error.message, error.data)
    except OSError as error:
        call.fail("failed", one_line(error))
    except Exception as error:
        call.fail("failed", one_line(error))
        raise  # a bug: the loop's hook writes the traceback to the console
    else:
        call.reply(result)
