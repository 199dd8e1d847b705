"""Log drivers and their options: Docker's `LogConfig` checked, and what the agent is told. Pure.

`json-file` and `local` are one store of raw frames in the guest; Docker's JSON is made when it is
read. `none` keeps nothing. Names, defaults and messages are the reference engine's (moby:
daemon/logger).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wherry.engine.logdetails import check_pattern, check_tag
from wherry.engine.model import Json
from wherry.errors import InvalidInput, NotImplementedYet

JSON_FILE, LOCAL, NONE = "json-file", "local", "none"
DRIVERS = (JSON_FILE, LOCAL, NONE)

_ELSEWHERE = ("awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "splunk", "syslog")
"""Docker's that send logs somewhere."""

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    JSON_FILE: (
        "max-file", "max-size", "compress", "labels", "labels-regex", "env", "env-regex", "tag",
    ),
    LOCAL: ("max-file", "max-size", "compress"),
    NONE: (),
}  # fmt: skip
_ANY_DRIVER = ("mode", "max-buffer-size")

_BUFFER = 1_000_000
"""daemon/logger/ring.go: defaultRingMaxSize, 1e6."""

_LOCAL_SIZE, _LOCAL_FILES = 20 * 1000 * 1000, 5
"""daemon/logger/local: defaultMaxFileSize, defaultMaxFileCount."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)b?", re.IGNORECASE)
"""As go-units reads sizes: FromHumanSize is decimal, RAMInBytes (of the buffer) binary."""


def driver(host_config: Mapping[str, Any]) -> str:
    """The log driver's name; the default is json-file."""
    return (host_config.get("LogConfig") or {}).get("Type") or JSON_FILE


def check_log_config(host_config: Mapping[str, Any]) -> None:
    """Raises InvalidInput in Docker's words; NotImplementedYet for what we have not."""
    name = driver(host_config)
    if name in _ELSEWHERE:
        raise NotImplementedYet(f"HostConfig.LogConfig.Type {name!r} is not implemented")
    if name not in DRIVERS:
        raise InvalidInput(f"logger: no log driver named '{name}' is registered")
    options = (host_config.get("LogConfig") or {}).get("Config") or {}
    if not isinstance(options, dict):
        raise InvalidInput("HostConfig.LogConfig.Config must be an object")
    for option, value in options.items():
        if option not in _OPTIONS[name] and option not in _ANY_DRIVER:
            raise InvalidInput(f"unknown log opt '{option}' for {name} log driver")
        if not isinstance(value, str):
            raise InvalidInput(f"HostConfig.LogConfig.Config.{option} must be a string")
    for option in ("labels-regex", "env-regex"):
        check_pattern(option, options.get(option, ""))
    check_tag(options.get("tag", ""))
    _buffer(options)
    _limits(name, options)


def log_params(host_config: Mapping[str, Any]) -> Json:
    """The agent's `log` (docs/agent-calls.md)."""
    name = driver(host_config)
    if name == NONE:
        return {"driver": "none"}
    options = (host_config.get("LogConfig") or {}).get("Config") or {}
    max_size, max_files = _limits(name, options)
    found = {"driver": "file", "max_size": max_size, "max_files": max_files}
    buffer = _buffer(options)
    return {**found, "buffer": buffer} if buffer else found


def _buffer(options: Mapping[str, str]) -> int:
    """Bytes that memory takes while the disk is full; 0: mode=blocking, the container waits."""
    mode = options.get("mode", "blocking")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidInput(f"logger: logging mode not supported: {mode}")
    size = options.get("max-buffer-size")
    if mode != "non-blocking":
        if size is not None:
            raise InvalidInput(
                "logger: 'max-buffer-size' option is only supported with 'non-blocking' mode"
            )
        return 0
    buffer = _BUFFER if size is None else _parse_size(size, binary=True)
    if buffer <= 0:
        raise InvalidInput("max-buffer-size must be a positive number")
    return buffer


def _limits(name: str, options: Mapping[str, str]) -> tuple[int, int]:
    """(bytes of a file, 0: no limit; files)."""
    size, files = (_LOCAL_SIZE, _LOCAL_FILES) if name == LOCAL else (0, 1)
    if "max-size" in options:
        size = _parse_size(options["max-size"])
        if size <= 0:
            raise InvalidInput("max-size must be a positive number")
    if "max-file" in options:
        text = options["max-file"]
        if not re.fullmatch(r"[+-]?\d+", text):
            raise InvalidInput(f"max-file {text!r} is not a number")
        files = int(text)
        if files < 1:
            raise InvalidInput("max-file cannot be less than 1")
    compress = options.get("compress", "false").lower()
    if compress in ("1", "t", "true"):
        if name == JSON_FILE and (files == 1 or not size):
            raise InvalidInput(
                "compress cannot be true when max-file is less than 2 or max-size is not set"
            )
        raise NotImplementedYet("log option compress=true is not implemented")
    if compress not in ("0", "f", "false"):
        raise InvalidInput(f"compress {compress!r} is neither true nor false")
    return size, files


def _parse_size(text: str, *, binary: bool = False) -> int:
    if text == "-1":  # json-file's own word for "no limit"
        raise InvalidInput("max-size must be a positive number")
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"invalid size: '{text}'")
    power = "kmgtp".find(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if binary else 1000) ** power)
