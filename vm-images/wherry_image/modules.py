"""Which kernel modules to take, and in which order to load them.

Pure: a kernel package's files in, decompressed modules in load order out. Debian ships neither
modules.dep nor modules.alias, so what a module needs is read from its own `.modinfo` section: `depends=`,
`softdep=pre:` and `alias=`. Modules that are built into the kernel (modules.builtin) are not needed.
Module signatures stand behind the ELF file and survive decompression.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .deb import open_zstd
from .elf import section
from .errors import DependencyError, FormatError

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(frozen=True, slots=True)
class Module:
    """One module: `path` is that of the decompressed file, below the kernel's module directory."""

    name: str
    path: str
    data: bytes


@dataclass(slots=True)
class ModuleSource:
    """The modules of one kernel package.

    `files` maps a path relative to `/usr/lib/modules/VERSION/` to its content as packaged.
    """

    files: Mapping[str, bytes]
    _paths: dict[str, str] = field(init=False)
    _builtin: frozenset[str] = field(init=False)
    _builtin_aliases: tuple[str, ...] = field(init=False)
    _loaded: dict[str, Module] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._paths = {module_name(path): path for path in self.files if path.endswith(_SUFFIXES)}
        builtin = self.files.get("modules.builtin", b"").decode().split()
        self._builtin = frozenset(map(module_name, builtin))
        info = self.files.get("modules.builtin.modinfo", b"")
        self._builtin_aliases = tuple(
            alias.replace("-", "_")
            for entry in info.decode("utf-8", "replace").split("\0")
            if (alias := entry.partition(".alias=")[2])
        )

    def load_order(self, wanted: Iterable[str]) -> list[Module]:
        """`wanted` (names or aliases) and all that they need, each after what it needs.

        Raises:
            DependencyError: there is no such module, built in or not.
            FormatError: a module is damaged.
        """
        ordered: dict[str, Module] = {}
        for name in wanted:
            self._visit(name, ordered, asked_by="etc/modules-load.d", optional=False)
        return list(ordered.values())

    def _visit(self, name: str, ordered: dict[str, Module], asked_by: str, optional: bool) -> None:
        wanted = name.replace("-", "_")
        if wanted in ordered or wanted in self._builtin:
            return
        if wanted not in self._paths:
            found = self._by_alias(wanted)
            if found is None and not optional:
                raise DependencyError(f"the kernel has no module {name} (asked for by {asked_by})")
            if found is None or found in ordered or found in self._builtin:
                return
            wanted = found
        module = self._module(wanted)
        info = modinfo(module.data)
        for dependency in _softdeps(info):
            self._visit(dependency, ordered, asked_by=wanted, optional=True)
        for dependency in filter(None, ",".join(info.get("depends", [])).split(",")):
            self._visit(dependency, ordered, asked_by=wanted, optional=False)
        ordered[wanted] = module

    def _by_alias(self, wanted: str) -> str | None:
        """The name of the module with such an alias; `wanted` itself when the kernel has it built in."""
        if any(fnmatch.fnmatchcase(wanted, alias) for alias in self._builtin_aliases):
            return next(iter(self._builtin), None)
        for name in sorted(self._paths):
            for alias in modinfo(self._module(name).data).get("alias", []):
                if fnmatch.fnmatchcase(wanted, alias.replace("-", "_")):
                    return name
        return None

    def _module(self, name: str) -> Module:
        if name not in self._loaded:
            path = self._paths[name]
            plain = path[: path.rindex(".ko") + len(".ko")]
            self._loaded[name] = Module(name, plain, _decompressed(path, self.files[path]))
        return self._loaded[name]


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`: the kernel's own name for it."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def modinfo(module: bytes) -> dict[str, list[str]]:
    """The `.modinfo` section: NUL-terminated `key=value` strings; keys may repeat.

    Raises:
        FormatError: not an ELF file.
    """
    info: dict[str, list[str]] = {}
    for entry in section(module, ".modinfo").split(b"\0"):
        key, equals, value = entry.decode("utf-8", "replace").partition("=")
        if equals:
            info.setdefault(key, []).append(value)
    return info


def _softdeps(info: Mapping[str, list[str]]) -> list[str]:
    """The names after `pre:` in `softdep=` lines; `post:` ones are not needed to load the module."""
    names: list[str] = []
    for line in info.get("softdep", []):
        taking = False
        for word in line.split():
            if word in ("pre:", "post:"):
                taking = word == "pre:"
            elif taking:
                names.append(word)
    return names


def _decompressed(path: str, data: bytes) -> bytes:
    try:
        if path.endswith(".xz"):
            return lzma.decompress(data)
        if path.endswith(".zst"):
            return open_zstd(io.BytesIO(data)).read()
        if path.endswith(".gz"):
            return gzip.decompress(data)
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise FormatError(f"damaged kernel module {path}: {error}") from error
    return data
