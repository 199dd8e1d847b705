"""`dataclasses` without `inspect`: what the guest does without, and that nobody notices it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import wherry_guest

PACKAGE = Path(next(iter(wherry_guest.__path__)))


def lean(code: str) -> str:
    """What `code` prints in a process that has imported `dataclasses` as PID 1 does."""
    before = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    before += "from wherry_guest.lean import import_dataclasses; import_dataclasses()\n"
    command = [sys.executable, "-IS", "-c", before + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


CLASSES = """
from dataclasses import dataclass, field, fields, replace
@dataclass(frozen=True, slots=True)
class Plain:
    a: int
    b: list[int] = field(default_factory=list)
@dataclass
class Told(Plain if False else object):
    "As the author says."
    c: str = "x"
"""


def test_neither_the_tokenizer_nor_the_disassembler_is_loaded() -> None:
    loaded = lean(f"{CLASSES}\nprint(*sys.modules)").split()
    assert "dataclasses" in loaded
    assert not {"inspect", "ast", "dis", "tokenize"} & set(loaded)


def test_classes_are_as_they_are_with_it() -> None:
    shown = """
print([(f.name, f.type) for f in fields(Plain)], Plain(1), replace(Plain(1), a=2) == Plain(2))
print(Told.__doc__, Plain.__match_args__, hash(Plain(1, ())) == hash(Plain(1, ())))
"""
    plain = subprocess.run(
        [sys.executable, "-IS", "-c", CLASSES + shown],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert lean(CLASSES + shown) == plain.stdout.strip()


def test_a_class_without_a_docstring_is_called_by_its_name() -> None:
    assert lean(f"{CLASSES}\nprint(Plain.__doc__)") == "Plain"


def test_who_imports_inspect_afterwards_gets_all_of_it() -> None:
    assert lean("import inspect; print(inspect.isfunction(lambda: 0), inspect.__file__ != '')") == (
        "True True"
    )


def test_what_the_stand_in_does_not_have_comes_from_the_real_one() -> None:
    code = "import dataclasses; print(dataclasses.inspect.isfunction(lambda: 0))"
    assert lean(code) == "True"


def test_who_has_loaded_dataclasses_already_keeps_it() -> None:
    code = (
        f"import sys, dataclasses; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
        "from wherry_guest.lean import import_dataclasses; import_dataclasses()\n"
        "print(dataclasses.inspect is sys.modules['inspect'])"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "True"
