"""The part of Go's template language that `--format` needs. Pure.

Understood: text, `{{.}}`, `{{.Field.Sub}}`, `{{json .Field}}`, and the functions upper, lower,
title, len, println, also in a pipeline (`{{.Names | upper}}`), `{{join .List ", "}}` and
`{{index .Map "key"}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from wherry.errors import InvalidInput

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s|]+|\|')
_ESCAPES = {r"\t": "\t", r"\n": "\n"}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "upper": lambda value: _text(value).upper(),
    "lower": lambda value: _text(value).lower(),
    "title": lambda value: _text(value).title(),
    "len": len,
    "println": lambda value: f"{_text(value)}\n",
    "join": lambda values, separator: separator.join(_text(value) for value in values or ()),
    "index": lambda values, key: values[key],
}


def render(template: str, data: Any) -> str:
    """Fill `template` with `data`.

    Raises:
        InvalidInput: an action that is not understood, or a field that is not there.
    """
    check(template)
    for escape, character in _ESCAPES.items():
        template = template.replace(escape, character)
    return _ACTION.sub(lambda match: _text(_evaluate(match[1], data)), template)


def check(template: str) -> None:
    """Whether a template can be one, before there is anything to fill it with.

    Raises:
        InvalidInput: an action that is not closed, or not complete.
    """
    for action in _ACTION.findall(template):
        _stages(action)
    if "{{" in _ACTION.sub("", template):
        raise InvalidInput("template: unclosed action", hint="write {{.Name}}, or json")


def fields(template: str) -> list[str]:
    """The names of the fields that a template shows, for the headings of a table."""
    return [
        word.rpartition(".")[2]
        for action in _ACTION.findall(template)
        for word in _WORD.findall(action)
        if word.startswith(".") and len(word) > 1
    ]


def _evaluate(action: str, data: Any) -> Any:
    value: Any = None
    piped: list[Any] = []
    for stage in _stages(action):
        name, *rest = stage
        if name in _FUNCTIONS:
            arguments = [_operand(word, data, action) for word in rest] + piped
            try:
                value = _FUNCTIONS[name](*arguments)
            except (TypeError, KeyError, IndexError, AttributeError) as error:
                raise InvalidInput(f"template: {{{{{action}}}}}: {error}") from error
        elif rest:
            raise InvalidInput(
                f"template: {{{{{action}}}}} is not understood",
                hint=f"known functions: {', '.join(sorted(_FUNCTIONS))}",
            )
        else:
            value = _operand(name, data, action)
        piped = [value]
    return value


def _stages(action: str) -> list[list[str]]:
    stages: list[list[str]] = [[]]
    for word in _WORD.findall(action):
        if word == "|":
            stages.append([])
        else:
            stages[-1].append(word)
    if not all(stages):
        raise InvalidInput(f"template: {{{{{action}}}}} is not complete")
    return stages


def _operand(word: str, data: Any, action: str) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.isdigit():
        return int(word)
    if not word.startswith("."):
        raise InvalidInput(
            f"template: {{{{{action}}}}} is not understood",
            hint=f"known functions: {', '.join(sorted(_FUNCTIONS))}",
        )
    value = data
    for name in filter(None, word.split(".")):
        if not isinstance(value, dict) or name not in value:
            raise InvalidInput(f"template: no field {name!r} in {{{{{action}}}}}")
        value = value[name]
    return value


def _text(value: Any) -> str:
    """As Go prints it: true, <no value>, [a b], map[k:v]."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{' '.join(_text(item) for item in value)}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{_text(item)}' for key, item in sorted(value.items()))}]"
    return str(value)
