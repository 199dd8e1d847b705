"""Reading a JSON object field by field: types checked, ranges checked, nothing ignored.

Rules: pure; every complaint names the field by its whole path (`linux.resources.pids.limit`); what
nobody read and is not at its default (absent, null, false, 0, "", [] or {}) is a complaint too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

T = TypeVar("T")


class SpecError(Exception):
    """The spec is wrong, or asks for what is not supported; the message names the field."""


class Fields:
    """A JSON object that is read field by field and complains about what was not read."""

    __slots__ = ("_data", "_seen", "path")

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, Mapping):
            raise SpecError(f"{path or 'the spec'} must be an object")
        self._data = data
        self.path = path
        self._seen: set[str] = set()

    def name(self, field: str) -> str:
        """The whole path of one of its fields."""
        return f"{self.path}.{field}" if self.path else field

    def get(self, field: str, kind: type[T], default: T) -> T:
        self._seen.add(field)
        value = self._data.get(field)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SpecError(f"{self.name(field)} must be of type {_JSON_TYPES[kind]}")
        return value

    def integer(self, field: str, default: int, low: int = -(2**63), high: int = 2**64 - 1) -> int:
        value = self.get(field, int, default)
        if not low <= value <= high:
            raise SpecError(f"{self.name(field)} {value} is not from {low} to {high}")
        return value

    def optional(self, field: str) -> int | None:
        return None if self._data.get(field) is None else self.integer(field, 0)

    def object(self, field: str) -> Fields:
        return Fields(self.get(field, dict, {}), self.name(field))

    def objects(self, field: str) -> list[Fields]:
        items = self.get(field, list, [])
        return [Fields(item, f"{self.name(field)}[{index}]") for index, item in enumerate(items)]

    def members(self, field: str) -> list[tuple[str, Fields]]:
        """The members of an object whose keys are names, not fields."""
        items = self.get(field, dict, {})
        return [(key, Fields(item, f"{self.name(field)}.{key}")) for key, item in items.items()]

    def list(self, field: str, kind: type[T]) -> list[T]:
        items: list[Any] = self.get(field, list, [])
        for item in items:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise SpecError(f"{self.name(field)} must hold {_JSON_TYPES[kind]}s only")
        return items

    def strings(self, field: str) -> tuple[str, ...]:
        items = self.list(field, str)
        for item in items:
            if "\0" in item:
                raise SpecError(f"{self.name(field)} has a NUL byte in {item!r}")
        return tuple(items)

    def paths(self, field: str) -> tuple[str, ...]:
        for path in (items := self.strings(field)):
            if not path.startswith("/"):
                raise SpecError(f"{self.name(field)} has {path!r}, which is not absolute")
        return items

    def pairs(self, field: str) -> tuple[tuple[str, str], ...]:
        items = self.get(field, dict, {})
        for key, value in items.items():
            if not isinstance(value, str):
                raise SpecError(f"{self.name(field)}.{key} must be a string")
        return tuple(items.items())

    def refuse_unless_default(self, field: str, reason: str) -> None:
        """Complain, with the reason, when `field` is not at its default."""
        self._seen.add(field)
        if not _is_default(self._data.get(field)):
            raise SpecError(f"{self.name(field)} is not supported: {reason}")

    def finish(self) -> None:
        """Complain about the first field that nobody read and that is not at its default."""
        for field, value in self._data.items():
            if field not in self._seen and not _is_default(value):
                raise SpecError(f"{self.name(field)} is not supported")


def _is_default(value: object) -> bool:
    return value in (None, False, 0, "", [], {})


_JSON_TYPES: Final[Mapping[Any, str]] = {
    str: "string", int: "integer", bool: "boolean", dict: "object", list: "array",
}  # fmt: skip
