"""The small `typing`, `inspect` and data classes of the guest: what stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wherry_guest

PACKAGE = Path(next(iter(wherry_guest.__path__)))

LEAN = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
from wherry_guest.lean import make_lean
make_lean()
"""

CLASSES = """
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

class Speaks(Protocol):
    def speak(self) -> None: ...

class Box(Generic[T]):
    pass

@dataclass(frozen=True, slots=True)
class Plain:
    a: int
    b: tuple[int, ...] = field(default=())
    c: str = field(default="secret", repr=False)

@dataclass
class Told:
    "As the author says."
    kind: ClassVar[str] = "told"
    d: Any = None

@dataclass(frozen=True)
class Own:
    e: int
    def __hash__(self): return 7
    def __repr__(self): return "mine"

@dataclass(eq=False)
class Single:
    f: int = 1

class Pair(NamedTuple):
    left: int
    right: str = "r"
    def both(self): return f"{self.left}{self.right}"
"""

QUESTIONS = [
    "[(it.name, it.type) for it in fields(Plain)], [it.name for it in fields(Told)]",
    "Plain(1), Told(Plain(2)), Own(1), Pair(1)",
    "Plain(1) == Plain(1), Plain(1) == Plain(2), Plain(1) == 1, Single() == Single()",
    "len({Plain(1), Plain(1), Plain(2)}), hash(Own(1)), Told.__hash__",
    "replace(Plain(1), a=2), Plain.__match_args__, Plain.__slots__",
    "Told.__doc__, Told.kind",
    "Pair(1).both(), Pair._fields, Pair(left=1) == (1, 'r'), isinstance(Pair(1), tuple)",
    "Box[int]() is not None, Speaks is not None",
]


def printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("question", QUESTIONS)
def test_classes_answer_as_they_do_without(question: str) -> None:
    code = f"{CLASSES}\nprint({question})"
    assert printed(LEAN + code) == printed(code)


def test_what_is_for_people_and_type_checkers_is_not_loaded() -> None:
    loaded = printed(f"{LEAN}{CLASSES}\nprint(*sys.modules)").split()
    assert "dataclasses" in loaded
    assert not {"ast", "dis", "tokenize"} & set(loaded)
    assert printed(f"{LEAN}{CLASSES}\nprint(hasattr(sys.modules['typing'], '__file__'))") == "False"


@pytest.mark.skipif(sys.platform == "win32", reason="other modules of the standard library")
@pytest.mark.parametrize("module", ["wherry_guest.core.pid1", "wherry_guest.agent.server"])
def test_no_module_of_ours_asks_for_more(module: str) -> None:
    code = f"import {module}\nprint(hasattr(sys.modules['typing'], '__file__'), *sys.modules)"
    real_typing, *loaded = printed(LEAN + code).split()
    assert real_typing == "False"
    assert not {"inspect", "ast", "dis", "tokenize"} & set(loaded)


def test_a_class_without_a_docstring_is_called_by_its_name() -> None:
    assert printed(f"{LEAN}{CLASSES}\nprint(Plain.__doc__)") == "Plain"


def test_who_asks_for_more_gets_the_real_module() -> None:
    more = "import typing, inspect\nprint(typing.get_origin(list[int]) is list, inspect.__name__)"
    assert printed(LEAN + more) == "True inspect"
    asked_by_another = "import dataclasses\nprint(dataclasses.inspect.isfunction(lambda: 0))"
    assert printed(LEAN + asked_by_another) == "True"


def test_what_was_imported_before_stays_as_it_is() -> None:
    before = "import dataclasses, typing\nreal = dataclasses.dataclass, typing.Any\n"
    after = "print((dataclasses.dataclass, sys.modules['typing'].Any) == real)"
    assert printed(before + LEAN + after) == "True"
