"""The SSH server of the VM, which is not in its image: an archive that it is given on demand.

Dropbear, OpenSSH's SFTP server and the libraries that they need, of a lock of their own; only the C
library is the VM's. A newc archive of regular files: `bin/PROGRAM` and `lib/SONAME`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from .archive import ARCHITECTURES
from .build import shipped
from .cpio import write_cpio
from .deb import data_members
from .elf import is_elf, needed
from .errors import ConfigError, FormatError, PackageGone
from .fetch import fetch_packages
from .lock import Lock, PackageChange, compare_locks, format_lock
from .lockfiles import newest_lock, write_lock
from .mirror import Mirror, mirrors
from .progress import Progress, nobody_watches
from .tree import Tree

ROOTS = ("dropbear-bin", "openssh-sftp-server")

_PROGRAMS = {
    "/usr/sbin/dropbear": "dropbear",
    "/usr/bin/dropbearkey": "dropbearkey",
    "/usr/lib/openssh/sftp-server": "sftp-server",
}
_VM_PACKAGES = ("libc6", "libgcc-s1")
"""What the VM has itself: a C library must be the one that its dynamic linker belongs to."""

_LIBRARIES = "/usr/lib/"
_LAYOUT = b"1"
"""Of the archive; another one makes archives anew."""


@dataclass(frozen=True, slots=True)
class SshServerArchive:
    """The archive on this disk.

    Attributes:
        digest: SHA-256 (hex) of its bytes.
        notices: lines for a person; usually none.
    """

    file: Path
    digest: str
    notices: tuple[str, ...] = ()


def ssh_server_archive(
    *,
    arch: str,
    packages: Path,
    out: Path,
    locks: Sequence[Path] = (),
    mirror: str | None = None,
    progress: Progress = nobody_watches,
) -> SshServerArchive:
    """The archive for machines of `arch`, from `out` when it is there, else made; older ones go.

    Packages that no mirror has any more are replaced by the newest signed ones, whose lock is kept
    in the first directory of `locks`.

    Raises:
        VmImageError: one of its kinds.
    """
    lock = ssh_server_lock(arch, locks)
    file = _file(out, lock)
    notices: tuple[str, ...] = ()
    if not file.exists():
        try:
            files = _fetch(lock, packages, mirror, progress)
        except PackageGone as gone:
            lock, remarks = _resolve(lock, mirror, progress)
            notices = (f"{gone.message}: the newest ones are taken", *remarks)
            files = _fetch(lock, packages, mirror, progress)
            if locks:
                write_lock(_lock_file(locks[0], arch), lock)
        file = _file(out, lock)
        _write(file, write_cpio(_contents(files), lock.epoch), f"ssh-{arch}-*.cpio")
    return SshServerArchive(file, hashlib.sha256(file.read_bytes()).hexdigest(), notices)


def ssh_server_lock(arch: str, locks: Sequence[Path] = ()) -> Lock:
    """The newest lock of the server, of `locks` (directories) and ours.

    Raises:
        ConfigError, LockError: no such architecture; a lock is damaged.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture {arch}", hint=f"one of {', '.join(ARCHITECTURES)}")
    ours = shipped(_lock_file(Path(), arch).name)
    files = [*(_lock_file(directory, arch) for directory in locks), ours]
    lock = newest_lock(arch, files, ROOTS)
    if lock is None:
        raise ConfigError(f"no lock names the SSH server for {arch}")
    return lock


def refresh_ssh_server(
    *,
    arch: str,
    locks: Sequence[Path],
    mirror: str | None = None,
    progress: Progress = nobody_watches,
) -> list[PackageChange]:
    """Pin the newest signed server in `locks[0]`; nothing is written when there is none newer.

    Raises:
        VmImageError: one of its kinds; the present lock stays as it is.
    """
    present = ssh_server_lock(arch, locks)
    lock, _ = _resolve(present, mirror, progress)
    changes = compare_locks(present.packages, lock.packages)
    if changes:
        write_lock(_lock_file(locks[0], arch), lock)
    return changes


def _contents(files: Mapping[str, Path]) -> Tree:
    """The programs, and of all libraries in the packages those that they need."""
    programs: dict[str, bytes] = {}
    libraries: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for package, file in files.items():
        if package in _VM_PACKAGES:
            continue
        for member in data_members(file.read_bytes()):
            name = PurePosixPath(member.path).name
            if member.kind == "file" and member.path in _PROGRAMS:
                programs[_PROGRAMS[member.path]] = member.data
            elif member.kind == "file" and member.path.startswith(_LIBRARIES):
                libraries[name] = member.data
            elif member.kind == "symlink" and member.path.startswith(_LIBRARIES):
                links[name] = PurePosixPath(member.target).name
    if missing := sorted(set(_PROGRAMS.values()) - programs.keys()):
        raise FormatError(f"the packages of the SSH server have no {', '.join(missing)}")
    tree = Tree()
    wanted = list(programs.values())
    for name, data in programs.items():
        tree.add_file(f"/bin/{name}", data, 0o755)
    while wanted:
        for soname in needed(wanted.pop()):
            data = libraries.get(links.get(soname, soname), b"")
            if is_elf(data) and f"/lib/{soname}" not in tree:
                tree.add_file(f"/lib/{soname}", data, 0o755)
                wanted.append(data)
    return tree


def _write(file: Path, data: bytes, others: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".making-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as temporary:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    for old in file.parent.glob(others):
        if old != file:
            old.unlink(missing_ok=True)


def _fetch(lock: Lock, packages: Path, mirror: str | None, progress: Progress) -> dict[str, Path]:
    def sources() -> list[Mirror]:
        return mirrors(mirror, lock.timestamp)

    wanted = [package for package in lock.packages if package.name not in _VM_PACKAGES]
    return fetch_packages(wanted, packages, sources, progress)


def _resolve(present: Lock, mirror: str | None, progress: Progress) -> tuple[Lock, tuple[str, ...]]:
    from .index import resolve_lock  # the signatures' library: seldom needed

    sources = mirrors(mirror, datetime.now(UTC))
    resolution = resolve_lock(
        present.architecture,
        ROOTS,
        sources,
        not_before=present.timestamp,
        progress=progress,
    )
    return resolution.lock, resolution.notices


def _file(out: Path, lock: Lock) -> Path:
    tag = hashlib.sha256(_LAYOUT + format_lock(lock).encode()).hexdigest()[:24]
    return out / f"ssh-{lock.architecture}-{tag}.cpio"


def _lock_file(directory: Path, arch: str) -> Path:
    return directory / f"ssh-{arch}.lock"
