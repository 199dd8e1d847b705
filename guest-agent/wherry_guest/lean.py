"""The standard library as the two processes need it that stay in the guest's memory.

`typing` is for type checkers, and `inspect` (with the parser's tree, the disassembler and the
tokenizer) is there so that `dataclasses` can write docstrings; of each data class's methods a third
is for people who debug. PID 1 and the agent have a small `typing` and a small `inspect` instead,
and data classes with less code of their own: 2.8 MB less in each, and a third less time for imports
(docs/machine.md, "Memory of the guest's own processes").

Rules: only what runs as /init, or as an agent, calls this, first of all. Nothing of ours behaves
otherwise, but that a frozen object could be changed: our tests, which run without this, would
notice. Who asks a small module for what it does not have is given the real one's. This file itself
imports neither.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def make_lean() -> None:
    """Prepare for imports to come; what has been imported already stays as it is."""
    if "typing" not in sys.modules:
        _Small("typing", _typing())
    if "dataclasses" not in sys.modules:
        _import_dataclasses()


class _Small(type(sys)):  # type: ignore[misc]  # the type of modules; `types` is not imported
    """A module in place of a bigger one, until somebody asks for more."""

    def __init__(self, name: str, contents: dict[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(contents)
        sys.modules[name] = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # __path__ and such, asked by the import system itself
            raise AttributeError(name)
        self.withdraw()
        return getattr(__import__(self.__name__), name)

    def withdraw(self) -> None:
        """From now on the real one is imported."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


# typing


def _typing() -> dict[str, Any]:
    special = ("Any", "ClassVar", "Final", "NoReturn", "_GenericAlias")
    return {
        **{name: _Special(name, (), {}) for name in special},
        "TYPE_CHECKING": False,
        "Generic": _Generic,
        "Protocol": _Generic,
        "TypeVar": _Special("TypeVar", (), {"__new__": lambda cls, *_, **__: cls}),
        "NamedTuple": _NamedTuple(),
    }


class _Special(type):
    """A name for annotations: it can be subscripted, and be an alternative."""

    def __getitem__(cls, _parameters: object) -> _Special:
        return cls


class _Generic:
    def __class_getitem__(cls, _parameters: object) -> type:
        return cls


class _NamedTuple:
    """`class A(NamedTuple)`: PEP 560."""

    def __mro_entries__(self, _bases: tuple[object, ...]) -> tuple[type]:
        return (_named_tuple,)


class _MakesNamedTuple(type):
    def __new__(cls, name: str, _bases: tuple[type, ...], own: dict[str, Any]) -> Any:
        from collections import namedtuple

        names = list(own.get("__annotations__", ()))
        defaults = [own[it] for it in names if it in own]
        module = own["__module__"]
        made = namedtuple(name, names, defaults=defaults, module=module)  # type: ignore[misc]  # computed
        for key, value in own.items():
            if key not in names and key not in ("__module__", "__annotations__"):
                setattr(made, key, value)
        return made


_named_tuple: Any = type.__new__(_MakesNamedTuple, "NamedTuple", (), {})


# dataclasses


def _import_dataclasses() -> None:
    small = None
    if "inspect" not in sys.modules:
        small = _Small("inspect", {"signature": _signature, "get_annotations": _own_annotations})
    try:
        import dataclasses
    finally:
        if small is not None:
            small.withdraw()
    module: Any = dataclasses
    module.dataclass = _lean_dataclass(module.dataclass)


def _signature(_class: object) -> str:
    """For a class without a docstring: `dataclasses` then writes its name alone."""
    raise ValueError("nobody reads it here")


def _own_annotations(of: type) -> dict[str, Any]:
    return dict(of.__dict__.get("__annotations__") or {})  # noqa: RUF063 - it is what is spared


def _lean_dataclass(real: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator like `real`, with one `__repr__` for all, and no methods against changes."""

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        def make(cls: type) -> Any:
            own = cls.__dict__
            hashable = options.get("frozen") and options.get("eq", True) and "__hash__" not in own
            lean = {"repr": False, "frozen": False}
            if hashable:
                lean["unsafe_hash"] = True
            made = real(cls, **{**options, **lean})
            if options.get("repr", True) and "__repr__" not in own:
                made.__repr__ = _shown
            return made

        return make if cls is None else make(cls)

    return dataclass


def _shown(self: Any) -> str:
    """As a data class's own `__repr__`."""
    from dataclasses import fields

    shown = (it.name for it in fields(self) if it.repr)
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
    return f"{type(self).__qualname__}({values})"
