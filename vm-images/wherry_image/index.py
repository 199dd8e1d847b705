"""From mirrors to a verified package index, and from that to a new lock.

Every byte is checked before it is used: InRelease by Debian's signature, the package index by the
digest that the signed text promises. An index that is older than the lock which it would
replace, or past its own Valid-Until, is refused: both are what a replay of old, vulnerable
packages looks like.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .archive import SUITES, Release, Suite, parse_packages, parse_release
from .errors import MirrorError, PackageGone, SignatureError, VmImageError
from .fetch import fetch_bytes
from .lock import Lock
from .mirror import Mirror
from .progress import Progress, nobody_watches
from .resolve import Index, closure
from .signature import archive_keyring, verified_text

_RELEASE_LIMIT = 1 << 20
"""InRelease files are about 150 KB; no mirror may make us read more than this."""

_INDEX_LIMIT = 256 << 20
"""Uncompressed package indexes are about 55 MB."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A new lock, and remarks that a person should see."""

    lock: Lock
    notices: tuple[str, ...]


def resolve_lock(
    arch: str,
    roots: Iterable[str],
    sources: Sequence[Mirror],
    not_before: datetime | None = None,
    progress: Progress = nobody_watches,
    keyring: bytes | None = None,
    now: datetime | None = None,
    *,
    debian: bool = False,
) -> Resolution:
    """Choose the newest signed packages that `roots` need, from the first mirror that can be used.

    Args:
        not_before: the timestamp of the lock that is replaced.
        debian: for a whole Debian rather than the VM: also what every Debian has, nothing excluded.
        keyring, now: for tests; Debian's keyring and the present by default.

    Raises:
        SignatureError: an index is not signed, altered, expired or older than `not_before`.
        MirrorError: no mirror has the indexes. DependencyError: `roots` cannot be satisfied.
    """
    roots = tuple(sorted(set(roots)))
    keys = keyring if keyring is not None else archive_keyring()
    failure: VmImageError | None = None
    for mirror in sources:
        try:
            index, date, notices = _load(arch, mirror, keys, now or datetime.now(UTC), progress)
            _refuse_older(date, not_before)
        except (MirrorError, SignatureError) as error:
            failure = failure or error
            continue
        if debian:
            packages = closure(index, {*roots, *index.basic()}, excluded={})
        else:
            packages = closure(index, roots)
        return Resolution(Lock(arch, date, roots, tuple(packages)), tuple(notices))
    raise failure or MirrorError("there is no mirror to ask")


def _refuse_older(date: datetime, not_before: datetime | None) -> None:
    if not_before is not None and date < not_before:
        raise SignatureError(
            f"the mirror's index ({date:%Y-%m-%d}) is older than the lock ({not_before:%Y-%m-%d})",
            hint="use another mirror",
        )


def _load(
    arch: str, mirror: Mirror, keyring: bytes, now: datetime, progress: Progress
) -> tuple[Index, datetime, list[str]]:
    index, dates, notices = Index(), [], []
    for number, suite in enumerate(SUITES):
        progress("index", number, len(SUITES))
        try:
            release = _release(mirror, suite, keyring, now)
        except PackageGone:
            if suite is SUITES[0]:
                raise
            notices.append(f"the mirror has no {suite.name}: its updates are left out")
            continue
        index.add(parse_packages(_package_index(mirror, suite, release, arch), suite.archive))
        dates.append(release.date)
    return index, max(dates), notices


def _release(mirror: Mirror, suite: Suite, keyring: bytes, now: datetime) -> Release:
    path = f"{suite.archive}/dists/{suite.name}/InRelease"
    data = fetch_bytes([mirror], path, _RELEASE_LIMIT)
    release = parse_release(verified_text(data, keyring, f"the index of {suite.name}"))
    if release.codename != suite.name:
        raise SignatureError(f"the mirror sent {release.codename} where {suite.name} was asked for")
    if release.valid_until is not None and release.valid_until < now:
        raise SignatureError(
            f"the mirror's index of {suite.name} expired on {release.valid_until:%Y-%m-%d}",
            hint="use another mirror, or set this computer's clock",
        )
    return release


def _package_index(mirror: Mirror, suite: Suite, release: Release, arch: str) -> str:
    path = suite.index_path(arch)
    if path not in release.checksums:
        raise SignatureError(f"{suite.name} has no packages for {arch}")
    digest, size = release.checksums[path]
    directory = path.rpartition("/")[0]
    by_hash = f"{suite.archive}/dists/{suite.name}/{directory}/by-hash/SHA256/{digest}"
    try:
        data = fetch_bytes([mirror], by_hash, size)
    except PackageGone:
        data = fetch_bytes([mirror], f"{suite.archive}/dists/{suite.name}/{path}", size)
    if hashlib.sha256(data).hexdigest() != digest:
        raise SignatureError(
            f"the package index of {suite.name} is not the one that was signed",
            hint="the mirror is being updated, or altered: try again, or use another",
        )
    decompressor = lzma.LZMADecompressor()
    text = decompressor.decompress(data, _INDEX_LIMIT)
    if not decompressor.eof:
        raise SignatureError(f"the package index of {suite.name} is unreasonably large")
    return text.decode()
