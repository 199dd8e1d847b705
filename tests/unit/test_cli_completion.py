"""Completion: the scripts, and what they get from us."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from wherry.cli.main import wherry


@pytest.mark.parametrize("shell", ["bash", "fish", "powershell", "zsh"])
def test_each_shell_has_a_script_that_asks_us(shell: str) -> None:
    said = CliRunner().invoke(wherry, ["completion", shell])
    assert said.exit_code == 0, said.output
    assert "_WHERRY_COMPLETE" in said.output
    assert f"{shell}_complete" in said.output


def test_an_unknown_shell_is_told_which_there_are() -> None:
    said = CliRunner().invoke(wherry, ["completion", "tcsh"])
    assert said.exit_code == 2
    assert "powershell" in said.output


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [("wherry vol", "vol", "volume\tManage volumes"), ("wherry run --rea", "--rea", "--read-only")],
)
def test_powershell_gets_commands_and_flags(line: str, word: str, expected: str) -> None:
    asked = {"_WHERRY_COMPLETE": "powershell_complete", "COMP_WORDS": line, "COMP_WORD": word}
    done = subprocess.run(
        [sys.executable, "-m", "wherry"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **asked},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert expected in done.stdout, done.stderr
