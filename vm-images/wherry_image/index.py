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

from .archive import (
    BASE_RELEASE,
    Package,
    Release,
    Suite,
    parse_packages,
    parse_release,
    suites_of,
)
from .errors import DependencyError, MirrorError, PackageGone, SignatureError, VmImageError
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
        roots: names of packages; `NAME/RELEASE` takes a kernel from another release.
        not_before: the timestamp of the lock that is replaced.
        debian: for a whole Debian rather than the VM: also what every Debian has, nothing excluded.
        keyring, now: for tests; Debian's keyring and the present by default.

    Raises:
        SignatureError: an index is not signed, altered, expired or older than `not_before`.
        MirrorError: no mirror has the indexes. DependencyError: `roots` cannot be satisfied.
    """
    roots = tuple(sorted(set(roots)))
    by_release = _by_release(roots)
    keys = keyring if keyring is not None else archive_keyring()
    failure: VmImageError | None = None
    for mirror in sources:
        try:
            loader = _Loader(arch, mirror, keys, now or datetime.now(UTC), progress)
            indexes = {release: loader.load(release) for release in by_release}
            date = max(loader.dates)
            _refuse_older(date, not_before)
        except (MirrorError, SignatureError) as error:
            failure = failure or error
            continue
        packages = [
            package
            for release, names in by_release.items()
            for package in _chosen(indexes[release], release, names, debian)
        ]
        return Resolution(Lock(arch, date, roots, tuple(packages)), tuple(loader.notices))
    raise failure or MirrorError("there is no mirror to ask")


def _refuse_older(date: datetime, not_before: datetime | None) -> None:
    if not_before is not None and date < not_before:
        raise SignatureError(
            f"the mirror's index ({date:%Y-%m-%d}) is older than the lock ({not_before:%Y-%m-%d})",
            hint="use another mirror",
        )


def _by_release(roots: Iterable[str]) -> dict[str, list[str]]:
    """Release to names; the base release is always there, and first."""
    found: dict[str, list[str]] = {BASE_RELEASE: []}
    for root in roots:
        name, _, release = root.partition("/")
        found.setdefault(release or BASE_RELEASE, []).append(name)
    return found


def _chosen(index: Index, release: str, names: Sequence[str], debian: bool) -> list[Package]:
    if debian:
        return closure(index, {*names, *index.basic()}, excluded={})
    packages = closure(index, names)
    foreign = [package.name for package in packages if not package.name.startswith("linux-")]
    if release != BASE_RELEASE and foreign:
        raise DependencyError(
            f"the kernel of {release} wants {foreign[0]}, but only kernels come from there"
        )
    return packages


class _Loader:
    """Reads releases from one mirror; `dates` and `notices` gather over all of them."""

    def __init__(
        self, arch: str, mirror: Mirror, keyring: bytes, now: datetime, progress: Progress
    ) -> None:
        self.dates: list[datetime] = []
        self.notices: list[str] = []
        self._arch = arch
        self._mirror = mirror
        self._keyring = keyring
        self._now = now
        self._progress = progress

    def load(self, name: str) -> Index:
        index, suites = Index(), suites_of(name)
        for number, suite in enumerate(suites):
            self._progress("index", number, len(suites))
            try:
                release = _release(self._mirror, suite, self._keyring, self._now)
            except PackageGone:
                if suite is suites[0]:
                    raise
                self.notices.append(f"the mirror has no {suite.name}: its updates are left out")
                continue
            text = _package_index(self._mirror, suite, release, self._arch)
            index.add(parse_packages(text, suite.archive))
            self.dates.append(release.date)
        return index


def _release(mirror: Mirror, suite: Suite, keyring: bytes, now: datetime) -> Release:
    path = f"{suite.archive}/dists/{suite.name}/InRelease"
    data = fetch_bytes([mirror], path, _RELEASE_LIMIT)
    release = parse_release(verified_text(data, keyring, f"the index of {suite.name}"))
    if suite.name not in release.names:
        raise SignatureError(f"the mirror sent {release.names[0]} where {suite.name} was asked for")
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
