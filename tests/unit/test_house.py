"""The house rules as tests: style, types on three platforms, imports, what fits in a head."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["host", "guest-agent", "vm-images"]
PACKAGES = ["wherry", "wherry_guest", "wherry_image"]
MODULE_LINES = 550
FUNCTION_LINES = 75
"""Generous readings of "about 500" and "about 60"."""


def run(*argv: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(argv)}\n{result.stdout}{result.stderr}"


def modules() -> list[Path]:
    return [path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py"))]


def test_the_style_is_kept() -> None:
    run("ruff", "check", *SOURCES, "tests")
    run("ruff", "format", "--check", *SOURCES, "tests")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_types_hold(platform: str) -> None:
    packages = [part for package in PACKAGES for part in ("-p", package)]
    run("mypy", "--platform", platform, "--cache-dir", f".mypy_cache/{platform}", *packages)


def test_nobody_imports_whom_they_must_not() -> None:
    code = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in modules() if not ast.get_docstring(ast.parse(path.read_bytes()))]
    assert not silent


def test_modules_and_functions_fit_in_a_head() -> None:
    crowded = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MODULE_LINES:
            crowded.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > FUNCTION_LINES:
                    crowded.append(f"{path.relative_to(ROOT)}:{node.name}: {length} lines")
    assert not crowded, "\n".join(crowded)


def test_the_guest_uses_only_the_standard_library() -> None:
    foreign = set()
    for path in sorted((ROOT / "guest-agent").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign |= {
                f"{path.name}: {name}"
                for name in names
                if name.partition(".")[0] not in (*sys.stdlib_module_names, "wherry_guest")
            }
    assert not foreign
