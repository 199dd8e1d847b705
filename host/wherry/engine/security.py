"""Docker's SecurityOpt, and the paths of /proc and /sys that are hidden or read-only. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.engine.seccomp_profile import check_profile
from wherry.errors import InvalidInput, NotImplementedYet

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
    "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_WITHOUT_MEANING = (("label", "disable"), ("apparmor", "unconfined"))
"""There are neither labels nor AppArmor."""


def check_security(host_config: Mapping[str, Any]) -> None:
    """Raises InvalidInput, or NotImplementedYet for an option that there is not yet."""
    no_new_privileges(host_config)
    if profile := seccomp_option(host_config):
        check_profile(profile)
    for name in ("MaskedPaths", "ReadonlyPaths"):
        for path in host_config.get(name) or ():
            if not path.startswith("/"):
                raise InvalidInput(f"{name} has {path!r}, which is not absolute")


def no_new_privileges(host_config: Mapping[str, Any]) -> bool:
    """Whether SecurityOpt asks for it. Raises as `check_security`."""
    wanted = False
    for text in host_config.get("SecurityOpt") or ():
        name, separator, value = _split(text)
        if name == "no-new-privileges":
            if separator and value not in ("true", "false"):
                raise InvalidInput(f"invalid --security-opt 2: {text!r}")
            wanted = value != "false"
        elif name == "seccomp" or (name, value) in _WITHOUT_MEANING:
            continue
        else:
            raise NotImplementedYet(f"HostConfig.SecurityOpt is not implemented for {text!r}")
    return wanted


def seccomp_option(host_config: Mapping[str, Any]) -> str:
    """What SecurityOpt says about seccomp, the last time that it does; "": nothing."""
    split = [_split(text) for text in host_config.get("SecurityOpt") or ()]
    return next((value for name, _, value in reversed(split) if name == "seccomp"), "")


def masked_paths(host_config: Mapping[str, Any]) -> list[str]:
    """`linux.maskedPaths`: as given, also when none are; else the usual ones."""
    return _paths(host_config, "MaskedPaths", MASKED_PATHS)


def readonly_paths(host_config: Mapping[str, Any]) -> list[str]:
    """`linux.readonlyPaths`, likewise."""
    return _paths(host_config, "ReadonlyPaths", READONLY_PATHS)


def _paths(host_config: Mapping[str, Any], name: str, usual: tuple[str, ...]) -> list[str]:
    if host_config.get("Privileged"):
        return []
    given = host_config.get(name)
    return list(usual if given is None else given)


def _split(text: str) -> tuple[str, str, str]:
    """Docker takes `name=value`, and from older clients `name:value`."""
    equals, colon = text.find("="), text.find(":")
    return text.partition(":") if equals < 0 or 0 <= colon < equals else text.partition("=")
