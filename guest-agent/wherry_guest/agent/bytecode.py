"""The byte code of all that runs here, as a cpio that the host appends to the next boot's initrd.

Debian ships no .pyc files and the host's Python cannot make the guest's: so the guest compiles
once. The files are unchecked hash-based (PEP 552): they hold for the very sources of the same
initrd, and the interpreter need not look at those at all.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from wherry_guest.agent import cpio

_UNCHECKED_HASH: Final = (1).to_bytes(4, "little")
"""PEP 552: bit 0 = hash-based, bit 1 (check_source) clear."""


def archive(sources: Iterable[Path]) -> bytes:
    """A cpio, for unpacking at `/`, of `<dir>/__pycache__/<name>.<tag>.pyc` for each source."""
    return cpio.pack((name, compiled(path)) for path, name in sorted(_named(sources)))


def loaded_sources(
    modules: Iterable[ModuleType] | None = None, also: Path | None = None
) -> set[Path]:
    """The source files of all loaded modules, and every `.py` file below `also`."""
    found = set() if also is None else set(also.rglob("*.py"))
    for module in list(sys.modules.values()) if modules is None else modules:
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.has_location and str(spec.origin).endswith(".py"):
            found.add(Path(spec.origin))
    return {path for path in found if path.is_absolute() and path.is_file()}


def compiled(path: Path) -> bytes:
    """The contents of the `.pyc` of one source file, without docstrings and assertions."""
    source = path.read_bytes()
    code = compile(source, str(path), "exec", dont_inherit=True, optimize=2)
    digest = importlib.util.source_hash(source)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + digest + marshal.dumps(code)


def _named(sources: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for path in sources:
        cached = importlib.util.cache_from_source(str(path))
        yield path, cached.lstrip("/")
