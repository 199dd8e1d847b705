"""Which kernel modules to take, in which order to load them, and the indexes that modprobe reads.

Pure: a kernel package's files in, decompressed modules out. Debian ships neither modules.dep nor
modules.alias, so what a module needs is read from its own `.modinfo` section: `depends=`,
`softdep=pre:` and `alias=`. Modules that are built into the kernel (modules.builtin) are not
needed.

Module signatures are cut off: checking one costs 20 ms under emulation, and says nothing that the
digests of the lock have not said about the whole package. The kernel notes the fact as taint
flag E.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .deb import open_zstd
from .elf import section
from .errors import DependencyError, FormatError

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")

_SIGNATURE_MAGIC = b"~Module signature appended~\n"
_SIGNATURE_INFO = 12
"""struct module_signature stands before the magic; its last field is the signature's length,
big-endian (include/linux/module_signature.h)."""


@dataclass(frozen=True, slots=True)
class Module:
    """One module. `path` is that of the decompressed file, below the kernel's module directory.

    `needs` names the modules to load before it, directly or not, in load order.
    """

    name: str
    path: str
    data: bytes
    needs: tuple[str, ...] = ()


@dataclass(slots=True)
class ModuleSource:
    """The modules of one kernel package.

    `files` maps a path relative to `/usr/lib/modules/VERSION/` to its content as packaged.
    """

    files: Mapping[str, bytes]
    _paths: dict[str, str] = field(init=False)
    _builtin: frozenset[str] = field(init=False)
    _builtin_aliases: tuple[str, ...] = field(init=False)
    _data: dict[str, bytes] = field(init=False, default_factory=dict)

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

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Those of `wanted` that are neither built in nor there."""
        names = {name: name.replace("-", "_") for name in wanted}
        return [
            name
            for name, module in names.items()
            if module not in self._paths
            and module not in self._builtin
            and self._by_alias(module) is None
        ]

    def load_order(self, wanted: Iterable[str]) -> list[Module]:
        """`wanted` (names or aliases) and all that they need, each after what it needs.

        Raises:
            DependencyError: there is no such module, built in or not.
            FormatError: a module is damaged.
        """
        ordered: dict[str, Module] = {}
        for name in wanted:
            self._visit(name, ordered, asked_by="linuxkit.yml", optional=False)
        return list(ordered.values())

    def _visit(
        self, name: str, ordered: dict[str, Module], asked_by: str, optional: bool
    ) -> tuple[str, ...]:
        """Append `name` after what it needs; return its needs and itself, in load order."""
        wanted = name.replace("-", "_")
        if wanted not in self._paths and wanted not in self._builtin:
            wanted = self._by_alias(wanted) or wanted
        if wanted in self._builtin or (optional and wanted not in self._paths):
            return ()
        if wanted not in self._paths:
            raise DependencyError(f"the kernel has no module {name} (asked for by {asked_by})")
        if wanted not in ordered:
            data = self._content(wanted)
            info = modinfo(data)
            depends = filter(None, ",".join(info.get("depends", [])).split(","))
            needs: dict[str, None] = {}
            for dependency in _softdeps(info):
                needs.update(dict.fromkeys(self._visit(dependency, ordered, wanted, True)))
            for dependency in depends:
                needs.update(dict.fromkeys(self._visit(dependency, ordered, wanted, False)))
            plain = self._paths[wanted].rpartition(".ko")[0] + ".ko"
            ordered[wanted] = Module(wanted, plain, data, tuple(needs))
        return (*ordered[wanted].needs, wanted)

    def _by_alias(self, wanted: str) -> str | None:
        """The module with such an alias; any built-in one when the kernel itself answers to it."""
        if any(fnmatch.fnmatchcase(wanted, alias) for alias in self._builtin_aliases):
            return next(iter(self._builtin), None)
        if "modules.alias" in self.files:  # depmod's, where it has run: no module has to be read
            return self._listed_alias(wanted)
        for name in sorted(self._paths):
            for alias in modinfo(self._content(name)).get("alias", []):
                if fnmatch.fnmatchcase(wanted, alias.replace("-", "_")):
                    return name
        return None

    def _listed_alias(self, wanted: str) -> str | None:
        for line in self.files["modules.alias"].decode("utf-8", "replace").splitlines():
            alias, _, name = line.removeprefix("alias ").rpartition(" ")
            module = name.replace("-", "_")
            if fnmatch.fnmatchcase(wanted, alias.replace("-", "_")) and module in self._paths:
                return module
        return None

    def _content(self, name: str) -> bytes:
        if name not in self._data:
            path = self._paths[name]
            self._data[name] = without_signature(_decompressed(path, self.files[path]))
        return self._data[name]


def require_modules(source: ModuleSource, wanted: Iterable[str], version: str) -> None:
    """Raises DependencyError when `wanted` are not all built in or there."""
    if lacking := source.missing(wanted):
        raise DependencyError(
            f"kernel {version} has {', '.join(lacking)} neither built in nor as a module",
            hint="PID 1 loads what linuxkit.yml names: build the kernel with it, or take another",
        )


def modprobe_indexes(modules: Sequence[Module]) -> dict[str, bytes]:
    """modules.dep and modules.alias (modules.dep(5), depmod(8)), in their text form, for
    `modules`."""
    paths = {module.name: module.path for module in modules}
    dep, alias = [], []
    for module in sorted(modules, key=lambda module: module.path):
        needs = "".join(f" {paths[name]}" for name in reversed(module.needs))
        dep.append(f"{module.path}:{needs}\n")
        alias += [f"alias {name} {module.name}\n" for name in modinfo(module.data).get("alias", [])]
    return {"modules.dep": "".join(dep).encode(), "modules.alias": "".join(alias).encode()}


def without_signature(module: bytes) -> bytes:
    """The module without the signature that may be appended to it."""
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    end = len(module) - len(_SIGNATURE_MAGIC)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - _SIGNATURE_INFO - length]


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`: the kernel's own name for
    it."""
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
    """The names after `pre:` in `softdep=` lines; `post:` ones are not needed to load it."""
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
