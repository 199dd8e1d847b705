"""Which kernel an image boots: the shipped one, a series of Debian's, one's own, or another
linuxkit.yml's.

Pure, apart from looking whether files are there. The user-space is the base release's in any case;
only packages named `linux-*` may come from another release (`resolve`, `index`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .archive import BASE_RELEASE
from .errors import ConfigError

SERIES: Mapping[str, str] = {"6.1": "bookworm", "6.12": "trixie", "testing": "testing"}
"""What people ask for, and the release whose kernel that is. `testing` is the newest one."""

DEFAULT = "default"

_YAML = (".yml", ".yaml")
_PATH = re.compile(r"[/\\]|\.ya?ml$|^[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """A choice that is well-formed.

    Attributes:
        label: part of the names of its lock and images; empty for the shipped kernel.
        release: the Debian release whose kernel package is taken; None: what linuxkit.yml says.
        image: a kernel file of one's own.
        modules: where that one's modules are; None: looked for beside it.
        config: another linuxkit.yml.
    """

    label: str = ""
    release: str | None = None
    image: Path | None = None
    modules: Path | None = None
    config: Path | None = None


SHIPPED = KernelChoice()


def parse_kernel(text: str, modules: str = "") -> KernelChoice:
    """`default`, a series, or the absolute path of a kernel or of a linuxkit.yml.

    Args:
        modules: directory of a path's modules (`lib/modules/VERSION` is looked for in it).

    Raises:
        ConfigError: none of these, or modules for something that brings its own.
    """
    if not _PATH.search(text):
        return _series(text, modules)
    path = Path(text)
    if not path.is_absolute():
        raise ConfigError(f"{text} is not an absolute path")
    if path.suffix in _YAML:
        _refuse_modules(modules, path.name)
        return KernelChoice(label=_label(path), config=path)
    directory = Path(modules) if modules else None
    if directory is not None and not directory.is_absolute():
        raise ConfigError(f"{modules} is not an absolute path")
    return KernelChoice(label=_label(path), image=path, modules=directory)


def _series(name: str, modules: str) -> KernelChoice:
    _refuse_modules(modules, name)
    if name in ("", DEFAULT) or SERIES.get(name) == BASE_RELEASE:
        return SHIPPED
    if name not in SERIES:
        raise ConfigError(
            f"there is no kernel series {name!r}",
            hint=f"one of {', '.join(SERIES)}, or the path of a kernel or of a linuxkit.yml",
        )
    return KernelChoice(label=name, release=SERIES[name])


def _refuse_modules(modules: str, name: str) -> None:
    if modules:
        raise ConfigError(
            f"{name or DEFAULT} brings its own kernel modules",
            hint="a directory of modules goes with the path of a kernel",
        )


def _label(path: Path) -> str:
    """A short name that is the same for the same path."""
    return "own-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
