"""Restart policies and health checks: Docker's words checked, and what the agent is told. Pure.

The rules are the reference engine's (moby: api/types/container/hostconfig.go,
daemon/container.go, daemon/health.go); the agent carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.engine.model import Container, Json
from wherry.errors import InvalidInput

NO, ALWAYS, ON_FAILURE, UNLESS_STOPPED = "no", "always", "on-failure", "unless-stopped"
_NAMES = (NO, ALWAYS, ON_FAILURE, UNLESS_STOPPED)

_SHELL = ["/bin/sh", "-c"]
_MIN_DURATION = 1_000_000
"""Nanoseconds: Docker's MinimumDuration of a health check, 1 ms."""

_DURATIONS = ("Interval", "Timeout", "StartPeriod", "StartInterval")


def restart_policy(host_config: Mapping[str, Any]) -> tuple[str, int]:
    """(name, most restarts; 0: no limit) of a checked `HostConfig`."""
    policy = host_config.get("RestartPolicy") or {}
    return policy.get("Name") or NO, policy.get("MaximumRetryCount") or 0


def check_restart_policy(host_config: Mapping[str, Any]) -> None:
    """Raises InvalidInput, in Docker's words."""
    name, maximum = restart_policy(host_config)
    if not isinstance(maximum, int):
        raise InvalidInput("invalid restart policy: MaximumRetryCount must be a number")
    if name not in _NAMES:
        known = "', '".join(_NAMES[:-1])
        raise InvalidInput(
            f"invalid restart policy: unknown policy '{name}'; "
            f"use one of '{known}', or '{_NAMES[-1]}'"
        )
    if name != ON_FAILURE and maximum:
        negative = " and cannot be negative" if maximum < 0 else ""
        raise InvalidInput(
            "invalid restart policy: maximum retry count can only be used with "
            f"'on-failure'{negative}"
        )
    if maximum < 0:
        raise InvalidInput("invalid restart policy: maximum retry count cannot be negative")
    if name != NO and host_config.get("AutoRemove"):
        raise InvalidInput("can't create 'AutoRemove' container with restart policy")


def starts_with_machine(container: Container) -> bool:
    """Whether its policy starts it when the machine comes up, as Docker's when its daemon does."""
    if container.running or container.started_ns is None:
        return False
    name, maximum = restart_policy(container.host_config)
    if name == UNLESS_STOPPED:
        return not container.stopped_by_user
    if name == ON_FAILURE:
        within = not maximum or container.restart_count < maximum
        return bool(container.exit_code) and within
    return name == ALWAYS


def ends_policy(container: Container, signal: int, stop_signal: int) -> bool:
    """Whether a signal that a user sends ends the restarting, too.

    Docker's rule: every signal, unless the container names a stop signal of its own; then that one
    and SIGKILL.
    """
    return signal in (9, stop_signal) or not container.config.get("StopSignal")


def merged_healthcheck(
    own: Mapping[str, Any] | None, image: Mapping[str, Any] | None
) -> Json | None:
    """A client's `Healthcheck` over the image's: what it leaves empty is the image's."""
    if own is None or image is None:
        chosen = image if own is None else own
        return dict(chosen) if chosen is not None else None
    fields = ("Test", *_DURATIONS, "Retries")
    merged = {name: own.get(name) or image.get(name) for name in fields}
    return {name: value for name, value in merged.items() if value}


def check_healthcheck(check: Mapping[str, Any] | None) -> None:
    """Raises InvalidInput, in Docker's words."""
    if not check:
        return
    for name in _DURATIONS:
        value = check.get(name) or 0
        if not isinstance(value, int) or (value and value < _MIN_DURATION):
            raise InvalidInput(f"{name} in Healthcheck cannot be less than 1ms")
    retries = check.get("Retries") or 0
    if not isinstance(retries, int) or retries < 0:
        raise InvalidInput("Retries in Healthcheck cannot be negative")
    test = check.get("Test") or []
    if not isinstance(test, list) or not all(isinstance(word, str) for word in test):
        raise InvalidInput("Test in Healthcheck must be a list of strings")
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidInput(f"Unknown healthcheck type '{test[0]}' (expected 'CMD')")


def probe_command(config: Mapping[str, Any]) -> list[str] | None:
    """The argv of the container's health check; None when it has none."""
    test = (config.get("Healthcheck") or {}).get("Test") or []
    if len(test) < 2 or test[0] == "NONE":
        return None
    if test[0] == "CMD-SHELL":
        return [*(config.get("Shell") or _SHELL), *test[1:2]]
    return list(test[1:])


def restart_params(host_config: Mapping[str, Any]) -> Json | None:
    """The agent's `restart` (docs/agent-calls.md)."""
    name, maximum = restart_policy(host_config)
    return None if name == NO else {"name": name, "max": maximum}


def health_params(config: Mapping[str, Any], process: Json) -> Json:
    """The agent's `health`: `process` is the probe's OCI process object."""
    check = config["Healthcheck"]
    return {
        "process": process,
        "interval_ns": check.get("Interval") or 0,
        "timeout_ns": check.get("Timeout") or 0,
        "start_period_ns": check.get("StartPeriod") or 0,
        "start_interval_ns": check.get("StartInterval") or 0,
        "retries": check.get("Retries") or 0,
    }
