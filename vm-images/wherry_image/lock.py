"""The lock: exactly which packages an image is made of, as a text file that diffs well.

Sans-I/O. Four header lines, then a line per package, sorted by name, single spaces:

    format 1
    architecture amd64
    timestamp 20260101T000000Z
    roots busybox-static e2fsprogs …
    NAME VERSION ARCHITECTURE SHA256 SIZE PATH

`timestamp` is the date of the newest signed Release file that the packages were chosen from; every
modification time in the image is this one. `roots` are the names that were asked for: a lock fits
only a configuration that asks for the same. PATH is `ARCHIVE/pool/…` and names no host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

from .archive import Package
from .errors import LockError

FORMAT = 1
_HEADER = (
    "# Packages of Wherry's VM image. Made by `python -m wherry_image lock`; see docs/vm-image.md."
)
_TIME = "%Y%m%dT%H%M%SZ"
_PACKAGE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]*) (?P<version>[A-Za-z0-9.+:~-]+) (?P<architecture>[a-z0-9]+)"
    r" (?P<sha256>[0-9a-f]{64}) (?P<size>[0-9]+) (?P<path>[a-z-]+/pool/[A-Za-z0-9/._+:~%-]+)"
)


@dataclass(frozen=True, slots=True)
class Lock:
    """A parsed lock. `packages` have no dependencies: those are resolved already."""

    architecture: str
    timestamp: datetime
    roots: tuple[str, ...]
    packages: tuple[Package, ...]

    @property
    def epoch(self) -> int:
        """The timestamp in seconds: SOURCE_DATE_EPOCH of the image."""
        return int(self.timestamp.timestamp())

    @property
    def snapshot(self) -> str:
        """The timestamp as Debian's snapshot archive writes it: `20260101T000000Z`."""
        return self.timestamp.strftime(_TIME)


@dataclass(frozen=True, slots=True)
class PackageChange:
    """One difference between two locks; `old` is empty for a new package, `new` for one that
    went."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        if not self.old:
            return f"{self.name} {self.new} (new)"
        if not self.new:
            return f"{self.name} {self.old} (gone)"
        return f"{self.name} {self.old} -> {self.new}"


def format_lock(lock: Lock) -> str:
    lines = [
        _HEADER,
        f"format {FORMAT}",
        f"architecture {lock.architecture}",
        f"timestamp {lock.snapshot}",
        f"roots {' '.join(sorted(lock.roots))}",
    ]
    for package in sorted(lock.packages, key=lambda package: package.name):
        fields = (
            package.name,
            package.version,
            package.architecture,
            package.sha256,
            str(package.size),
            package.path,
        )
        lines.append(" ".join(fields))
    return "\n".join(lines) + "\n"


def parse_lock(text: str, name: str) -> Lock:
    """Read a lock; `name` is the file's name for error messages.

    Raises:
        LockError: another format version, or a line that is not as described above.
    """
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line and not line.startswith("#")
    ]
    header = _header(lines[:4], name)
    if header["format"] != str(FORMAT):
        raise LockError(f"{name} has lock format {header['format']}, this version knows {FORMAT}")
    packages = tuple(_package(number, line, name) for number, line in lines[4:])
    try:
        timestamp = datetime.strptime(header["timestamp"], _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise LockError(f"{name}: not a timestamp: {header['timestamp']}") from error
    return Lock(header["architecture"], timestamp, tuple(header["roots"].split()), packages)


def without_kernel(lock: Lock) -> Lock:
    """The same user-space, for a kernel that is in no package."""
    return replace(
        lock,
        roots=tuple(root for root in lock.roots if not root.startswith("linux-")),
        packages=tuple(p for p in lock.packages if not p.name.startswith("linux-")),
    )


def compare_locks(old: Iterable[Package], new: Iterable[Package]) -> list[PackageChange]:
    """What `new` changes, sorted by name; empty when both hold the same files."""
    before = {package.name: package for package in old}
    after = {package.name: package for package in new}
    changes = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None or now is None or was.sha256 != now.sha256:
            changes.append(
                PackageChange(name, was.version if was else "", now.version if now else "")
            )
    return changes


def _header(lines: list[tuple[int, str]], name: str) -> dict[str, str]:
    header = {}
    for wanted, (number, line) in zip(
        ("format", "architecture", "timestamp", "roots"), lines, strict=False
    ):
        key, _, value = line.partition(" ")
        if key != wanted or not value:
            raise LockError(f"{name}:{number}: expected `{wanted} …`", hint=_HINT)
        header[key] = value
    if len(header) < 4:
        raise LockError(f"{name} is cut short", hint=_HINT)
    return header


_HINT = "delete the file, or make it anew with `python -m wherry_image lock`"


def _package(number: int, line: str, name: str) -> Package:
    match = _PACKAGE.fullmatch(line)
    if not match or ".." in PurePosixPath(match["path"]).parts:
        raise LockError(f"{name}:{number}: not a package line", hint=_HINT)
    return Package(
        name=match["name"],
        version=match["version"],
        architecture=match["architecture"],
        sha256=match["sha256"],
        size=int(match["size"]),
        path=match["path"],
    )
