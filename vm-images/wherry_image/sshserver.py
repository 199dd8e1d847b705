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
from pathlib import Path, PurePosixPath

from .addons import Addon
from .cpio import write_cpio
from .deb import data_members
from .elf import is_elf, needed
from .errors import FormatError
from .lock import Lock, format_lock
from .progress import Progress, nobody_watches
from .tree import Tree

SSH_SERVER = Addon(
    "ssh",
    "the SSH server",
    roots=("dropbear-bin", "openssh-sftp-server"),
    # What the VM has itself: a C library must be the one that its dynamic linker belongs to.
    present=("libc6", "libgcc-s1"),
)

_PROGRAMS = {
    "/usr/sbin/dropbear": "dropbear",
    "/usr/bin/dropbearkey": "dropbearkey",
    "/usr/lib/openssh/sftp-server": "sftp-server",
}
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
    file = _file(out, SSH_SERVER.lock(arch, locks))
    notices: tuple[str, ...] = ()
    if not file.exists():
        fetched = SSH_SERVER.fetch(
            arch=arch, packages=packages, locks=locks, mirror=mirror, progress=progress
        )
        file, notices = _file(out, fetched.lock), fetched.notices
        content = write_cpio(_contents(fetched.files), fetched.lock.epoch)
        _write(file, content, f"ssh-{arch}-*.cpio")
    return SshServerArchive(file, hashlib.sha256(file.read_bytes()).hexdigest(), notices)


def _contents(files: Mapping[str, Path]) -> Tree:
    """The programs, and of all libraries in the packages those that they need."""
    programs: dict[str, bytes] = {}
    libraries: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for package, file in files.items():
        if package in SSH_SERVER.present:
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


def _file(out: Path, lock: Lock) -> Path:
    tag = hashlib.sha256(_LAYOUT + format_lock(lock).encode()).hexdigest()[:24]
    return out / f"ssh-{lock.architecture}-{tag}.cpio"
