"""Where packages come from.

The order: the mirror that the user names (`mirror` argument, `WHERRY_DEBIAN_MIRROR`), and then only
that; else those of the host's own apt configuration (their base URIs, with our suites), then
Debian's public snapshot archive. Nothing here talks to a network; `fetch` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from .errors import MirrorError

SNAPSHOT = "https://snapshot-cloudflare.debian.org/archive"
"""Debian's snapshot archive behind a content network; what comes from it is checked by digest."""
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
    times = sorted({timestamp, min(timestamp + _SNAPSHOT_LAG, datetime.now(UTC))})
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

    Reads both formats of sources.list(5). A source is Debian's when it has the component `main` of
    a Debian release; third parties name their suites or components otherwise. Should one not, then
    its packages are missing or its index is not signed by Debian, and the next source is asked.
    """
    roots: dict[str, str] = {}
    for source in _apt_sources(directory):
        for suite in source.suites if "main" in source.components else ():
            codename, _, pocket = suite.replace("/", "-").partition("-")
            if codename not in _RELEASES or pocket not in _POCKETS:
                continue
            security = pocket == "security" or "debian-security" in source.uri
            roots.setdefault("debian-security" if security else "debian", source.uri)
    if "debian" not in roots:
        return None
    return Mirror({**_configured(roots["debian"]).roots, **roots})


_ROLLING = ("stable", "oldstable", "testing", "unstable", "sid")
_NAMED = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke")
_RELEASES = frozenset((*_ROLLING, *_NAMED))
_POCKETS = ("", "updates", "security", "backports")


@dataclass(frozen=True, slots=True)
class _AptSource:
    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def _apt_sources(directory: Path) -> Iterator[_AptSource]:
    """Every enabled binary source that is reached by HTTP."""
    parts = directory / "sources.list.d"
    for file in (directory / "sources.list", *sorted(parts.glob("*.list"))):
        for line in _text(file).splitlines():
            match = _ONE_LINE.match(line.split("#", 1)[0].strip())
            if match:
                components = tuple(match["components"].split())
                for uri in _http(match["uri"]):
                    yield _AptSource(uri, (match["suite"],), components)
    for file in sorted(parts.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", _text(file)):
            fields = {key: tuple(value.split()) for key, value in _deb822(stanza).items()}
            if "deb" not in fields.get("types", ()) or fields.get("enabled", ()) in _DISABLED:
                continue
            for uri in fields.get("uris", ()):
                for found in _http(uri):
                    suites, components = fields.get("suites", ()), fields.get("components", ())
                    yield _AptSource(found, suites, components)


_ONE_LINE = re.compile(
    r"deb\s+(?:\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>.*)"
)
_DISABLED = (("no",), ("false",), ("0",), ("off",))
_MIRROR_LIST = "mirror+file:"


def _http(uri: str) -> Iterator[str]:
    """`uri` without a trailing slash when it is HTTP; a mirror list's entries (apt-mirror(5))."""
    if uri.startswith(_MIRROR_LIST):
        for line in _text(Path(urlsplit(uri.removeprefix("mirror+")).path)).splitlines():
            if line.strip() and not line.startswith("#"):
                yield from _http(line.split()[0])
    elif urlsplit(uri).scheme in ("http", "https"):
        yield uri.rstrip("/")


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
