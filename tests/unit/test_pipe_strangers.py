"""A pipe's name is everybody's: who serves ours and is no engine is told, and not waited for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from wherry import hung
from wherry.connection import Connection
from wherry.errors import EngineUnreachable
from wherry.hung import Guard
from wherry.osutil import lock_file
from wherry.paths import MachinePaths

PIPE = r"\\.\pipe\wherry-default-0a1b2c3d"
SILENT = cast(Connection, object())


class Answers:
    """Says nothing for so many looks."""

    def __init__(self, after: int) -> None:
        self.looks = 0
        self._after = after

    def __call__(self, connection: Connection, seconds: float) -> bool:
        assert connection is SILENT
        self.looks += 1
        return self.looks > self._after


@pytest.fixture
def paths(tmp_path: Path) -> MachinePaths:
    return MachinePaths(tmp_path / "m", tmp_path / "m", pipe=PIPE)


@pytest.mark.parametrize("ever_used", [True, False])
def test_a_stranger_with_our_pipe_is_told(
    paths: MachinePaths, ever_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ever_used:
        paths.root.mkdir()
    monkeypatch.setattr(hung, "readable", Answers(after=100))
    with pytest.raises(EngineUnreachable, match="in use by a program that is no engine") as caught:
        Guard(paths, "default").wait_readable(SILENT)
    assert PIPE in caught.value.message
    assert "WHERRY_HOME" in (caught.value.hint or "")


def test_an_engine_that_takes_its_time_is_waited_for(
    paths: MachinePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.root.mkdir()
    answers = Answers(after=3)
    monkeypatch.setattr(hung, "readable", answers)
    with lock_file(paths.engine_lock):
        Guard(paths, "default").wait_readable(SILENT)
    assert answers.looks == 4
