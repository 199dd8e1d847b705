"""Where what `cp` copies goes, and what it is called there. Pure, any OS.

The rules are Docker's (`docker cp --help`; moby: pkg/archive/copy.go, PrepareArchiveCopy): an
existing directory gets the source in it, or with `SOURCE/.` what is in that; anything else is the
copy's own name, whose parent must exist.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from wherry.errors import InvalidInput, NotFound

CONTENTS = "."
"""As a name: what is in the source, not the source itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy.

    Attributes:
        path: with `/` between its parts, as it was given (a `/` or `/.` at its end counts).
        exists: whether anything is there. is_directory: what it is.
        name: what a source is called when that is not its path's last part.
    """

    path: str
    exists: bool = True
    is_directory: bool = False
    name: str = ""

    @property
    def is_contents(self) -> bool:
        """Whether `/.` stands at its end, or it is a root or `.` itself."""
        return posixpath.basename(self.path) == CONTENTS or _base(self.path) == ""

    @property
    def wants_directory(self) -> bool:
        return self.path.endswith(("/", "/."))


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Unpack in `directory`; the source's top is called `name` there (`.`: has none)."""

    directory: str
    name: str


def plan_copy(source: Place, target: Place) -> CopyPlan:
    """Where a copy of `source` is unpacked.

    Raises:
        InvalidInput: a directory cannot become a file.
        NotFound: the target is to be a directory that does not exist.
    """
    name = source.name or _base(source.path)
    if target.exists and target.is_directory:
        return CopyPlan(target.path, CONTENTS if source.is_contents else name)
    if target.exists and source.is_directory:
        raise InvalidInput(f"cannot copy a directory to the file {target.path}")
    if not source.is_directory and target.wants_directory:
        raise NotFound(f"no such directory: {target.path}")
    clean = posixpath.normpath(target.path)
    return CopyPlan(posixpath.dirname(clean) or CONTENTS, posixpath.basename(clean))


def split_argument(text: str) -> tuple[str, str]:
    """`CONTAINER:PATH` as (container, path); a path of this computer as ("", path).

    A path with a colon is written as ./a:b or /a:b; `C:\\x` is Windows' own.
    """
    container, colon, path = text.partition(":")
    local = text.startswith(("/", "\\", ".")) or not colon
    drive = len(container) == 1 and path[:1] in ("/", "\\")
    return ("", text) if local or drive else (container, path)


def renamed(name: str, top: str, wanted: str) -> str:
    """An archive's entry `top/x` as `wanted/x`; with CONTENTS for either, there is no such part."""
    name = name.strip("/")
    parts = [part for part in name.split("/") if part not in ("", CONTENTS)]
    if top not in (CONTENTS, "/", "") and parts and parts[0] == top:
        parts = parts[1:]
    if wanted != CONTENTS:
        parts = [wanted, *parts]
    return "/".join(parts) or CONTENTS


def _base(path: str) -> str:
    """The last part of a path; "" of a root."""
    return posixpath.basename(posixpath.normpath(path))
