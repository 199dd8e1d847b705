"""Where packages come from, and how they get here.

The order: the mirror that the user names (`mirror` argument, `WHERRY_DEBIAN_MIRROR`), and then only that;
else those of the host's own apt configuration (their base URIs, with our suites), then Debian's public
snapshot archive. Nothing that a mirror sends is trusted: each file must have the digest that a signed
index or a lock promises. Files go to a cache keyed by SHA-256, by way of a temporary file, fsync and
rename, so a file in the cache is whole.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from .archive import Package
from .errors import MirrorError, PackageGone

SNAPSHOT = "https://snapshot.debian.org/archive"
VARIABLE = "WHERRY_DEBIAN_MIRROR"

_TIMEOUT = 30.0
"""Seconds without a byte after which a mirror counts as dead."""

_PARALLEL = 6
_CHUNK = 1 << 16
_SNAPSHOT_LAG = timedelta(days=1)
"""The snapshot archive is taken some hours after a Release file is signed, and a timestamp there means
the last snapshot before it."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One source: the base URL of each archive (`debian`, `debian-security`), without trailing slash."""

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


_RELEASES = frozenset(
    "stable oldstable testing unstable sid buster bullseye bookworm trixie forky duke".split()
)


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


@dataclass(frozen=True, slots=True)
class _Absent(Exception):
    """A mirror answered, and does not have the file."""

    url: str


def fetch_bytes(sources: Sequence[Mirror], path: str, limit: int) -> bytes:
    """The content of `ARCHIVE/…` from the first mirror that has it, at most `limit` bytes.

    Raises:
        MirrorError: no mirror has it; PackageGone when each one said that the file does not exist.
    """
    failures: list[Exception] = []
    for mirror in sources:
        url = mirror.url(path)
        if url is None:
            continue
        try:
            with _open(url) as response:
                data = response.read(limit + 1)
        except (_Absent, OSError, http.client.HTTPException) as error:
            failures.append(error)
            continue
        if len(data) <= limit:
            return bytes(data)
        failures.append(OSError(f"more than {limit} bytes"))
    raise _failure(path, failures)


def fetch_packages(
    packages: Iterable[Package],
    cache: Path,
    sources: Callable[[], Sequence[Mirror]],
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Make every package present in `cache`; a map from package name to file.

    Nothing is asked of a mirror for what is there already (`sources` is not even called).

    Raises:
        PackageGone: the mirrors answer, but one of the packages is on none of them.
        MirrorError: no mirror could be reached.
    """
    files = {package.name: cache / f"{package.sha256}.deb" for package in packages}
    missing = [package for package in packages if not files[package.name].exists()]
    if not missing:
        return files
    cache.mkdir(parents=True, exist_ok=True)
    ordered = sorted(missing, key=lambda package: package.size, reverse=True)
    total = sum(package.size for package in missing)
    available = sources()
    done = 0
    with ThreadPoolExecutor(_PARALLEL) as pool:
        jobs = {pool.submit(_fetch, package, cache, available): package for package in ordered}
        try:
            for job in as_completed(jobs):
                job.result()
                done += jobs[job].size
                if progress:
                    progress("download", done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return files


def _fetch(package: Package, cache: Path, sources: Sequence[Mirror]) -> None:
    failures: list[Exception] = []
    for mirror in sources:
        url = mirror.url(package.path)
        if url is None:
            continue
        try:
            _download(url, package, cache)
        except (_Absent, OSError, http.client.HTTPException) as error:
            failures.append(error)
        else:
            return
    raise _failure(package.path, failures)


def _download(url: str, package: Package, cache: Path) -> None:
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(prefix=".download-", dir=cache)
    try:
        with os.fdopen(handle, "wb") as file, _open(url) as response:
            size = 0
            while chunk := response.read(_CHUNK):
                size += len(chunk)
                if size > package.size:
                    break
                digest.update(chunk)
                file.write(chunk)
            if size != package.size or digest.hexdigest() != package.sha256:
                raise OSError("size or SHA-256 is not what the lock promises")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, cache / f"{package.sha256}.deb")  # noqa: PTH105 - one call, two strings
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _open(url: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "wherry"})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise _Absent(url) from error
        raise OSError(f"HTTP {error.code}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError):
            raise _Absent(url) from error
        raise OSError(str(error.reason)) from error
    return response


def _failure(path: str, failures: Sequence[Exception]) -> MirrorError:
    name = path.rpartition("/")[2]
    if failures and all(isinstance(failure, _Absent) for failure in failures):
        return PackageGone(f"no mirror has {name} any more")
    reasons = [str(failure) for failure in failures if not isinstance(failure, _Absent)]
    if failures and any(isinstance(failure, _Absent) for failure in failures):
        return PackageGone(
            f"no mirror that answers has {name} ({'; '.join(dict.fromkeys(reasons))})"
        )
    return MirrorError(
        f"cannot download {name}: {'; '.join(dict.fromkeys(reasons)) or 'there is no mirror'}",
        hint=f"check the connection, or set {VARIABLE} to a Debian mirror",
    )
