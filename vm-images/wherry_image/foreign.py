"""For containers of other architectures: Debian's qemu-user, and `localhost/busybox` for each.

Both are single packages, pinned by a lock and fetched as those of the VM image are. Emulators run
in the VM, so they are for its architecture; a busybox is for the container's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import busybox
from .archive import ARCHITECTURES, Package
from .build import shipped
from .config import BUSYBOX_BINARY, BUSYBOX_PACKAGE
from .deb import data_members
from .elf import is_elf, needed
from .errors import ConfigError, FormatError, PackageGone
from .fetch import fetch_packages
from .lock import Lock, PackageChange, compare_locks
from .lockfiles import newest_lock, read_locks, write_lock
from .mirror import Mirror, mirrors
from .progress import Progress, nobody_watches

EMULATOR_PACKAGE = "qemu-user"
"""From trixie on its programs are linked statically, so that they run in any root file system."""

_PROGRAMS = "/usr/bin/"


@dataclass(frozen=True, slots=True)
class PinnedPackage:
    """A package on this disk, which has the digest that its lock says.

    Attributes:
        epoch: the lock's time, in seconds since 1970.
        notices: lines for a person; usually none.
    """

    package: Package
    file: Path
    epoch: int
    notices: tuple[str, ...] = ()


def emulator_lock(arch: str, locks: Sequence[Path] = ()) -> Lock:
    """The newest lock of the emulators that run on `arch`, of `locks` (directories) and ours.

    Raises:
        ConfigError, LockError: no such architecture; a lock is damaged.
    """
    ours = shipped(_lock_file(Path(), _known(arch)).name)
    files = [*(_lock_file(directory, arch) for directory in locks), ours]
    lock = newest_lock(arch, files, (EMULATOR_PACKAGE,))
    if lock is None:
        raise ConfigError(f"no lock names the emulators for {arch}")
    return lock


def fetch_emulators(
    *,
    arch: str,
    packages: Path,
    locks: Sequence[Path] = (),
    mirror: str | None = None,
    progress: Progress = nobody_watches,
) -> PinnedPackage:
    """The package of the emulators that run on `arch`, downloaded when it is not in `packages`.

    A package that no mirror has any more is replaced by the newest signed one, whose lock is kept
    in the first directory of `locks`.

    Raises:
        VmImageError: one of its kinds.
    """
    keep = _lock_file(locks[0], arch) if locks else None
    return _fetch(emulator_lock(arch, locks), EMULATOR_PACKAGE, packages, mirror, progress, keep)


def refresh_emulators(
    *,
    arch: str,
    locks: Sequence[Path],
    mirror: str | None = None,
    progress: Progress = nobody_watches,
) -> list[PackageChange]:
    """Pin the newest signed emulators in `locks[0]`; nothing is written when there are none newer.

    Raises:
        VmImageError: one of its kinds; the present lock stays as it is.
    """
    present = emulator_lock(arch, locks)
    lock, _ = _resolve(present, EMULATOR_PACKAGE, mirror, progress)
    changes = compare_locks(present.packages, lock.packages)
    if changes:
        write_lock(_lock_file(locks[0], arch), lock)
    return changes


def emulator_programs(file: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The programs `names` out of the package, as they come.

    Raises:
        FormatError: the package is damaged, lacks one, or one is not linked statically.
    """
    missing = set(names)
    for member in data_members(file.read_bytes()):
        name = member.path.removeprefix(_PROGRAMS)
        if name not in missing or member.kind != "file":
            continue
        if not is_elf(member.data) or needed(member.data):
            raise FormatError(f"{name} of {EMULATOR_PACKAGE} is not a static program")
        missing.remove(name)
        yield name, member.data
    if missing:
        raise FormatError(f"{EMULATOR_PACKAGE} has no {', '.join(sorted(missing))}")


def busybox_layout(
    *,
    arch: str,
    packages: Path,
    out: Path,
    locks: Sequence[Path] = (),
    mirror: str | None = None,
    progress: Progress = nobody_watches,
) -> Path:
    """`localhost/busybox` for `arch`, an OCI layout below `out`; no VM image is built for it.

    Raises:
        VmImageError: one of its kinds.
    """
    files = [*(directory / f"{_known(arch)}.lock" for directory in locks), shipped(f"{arch}.lock")]
    lock = max(read_locks(arch, files), key=lambda lock: lock.timestamp)
    fetched = _fetch(lock, BUSYBOX_PACKAGE, packages, mirror, progress)
    inputs = f"{fetched.package.sha256} {fetched.epoch} ".encode()
    tag = hashlib.sha256(inputs + Path(busybox.__file__).read_bytes()).hexdigest()[:24]
    directory = out / f"busybox-{arch}-{tag}"
    if not directory.exists():
        _write_busybox(directory, arch, fetched)
        for other in out.glob(f"busybox-{arch}-*"):
            if other != directory:
                shutil.rmtree(other, ignore_errors=True)
    return directory


def _write_busybox(directory: Path, arch: str, fetched: PinnedPackage) -> None:
    members = data_members(fetched.file.read_bytes())
    binary = next((it.data for it in members if it.path == BUSYBOX_BINARY), None)
    if binary is None:
        raise FormatError(f"{BUSYBOX_PACKAGE} has no {BUSYBOX_BINARY}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=directory.parent))
    try:
        busybox.write_layout(work, binary, arch, fetched.package.version, fetched.epoch)
        work.rename(directory)
    except OSError:
        if not directory.exists():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(
    lock: Lock,
    name: str,
    packages: Path,
    mirror: str | None,
    progress: Progress,
    keep: Path | None = None,
) -> PinnedPackage:
    """One package of `lock`; when it is gone the newest one, whose lock goes to `keep`."""

    def fetched(lock: Lock, notices: tuple[str, ...]) -> PinnedPackage:
        def sources() -> list[Mirror]:
            return mirrors(mirror, lock.timestamp)

        package = next(it for it in lock.packages if it.name == name)
        files = fetch_packages([package], packages, sources, progress)
        return PinnedPackage(package, files[name], lock.epoch, notices)

    try:
        return fetched(lock, ())
    except PackageGone as gone:
        newest, remarks = _resolve(lock, name, mirror, progress)
        found = fetched(newest, (f"{gone.message}: the newest one is taken", *remarks))
    if keep is not None:
        write_lock(keep, newest)
    return found


def _resolve(
    present: Lock, name: str, mirror: str | None, progress: Progress
) -> tuple[Lock, tuple[str, ...]]:
    from .index import resolve_lock  # the signatures' library: seldom needed

    sources = mirrors(mirror, datetime.now(UTC))
    arch, oldest = present.architecture, present.timestamp
    resolution = resolve_lock(arch, [name], sources, not_before=oldest, progress=progress)
    return resolution.lock, resolution.notices


def _known(arch: str) -> str:
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture {arch}", hint=f"one of {', '.join(ARCHITECTURES)}")
    return arch


def _lock_file(directory: Path, arch: str) -> Path:
    return directory / f"emulators-{arch}.lock"
