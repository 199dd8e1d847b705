"""What is not in the VM image and has a lock of its own: fetched when it is asked for.

An add-on's lock is found, refreshed and kept as the VM image's is: the newest one that fits, of the
directories given and the one that was shipped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .archive import ARCHITECTURES, Package
from .build import shipped
from .errors import ConfigError, PackageGone
from .fetch import fetch_packages
from .lock import Lock, PackageChange, compare_locks
from .lockfiles import newest_lock, write_lock
from .mirror import Mirror, mirrors
from .progress import Progress, nobody_watches


@dataclass(frozen=True, slots=True)
class Fetched:
    """Packages on this disk, which have the digests that `lock` says.

    Attributes:
        files: by the package's name.
        notices: lines for a person; usually none.
    """

    lock: Lock
    files: Mapping[str, Path]
    notices: tuple[str, ...] = ()

    def package(self, name: str) -> Package:
        """What the lock says of the package; it names it."""
        return next(it for it in self.lock.packages if it.name == name)


@dataclass(frozen=True, slots=True)
class Addon:
    """One add-on.

    Attributes:
        prefix: its locks are the files PREFIX-ARCH.lock.
        title: what a person calls it.
        roots: the packages that are asked for.
        present: those of the lock that nobody needs to fetch.
    """

    prefix: str
    title: str
    roots: tuple[str, ...]
    present: tuple[str, ...] = ()

    def lock(self, arch: str, locks: Sequence[Path] = ()) -> Lock:
        """The newest lock for `arch`, of `locks` (directories) and ours.

        Raises:
            ConfigError, LockError: no such architecture; a lock is damaged.
        """
        ours = shipped(self._lock_file(Path(), known_architecture(arch)).name)
        files = [*(self._lock_file(directory, arch) for directory in locks), ours]
        lock = newest_lock(arch, files, self.roots)
        if lock is None:
            raise ConfigError(f"no lock names {self.title} for {arch}")
        return lock

    def fetch(
        self,
        *,
        arch: str,
        packages: Path,
        locks: Sequence[Path] = (),
        mirror: str | None = None,
        progress: Progress = nobody_watches,
    ) -> Fetched:
        """Its packages for `arch`, downloaded when they are not in `packages`.

        Packages that no mirror has any more are replaced by the newest signed ones, whose lock is
        kept in the first directory of `locks`.

        Raises:
            VmImageError: one of its kinds.
        """
        lock = self.lock(arch, locks)
        wanted = {it.name for it in lock.packages} - set(self.present)
        found = fetch_locked(lock, self.roots, wanted, packages, mirror, progress)
        if found.lock is not lock and locks:
            write_lock(self._lock_file(locks[0], arch), found.lock)
        return found

    def refresh(
        self,
        *,
        arch: str,
        locks: Sequence[Path],
        mirror: str | None = None,
        progress: Progress = nobody_watches,
    ) -> list[PackageChange]:
        """Pin the newest signed packages in `locks[0]`; nothing is written when none is newer.

        Raises:
            VmImageError: one of its kinds; the present lock stays as it is.
        """
        present = self.lock(arch, locks)
        lock, _ = _resolve(present, self.roots, mirror, progress)
        changes = compare_locks(present.packages, lock.packages)
        if changes:
            write_lock(self._lock_file(locks[0], arch), lock)
        return changes

    def _lock_file(self, directory: Path, arch: str) -> Path:
        return directory / f"{self.prefix}-{arch}.lock"


def fetch_locked(
    lock: Lock,
    roots: Sequence[str],
    wanted: Collection[str],
    packages: Path,
    mirror: str | None,
    progress: Progress,
) -> Fetched:
    """The packages `wanted` of `lock`; when one is gone, of the newest lock for `roots`."""

    def fetched(lock: Lock) -> dict[str, Path]:
        def sources() -> list[Mirror]:
            return mirrors(mirror, lock.timestamp)

        chosen = [package for package in lock.packages if package.name in wanted]
        return fetch_packages(chosen, packages, sources, progress)

    try:
        return Fetched(lock, fetched(lock))
    except PackageGone as gone:
        newest, remarks = _resolve(lock, roots, mirror, progress)
        notices = (f"{gone.message}: the newest is taken", *remarks)
        return Fetched(newest, fetched(newest), notices)


def known_architecture(arch: str) -> str:
    """`arch`; ConfigError when there is none of that name."""
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture {arch}", hint=f"one of {', '.join(ARCHITECTURES)}")
    return arch


def _resolve(
    present: Lock, roots: Sequence[str], mirror: str | None, progress: Progress
) -> tuple[Lock, tuple[str, ...]]:
    from .index import resolve_lock  # the signatures' library: seldom needed

    resolution = resolve_lock(
        present.architecture,
        roots,
        mirrors(mirror, datetime.now(UTC)),
        not_before=present.timestamp,
        progress=progress,
    )
    return resolution.lock, resolution.notices
