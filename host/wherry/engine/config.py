"""Docker's `Config`: an image's defaults under a client's wishes. Pure.

The rules are the reference engine's (`merge` in daemon/commit.go, `mergeAndVerifyConfig`): what is
empty is taken from the image; naming an entrypoint drops the image's command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.engine.model import Json
from wherry.engine.policies import check_healthcheck, merged_healthcheck
from wherry.engine.signals import signal_number
from wherry.errors import InvalidInput
from wherry.paths import container_path_hint

MIN_MEMORY = 6 * 1024 * 1024
"""The least memory limit that Docker's engine accepts."""

_FROM_IMAGE_WHEN_EMPTY = ("User", "WorkingDir", "StopSignal", "Shell")
_UNITED = ("ExposedPorts", "Volumes", "Labels")

CPU_PERIOD = 100_000
"""Microseconds; the kernel's default period of cpu.max, which NanoCpus is expressed in."""


def merged_config(config: Mapping[str, Any], image: Mapping[str, Any]) -> Json:
    """The `Config` that a container has and that inspect shows.

    Raises:
        InvalidInput: neither names a command; or a variable, the directory or the stop signal
            is wrong.
    """
    merged = dict(config)
    for key in _FROM_IMAGE_WHEN_EMPTY:
        if not merged.get(key) and image.get(key):
            merged[key] = image[key]
    for key in _UNITED:
        if image.get(key):
            merged[key] = {**image[key], **(merged.get(key) or {})}
    merged["Env"] = _merged_env(merged.get("Env") or (), image.get("Env") or ())
    _merge_command(merged, image)
    merged["Healthcheck"] = merged_healthcheck(config.get("Healthcheck"), image.get("Healthcheck"))
    check_healthcheck(merged["Healthcheck"])
    if not merged.get("Entrypoint") and not merged.get("Cmd"):
        raise InvalidInput(
            "no command specified", hint="the image names no command: give one after the image"
        )
    signal_number(merged.get("StopSignal"))
    check_process(merged)
    return merged


def check_process(config: Mapping[str, Any]) -> None:
    """What a container's and an exec's configuration share. Raises InvalidInput."""
    for entry in config.get("Env") or ():
        if not entry or entry.startswith("="):
            raise InvalidInput(f"invalid environment variable: {entry}")
    directory = config.get("WorkingDir") or "/"
    if not directory.startswith("/"):
        raise InvalidInput(
            f"the working directory '{directory}' is invalid, it needs to be an absolute path",
            hint=container_path_hint(directory),
        )


def _merge_command(merged: Json, image: Mapping[str, Any]) -> None:
    if not merged.get("Entrypoint"):
        if not merged.get("Cmd"):
            merged["Cmd"] = image.get("Cmd")
        if merged.get("Entrypoint") is None:
            merged["Entrypoint"] = image.get("Entrypoint")
    if merged.get("Entrypoint") == [""]:
        merged["Entrypoint"] = None


def _merged_env(own: Sequence[str], image: Sequence[str]) -> list[str]:
    """The client's variables, then the image's that it does not set."""
    names = {entry.partition("=")[0] for entry in own}
    return [*own, *(entry for entry in image if entry.partition("=")[0] not in names)]


def checked_host_config(host_config: Mapping[str, Any]) -> Json:
    """`HostConfig` with its limits checked and completed as Docker does.

    Raises:
        InvalidInput: a limit contradicts another one or is out of range.
    """
    checked = dict(host_config)
    _check_memory(checked)
    _check_cpu(checked)
    if (checked.get("ShmSize") or 0) < 0:
        raise InvalidInput("SHM size can not be less than 0")
    return checked


def _check_memory(host_config: Json) -> None:
    memory, swap = host_config.get("Memory") or 0, host_config.get("MemorySwap") or 0
    if memory < 0 or 0 < memory < MIN_MEMORY:
        raise InvalidInput("Minimum memory limit allowed is 6MB")
    if swap > 0 and not memory:
        raise InvalidInput(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if swap > 0 and swap < memory:
        raise InvalidInput("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory and not swap:
        host_config["MemorySwap"] = 2 * memory
    reservation = host_config.get("MemoryReservation") or 0
    if 0 < reservation < MIN_MEMORY:
        raise InvalidInput("Minimum memory reservation allowed is 6MB")
    if memory and reservation > memory:
        raise InvalidInput(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )


def _check_cpu(host_config: Json) -> None:
    nano, quota = host_config.get("NanoCpus") or 0, host_config.get("CpuQuota") or 0
    period = host_config.get("CpuPeriod") or 0
    if nano and (quota or period):
        raise InvalidInput(
            "Conflicting options: Nano CPUs and CPU quota or period cannot both be set"
        )
    if nano < 0:
        raise InvalidInput("Invalid value for NanoCPUs: must be greater than 0")
    if period and not 1_000 <= period <= 1_000_000:
        raise InvalidInput("CPU cfs period can not be less than 1ms or larger than 1s")
    if 0 < quota < 1_000:
        raise InvalidInput("CPU cfs quota can not be less than 1ms (i.e. 1000)")
