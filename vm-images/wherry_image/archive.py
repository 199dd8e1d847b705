"""A Debian package archive: the Release file and the package index, as values.

Sans-I/O: text in, values out. Formats: deb-control(5) and https://wiki.debian.org/DebianRepository/Format.
Only `main` is used: the VM needs nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .errors import FormatError

ARCHITECTURES = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite of an archive; `archive` is the directory below a mirror's root that it lives in."""

    archive: str
    name: str

    def index_path(self, arch: str) -> str:
        """Where the package index is, relative to the suite's directory."""
        return f"main/binary-{arch}/Packages.xz"


BASE_RELEASE = "trixie"
"""Debian 13: the VM's user-space."""

_ROLLING = ("sid", "unstable")

RELEASES = ("bookworm", BASE_RELEASE, "forky", "testing", *_ROLLING)
"""What a kernel may be taken from; the first part of a suite's name."""


def suites_of(release: str) -> tuple[Suite, ...]:
    """A release with its point-release and security updates, where it has such."""
    if release in _ROLLING:
        return (Suite("debian", release),)
    return (
        Suite("debian", release),
        Suite("debian", f"{release}-updates"),
        Suite("debian-security", f"{release}-security"),
    )


SUITES = suites_of(BASE_RELEASE)


@dataclass(frozen=True, slots=True)
class Release:
    """What a suite's signed Release file promises.

    `names`: what it calls itself (`trixie`, `stable`). `checksums` maps a file's path, relative to
    the suite, to (SHA-256, size).
    """

    names: tuple[str, ...]
    date: datetime
    valid_until: datetime | None
    checksums: dict[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Relation:
    """One alternative of a dependency: a name and, where `operator` is not empty, a version."""

    name: str
    operator: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Package:
    """One binary package of an index.

    `depends_field` is Pre-Depends and Depends as written, parsed only for the few packages that are
    looked at. `path` starts with the archive: `debian/pool/main/…`. `basic`: every Debian has it
    (Essential, or of priority required).
    """

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    path: str
    depends_field: str = ""
    provides: tuple[Relation, ...] = ()
    basic: bool = False

    @property
    def depends(self) -> tuple[tuple[Relation, ...], ...]:
        """The dependencies, each a tuple of alternatives."""
        return parse_relations(self.depends_field)


_RELATION = re.compile(
    r"^\s*(?P<name>[a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?"
    r"(?:\s*\(\s*(?P<operator><<|<=|=|>=|>>)\s*(?P<version>[^\s)]+)\s*\))?"
    r"\s*(?:\[[^\]]*\])?\s*$"
)


def parse_stanza(text: str) -> dict[str, str]:
    """One control stanza as a mapping from field name (lower case) to value, lines joined by
    newline."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            fields[name] += "\n" + line.strip()
        elif line:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon:
                raise FormatError(f"not a control field: {line[:60]!r}")
            fields[name] = value.strip()
    return fields


def parse_release(text: str) -> Release:
    """Read a Release file (the signed text of an InRelease).

    Raises:
        FormatError: a field that we need is missing or malformed.
    """
    fields = parse_stanza(text)
    try:
        checksums = {}
        for line in fields["sha256"].splitlines():
            if line:
                digest, size, path = line.split()
                checksums[path] = (digest, int(size))
        valid_until = fields.get("valid-until")
        return Release(
            names=tuple(filter(None, (fields["codename"], fields.get("suite")))),
            date=_date(fields["date"]),
            valid_until=_date(valid_until) if valid_until else None,
            checksums=checksums,
        )
    except (KeyError, ValueError) as error:
        raise FormatError(f"the Release file lacks or garbles a field: {error}") from error


def parse_packages(text: str, archive: str) -> dict[str, list[Package]]:
    """Read a package index: every version of every package, by name.

    Raises:
        FormatError: a stanza lacks a field that we need.
    """
    packages: dict[str, list[Package]] = {}
    for stanza in text.split("\n\n"):
        if stanza.strip():
            package = _package(stanza, archive)
            packages.setdefault(package.name, []).append(package)
    return packages


def parse_relations(field: str) -> tuple[tuple[Relation, ...], ...]:
    """`a (>= 1) | b, c` -> ((a, b), (c,)).

    Raises:
        FormatError: not the syntax of deb-control(5).
    """
    groups = (group.strip() for group in field.replace("\n", " ").split(","))
    return tuple(tuple(_relation(part) for part in group.split("|")) for group in groups if group)


def _relation(text: str) -> Relation:
    match = _RELATION.match(text)
    if not match:
        raise FormatError(f"not a package relation: {text.strip()!r}")
    return Relation(match["name"], match["operator"] or "", match["version"] or "")


_WANTED = re.compile(
    r"^(Package|Version|Architecture|SHA256|Size|Filename|Depends|Pre-Depends|Provides|Essential"
    r"|Priority): (.*)$",
    re.M,
)
"""An index of 50 MB is read in about a second only when nothing but these fields is looked at.
None of them is ever folded onto a second line in Debian's indexes."""


def _package(stanza: str, archive: str) -> Package:
    fields = dict(_WANTED.findall(stanza))
    try:
        provides = fields.get("Provides", "")
        return Package(
            name=fields["Package"],
            version=fields["Version"],
            architecture=fields["Architecture"],
            sha256=fields["SHA256"],
            size=int(fields["Size"]),
            path=f"{archive}/{fields['Filename']}",
            depends_field=", ".join(
                fields[key] for key in ("Pre-Depends", "Depends") if key in fields
            ),
            provides=tuple(relation for (relation,) in parse_relations(provides)),
            basic=fields.get("Essential") == "yes" or fields.get("Priority") == "required",
        )
    except (KeyError, ValueError) as error:
        raise FormatError(f"a stanza of the package index lacks a field: {error}") from error


def _date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)
