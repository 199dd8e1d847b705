"""`--change` of `commit` and `import`: Dockerfile instructions that edit an image's config. Pure.

What each does is Dockerfile reference's (docs.docker.com/reference/dockerfile), as Docker's commit
applies it: several instructions, in order, on one config; no build arguments. `SHELL` is taken too.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.errors import InvalidInput
from wherry.images.words import expand, split_words
from wherry.units import parse_duration

DEFAULT_SHELL = ("/bin/sh", "-c")

_SIGNALS = frozenset(
    (
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV",
        "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN",
        "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS",
    )
)  # fmt: skip
"""signal(7), without SIG."""
_REAL_TIME = re.compile(r"RTMIN(\+([1-9]|1[0-5]))?|RTMAX(-([1-9]|1[0-4]))?")
_SIGNALS_MAX = 64
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_PORT_MAX = 65535
_SHORTEST_NS = 10**6
"""Docker's least duration in a health check, but for 0."""
_HEALTH_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_NOT_TRIGGERS = ("ONBUILD", "FROM", "MAINTAINER")


def apply_changes(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of `config` (an OCI image config's "config": `Env`, `Cmd`, …) with `changes` applied.

    Args:
        changes: each one instruction, or several lines of them: CMD, ENTRYPOINT, ENV, EXPOSE,
            HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR. `$NAME` stands
            for a variable of the config's `Env` where a Dockerfile has it so.

    Raises:
        InvalidInput: another instruction, or one that is malformed; names it.
    """
    edit = _Edit({key: _copied(value) for key, value in config.items()})
    for line in _lines("\n".join(changes)):
        name, _, rest = line.partition(" ")
        instruction = _INSTRUCTIONS.get(name.upper())
        if instruction is None:
            raise InvalidInput(
                f"{name[:40]} is not a valid change command",
                hint=f"known: {', '.join(sorted(_INSTRUCTIONS))}",
            )
        try:
            instruction(edit, rest.strip())
        except ValueError as error:
            raise InvalidInput(f"change {line[:120]!r}: {error}") from error
    return edit.config


@dataclass
class _Edit:
    """The config as it becomes."""

    config: dict[str, Any]
    command_set: bool = field(default=False)
    """A CMD stood before: an ENTRYPOINT keeps it."""

    def environment(self) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in self.config.get("Env") or ())
        return {name: value for name, _, value in pairs}

    def expanded(self, word: str) -> str:
        return expand(word, self.environment())

    def expanded_words(self, text: str) -> list[str]:
        """JSON's strings, or words between white space."""
        given = _json_words(text)
        words = split_words(text) if given is None else given
        return [self.expanded(word) for word in words]

    def mapping(self, key: str) -> dict[str, Any]:
        if not isinstance(self.config.get(key), dict):
            self.config[key] = {}
        found: dict[str, Any] = self.config[key]
        return found

    def command(self, text: str) -> list[str]:
        """JSON's words as they are, anything else for the shell."""
        words = _json_words(text)
        if words is not None:
            return words
        return [*(self.config.get("Shell") or DEFAULT_SHELL), text] if text else []


def _cmd(edit: _Edit, text: str) -> None:
    edit.config["Cmd"] = edit.command(text)
    edit.config.pop("ArgsEscaped", None)
    edit.command_set = True


def _entrypoint(edit: _Edit, text: str) -> None:
    edit.config["Entrypoint"] = edit.command(text) or None
    if not edit.command_set:
        edit.config.pop("Cmd", None)  # it was made for another entrypoint


def _env(edit: _Edit, text: str) -> None:
    new = [(edit.expanded(name), edit.expanded(value)) for name, value in _pairs(text)]
    entries = list(edit.config.get("Env") or ())
    for name, value in new:
        if not name:
            raise ValueError("a variable's name is empty")
        places = [n for n, entry in enumerate(entries) if entry.partition("=")[0] == name]
        if places:
            entries[places[0]] = f"{name}={value}"
        else:
            entries.append(f"{name}={value}")
    edit.config["Env"] = entries


def _label(edit: _Edit, text: str) -> None:
    labels = edit.mapping("Labels")
    for name, value in _pairs(text):
        key = edit.expanded(name)
        if not key:
            raise ValueError("a label's name is empty")
        labels[key] = edit.expanded(value)


def _expose(edit: _Edit, text: str) -> None:
    words = [edit.expanded(word) for word in split_words(text)]
    if not words:
        raise ValueError("it needs a port")
    ports = edit.mapping("ExposedPorts")
    for word in words:
        for port in _ports(word):
            ports[port] = {}


def _ports(word: str) -> list[str]:
    match = _PORT.fullmatch(word.rpartition(":")[2])  # HOST:PORT is taken, the host's part is not
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else 0
    if match is None or not 0 < first <= last <= _PORT_MAX:
        raise ValueError(f"{word!r} is not a port: PORT, PORT-PORT or PORT/PROTOCOL")
    protocol = (match[3] or "tcp").lower()
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _volume(edit: _Edit, text: str) -> None:
    words = [word.strip() for word in edit.expanded_words(text)]
    if not words or not all(words):
        raise ValueError("it needs a path, and none may be empty")
    volumes = edit.mapping("Volumes")
    for word in words:
        volumes[word] = {}


def _workdir(edit: _Edit, text: str) -> None:
    path = edit.expanded(text)
    if not path:
        raise ValueError("it needs a path")
    current = edit.config.get("WorkingDir") or "/"
    joined = posixpath.normpath(posixpath.join("/", current, path))
    edit.config["WorkingDir"] = "/" + joined.lstrip("/")


def _user(edit: _Edit, text: str) -> None:
    user = edit.expanded(text)
    if not user:
        raise ValueError("it needs a user")
    edit.config["User"] = user


def _stop_signal(edit: _Edit, text: str) -> None:
    signal = edit.expanded(text)
    name = signal.upper().removeprefix("SIG")
    known = name in _SIGNALS or _REAL_TIME.fullmatch(name)
    if not known and not (name.isdecimal() and 0 < int(name) <= _SIGNALS_MAX):
        raise ValueError(f"{signal!r} is not a signal")
    edit.config["StopSignal"] = signal


def _onbuild(edit: _Edit, text: str) -> None:
    trigger = text.partition(" ")[0].upper()
    if not trigger:
        raise ValueError("it needs an instruction")
    if trigger in _NOT_TRIGGERS:
        raise ValueError(f"{trigger} cannot be a trigger")
    edit.config["OnBuild"] = [*(edit.config.get("OnBuild") or ()), text]


def _shell(edit: _Edit, text: str) -> None:
    words = _json_words(text)
    if not words:
        raise ValueError('it takes JSON, as in SHELL ["/bin/bash", "-c"]')
    edit.config["Shell"] = words


def _healthcheck(edit: _Edit, text: str) -> None:
    health: dict[str, Any] = {}
    rest = text
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        rest = rest.lstrip()
        name, _, value = flag.removeprefix("--").partition("=")
        if name == "retries":
            if not value.isdecimal():
                raise ValueError(f"--retries must be a whole number, not {value!r}")
            health["Retries"] = int(value)
        elif name in _HEALTH_TIMES:
            health[_HEALTH_TIMES[name]] = _duration(name, value)
        else:
            raise ValueError(f"unknown flag --{name}")
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE":
        if command.strip() or health:
            raise ValueError("NONE takes no arguments")
        edit.config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if kind.upper() != "CMD":
        raise ValueError("it takes NONE, or CMD and a command")
    command = command.strip()
    words = _json_words(command)
    if not command or words == []:
        raise ValueError("its CMD is empty")
    health["Test"] = ["CMD-SHELL", command] if words is None else ["CMD", *words]
    edit.config["Healthcheck"] = health


_INSTRUCTIONS: Mapping[str, Callable[[_Edit, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _lines(text: str) -> list[str]:
    """Instructions, one each: continued lines joined, comments and empty lines left out."""
    lines: list[str] = []
    pending = ""
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith("#") or (not line and not pending):
            continue
        if line.endswith("\\"):
            pending += line[:-1]
            continue
        line = re.sub(r"^(\S+)\s+", r"\1 ", (pending + line).strip())
        pending = ""
        if line:
            lines.append(line)
    if pending.strip():
        lines.append(pending.strip())
    return lines


def _pairs(text: str) -> list[tuple[str, str]]:
    """`K=V K2="V 2"`, or the old `K REST`."""
    words = split_words(text)
    if not words:
        raise ValueError("it needs NAME=VALUE")
    if "=" not in words[0]:
        name, _, rest = text.partition(" ")
        if not rest.strip():
            raise ValueError(f"{name!r} has no value")
        return [(name, rest.strip())]
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _json_words(text: str) -> list[str] | None:
    """A JSON array of strings; None for anything else, as Docker's parser falls back then."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        return words
    return None


def _duration(name: str, text: str) -> int:
    """In nanoseconds."""
    try:
        total = parse_duration(text)
    except InvalidInput:
        raise ValueError(f"--{name} must be a duration as in 30s, not {text!r}") from None
    if total and total < _SHORTEST_NS:
        raise ValueError(f"--{name} must be at least 1ms")
    return total


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list) else value
