"""Where packages come from.

The order: the mirror that the user names (`mirror` argument, `WHERRY_DEBIAN_MIRROR`), and then only
that; else those of the host's own apt configuration (their base URIs, with our suites), then
Debian's public snapshot archive. Nothing here talks to a network; `fetch` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from .errors import MirrorError

SNAPSHOT = "https://snapshot.debian.org/archive"
VARIABLE = "WHERRY_DEBIAN_MIRROR"

_SNAPSHOT_LAG = timedelta(days=1)
"""The snapshot archive is taken some hours after a Release file is signed, and a timestamp there
means the last snapshot before it."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One source: the base URL of each archive (`debian`, `debian-security`), without trailing
    slash."""

    roots: Mapping[str, str]

    def url(self, path: str) -> str | None:
        """The URL of `ARCHIVE/…`; None when this mirror does not have the archive."""
        archive, _, rest = path.partition("/")
        root = self.roots.get(archive)
        return f"{root}/{rest}" if root else None


def mirrors(
    configured: str | None,
    timestamp: datetime,
    environ: Mapping[str, str] = os.environ,
    apt: Path = Path("/etc/apt"),
) -> list[Mirror]:
    """The sources to ask, in order. `timestamp` is the lock's, for the snapshot archive.

    Raises:
        MirrorError: the configured mirror is not an http(s) or file URL.
    """
    if chosen := configured or environ.get(VARIABLE):
        return [_configured(chosen)]
    found = apt_mirror(apt)
    times = (timestamp, min(timestamp + _SNAPSHOT_LAG, datetime.now(UTC)))
    snapshots = [
        Mirror({archive: f"{SNAPSHOT}/{archive}/{time:%Y%m%dT%H%M%SZ}" for archive in _ARCHIVES})
        for time in times
    ]
    return ([found] if found else []) + snapshots


_ARCHIVES = ("debian", "debian-security")


def _configured(url: str) -> Mirror:
    root = url.rstrip("/")
    if urlsplit(root).scheme not in ("http", "https", "file"):
        raise MirrorError(
            f"{url} is not the URL of a mirror",
            hint=f"{VARIABLE} is like https://HOST/debian (debian-security is expected beside it)",
        )
    base, _, last = root.rpartition("/")
    security = f"{base}/debian-security" if last == "debian" else f"{root}-security"
    return Mirror({"debian": root, "debian-security": security})


def apt_mirror(directory: Path) -> Mirror | None:
    """The mirror that this host's apt uses for Debian, or None.

    Reads both formats of sources.list(5). A source counts as Debian's main archive when one of its
    suites is a Debian release and it is not the security archive.
    """
    roots: dict[str, str] = {}
    for uri, suites in _apt_sources(directory):
        if urlsplit(uri).scheme not in ("http", "https"):
            continue
        for suite in suites:
            codename, _, pocket = suite.replace("/", "-").partition("-")
            if codename not in _RELEASES:
                continue
            archive = "debian-security" if pocket.startswith(("security", "updates-")) else "debian"
            if pocket == "updates" and "security" in uri:
                archive = "debian-security"
            roots.setdefault(archive, uri.rstrip("/"))
    if "debian" not in roots:
        return None
    roots.setdefault("debian-security", _configured(roots["debian"]).roots["debian-security"])
    return Mirror(roots)


_ROLLING = ("stable", "oldstable", "testing", "unstable", "sid")
_NAMED = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke")
_RELEASES = frozenset((*_ROLLING, *_NAMED))


def _apt_sources(directory: Path) -> Iterable[tuple[str, list[str]]]:
    """(URI, suites) of every enabled binary source."""
    parts = directory / "sources.list.d"
    for file in (directory / "sources.list", *sorted(parts.glob("*.list"))):
        for line in _text(file).splitlines():
            match = _ONE_LINE.match(line.split("#", 1)[0].strip())
            if match:
                yield match["uri"], [match["suite"]]
    for file in sorted(parts.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", _text(file)):
            fields = _deb822(stanza)
            enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off")
            if enabled and "deb" in fields.get("types", "").split():
                for uri in fields.get("uris", "").split():
                    yield uri, fields.get("suites", "").split()


_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)")


def _deb822(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t") and name:
            fields[name] += " " + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # absent, or not ours to read: then apt's configuration says nothing to us
        return ""
