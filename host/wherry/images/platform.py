"""Platforms (os/architecture/variant): names, and which image runs where. Sans-I/O.

Names are normalised and matched as containerd does (github.com/containerd/platforms,
database.go and compare.go `platformVector`): what is asked for is a list of acceptable platforms,
best first; an image's platform is as good as its place in that list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wherry.errors import InvalidInput

T = TypeVar("T")

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "ppc64el": ("ppc64le", ""),
}
_DEFAULT_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_OPERATING_SYSTEMS = {"macos": "darwin"}
_WORD = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Platform:
    """A normalised platform. `variant` is "" for an architecture's default (amd64 v1, arm64 v8)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def normalise(os: str, architecture: str, variant: str = "") -> Platform:
    """The platform under its usual names: x86_64 is amd64, arm64/v8 is arm64, arm is arm/v7."""
    os = os.lower()
    arch = architecture.lower()
    variant = variant.lower()
    os = _OPERATING_SYSTEMS.get(os, os)
    arch, implied = _ARCHITECTURES.get(arch, (arch, ""))
    variant = variant or implied
    if variant.isdigit():
        variant = f"v{variant}"
    if arch == "arm":
        return Platform(os, arch, variant or "v7")
    if variant == _DEFAULT_VARIANTS.get(arch):
        variant = ""
    return Platform(os, arch, variant)


def parse_platform(text: str) -> Platform:
    """Parse `os[/arch[/variant]]` or `arch` alone, as `--platform` takes it.

    Raises:
        InvalidInput: more than three parts, or a part with other signs than letters, digits, ._-
    """
    parts = text.split("/")
    if len(parts) > 3 or not all(_WORD.fullmatch(part) for part in parts):
        raise InvalidInput(
            f"{text!r} is not a platform", hint="platforms look like linux/amd64 or linux/arm/v7"
        )
    if len(parts) > 1:
        return normalise(*parts)
    if text.lower() in ("linux", "windows", "darwin", "macos", "freebsd"):
        return normalise(text, _processor())
    return normalise("linux", text)


def default_platform() -> Platform:
    """Linux on this machine's architecture: what runs in the VM."""
    return normalise("linux", _processor() or "amd64")


def _processor() -> str:
    from wherry.osutil.host import processor  # here: parsing a platform needs nothing of the host

    return processor()


def acceptable(wanted: Platform) -> list[Platform]:
    """The platforms that run where `wanted` is asked for, best first."""
    os, arch = wanted.os, wanted.architecture
    result = [wanted]
    level = _level(wanted)
    if arch == "amd64":
        result += [normalise(os, arch, f"v{lower}") for lower in range(level - 1, 0, -1)]
        result.append(Platform(os, "386"))
    elif arch == "arm64":
        if wanted.variant:
            result.append(Platform(os, arch))
        result += [Platform(os, "arm", f"v{lower}") for lower in range(8, 4, -1)]
    elif arch == "arm":
        result += [Platform(os, arch, f"v{lower}") for lower in range(level - 1, 4, -1)]
    return result


def matches(wanted: Platform, offered: Platform) -> bool:
    """Whether an image for `offered` satisfies `wanted`."""
    return offered in acceptable(wanted)


def choose(
    wanted: Platform, offers: Sequence[T], platform_of: Callable[[T], Platform | None]
) -> T | None:
    """The offer that suits `wanted` best; the first of equals.

    An offer that does not say its platform is taken when no other fits (containerd does so; the
    image's config then has the last word).
    """
    ranks = {platform: rank for rank, platform in reversed(list(enumerate(acceptable(wanted))))}
    known = [(offer, platform_of(offer)) for offer in offers]
    fitting = [(ranks[p], offer) for offer, p in known if p is not None and p in ranks]
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    return next((offer for offer, p in known if p is None), None)


def _level(platform: Platform) -> int:
    default = _DEFAULT_VARIANTS.get(platform.architecture, "v1")
    match = re.match(r"v(\d+)", platform.variant or default)
    return min(int(match[1]), 9) if match else 1
