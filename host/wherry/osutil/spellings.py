"""Directories in which two spellings are one name: macOS and Windows ignore case as a rule, macOS
also how an accented letter is put together, HFS+ stores such a name in its own way.

What counts is what the file system does, not which system it is: a name that is found but not
listed is there under another spelling.
"""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from pathlib import Path

_DIRECTORIES = 64
"""Listings that are kept: a tree is walked depth first, so those of the way down are enough."""


def twin(name: str, listed: set[str]) -> str | None:
    """Under which other spelling `name`, which exists, is `listed`; None: as it is written.

    Also None where only the accents of `name` are put together in another way (HFS+ does that to
    names that it stores), and where no listed name is like it (it was just removed).
    """
    if name in listed:
        return None
    plain = _composed(name)
    folded = plain.casefold()
    alike = [it for it in listed if _composed(it).casefold() == folded]
    return None if any(_composed(it) == plain for it in alike) else min(alike, default=None)


class Spellings:
    """What one writer of a tree knows of the spellings in it. Each name that it makes is told to
    `made`: then a name of another spelling is found, however it differs."""

    def __init__(self) -> None:
        self._listed: OrderedDict[Path, set[str]] = OrderedDict()
        self._accented: dict[Path, str] = {}

    def conflict(self, path: Path) -> Path | None:
        """The path, other than `path`, under which `path` (which exists) is in its directory."""
        first = self._accented.get(path.with_name(_composed(path.name)))
        if first is not None and first != path.name:
            return path.with_name(first)
        other = twin(path.name, self._names(path.parent))
        return None if other is None else path.with_name(other)

    def made(self, path: Path) -> None:
        """`path` is there now, and by us."""
        if path.parent in self._listed:
            self._listed[path.parent].add(path.name)
        if not path.name.isascii():
            self._accented[path.with_name(_composed(path.name))] = path.name

    def _names(self, directory: Path) -> set[str]:
        names = self._listed.pop(directory, None)
        if names is None:
            names = {it.name for it in directory.iterdir()}
            if len(self._listed) >= _DIRECTORIES:
                self._listed.popitem(last=False)
        self._listed[directory] = names
        return names


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
