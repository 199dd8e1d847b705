"""What a newcomer's slips get: a clear line, never a traceback."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

import wherry.__main__ as program
from wherry.cli import template
from wherry.cli.main import run
from wherry.cli.main import wherry as root
from wherry.cli.output import print_rows
from wherry.cli.stats import _rows
from wherry.client import _target
from wherry.errors import EngineUnreachable, InvalidInput

posix = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell's redirections and signals")


def _wherry(words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, WHERRY_HOME=str(home), PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m wherry {words}', sys.executable],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@posix
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_cause_no_traceback(tmp_path: Path, closed: str) -> None:
    done = _wherry(f"machine ls {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@posix
def test_an_interrupt_during_imports_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(program.gc, "disable", lambda: None)
    monkeypatch.setattr(
        program, "_open_missing_streams", lambda: signal.raise_signal(signal.SIGINT)
    )
    program.main()
    assert codes == [130]
    assert capsys.readouterr().err == ""


@posix
def test_a_mistyped_machine_is_not_made(tmp_path: Path) -> None:
    done = _wherry("-M tpyo ps", tmp_path)
    assert done.returncode == 1
    assert "wherry: no machine 'tpyo'" in done.stderr
    assert "wherry machine create tpyo" in done.stderr
    assert not (tmp_path / "machines" / "tpyo").exists()


@pytest.mark.parametrize("text", ["{{.", "{{.Names} }", "{{", "{{.Names |}}"])
def test_a_template_that_cannot_be_one_is_refused_before_there_are_rows(text: str) -> None:
    with pytest.raises(InvalidInput, match="template"):
        print_rows([], {"Names": "NAMES"}, format=text)


@pytest.mark.parametrize("text", ["", "}}", "{ {", "table {{.Names}}", "{{json .}}", "x"])
def test_other_texts_are_templates(text: str) -> None:
    template.check(text)


class _Unreachable:
    machine = "default"

    def client_of(self, _machine: str) -> _Unreachable:
        return self

    def request(self, *_args: object, **_options: object) -> None:
        raise EngineUnreachable("the engine ended")


def test_an_engine_that_ends_under_stats_is_told_once() -> None:
    with pytest.raises(EngineUnreachable, match="the engine ended"):
        _rows(_Unreachable(), ["a", "b"], False, strict=False)  # type: ignore[arg-type]  # a fake


def _commands(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, click.Context]]:
    context = click.Context(command, info_name=path[-1])
    found = [(" ".join(path), context)]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += _commands(child, (*path, name))
    return found


def test_every_command_and_every_flag_has_a_help_and_no_summary_is_cut_off() -> None:
    for path, context in _commands(root, ("wherry",)):
        command = context.command
        assert command.help, path
        cut_off = re.search(r"[a-z]\.\.\.", command.get_help(context))  # COMMAND... is none
        assert cut_off is None, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{path} {parameter.opts}"


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("web", "web"),
        ("caf\u00e9", "caf%C3%A9"),
        ("a b", "a%20b"),
        ("a?b#c", "a%3Fb%23c"),
        ("\udcff", "%FF"),
        ("r.example:5000/a/b:1", "r.example:5000/a/b:1"),
        ("a/b@sha256:00", "a/b@sha256:00"),
    ],
)
def test_a_name_stays_a_name_in_a_request_whatever_was_typed(typed: str, sent: str) -> None:
    path = f"/wherry/v1/x/{typed}/json"
    assert _target(path, {"n": 1}) == f"/wherry/v1/x/{sent}/json?n=1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pul"], "No such command 'pul'. Did you mean 'pull'?"),
        (["machine", "strat"], "Did you mean 'start'?"),
        (["volume", "lst"], "Did you mean 'ls'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
    ],
)
def test_a_mistyped_command_is_told_with_the_likely_one(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 125
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", ["system", "image"])
def test_a_question_that_nobody_answers_is_no_success(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run([command, "prune"]) == 130
    assert capsys.readouterr().err.endswith("[y/N]: \n")
