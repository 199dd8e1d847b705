"""The house rule that no two rooms import each other, directly or through others.

What is imported for types only counts too: a reader has to follow it all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["host/wherry", "guest-agent/wherry_guest", "vm-images/wherry_image"]


def modules(package: Path) -> dict[str, Path]:
    """Every module below the directory `package`, by its dotted name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """The modules of `known` that `path` imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield from [whole] if whole in known else {base} & known


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_imports_who_imports_them(package: str) -> None:
    found = modules(ROOT / package)
    graph = {name: set(imported(name, path, set(found))) - {name} for name, path in found.items()}
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("a circle: " + " <- ".join(error.args[1])) from None
