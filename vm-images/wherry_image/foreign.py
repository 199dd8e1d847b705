"""For containers of other architectures: Debian's qemu-user, and `localhost/busybox` for each.

Both are single packages, pinned by a lock and fetched as those of the VM image are. Emulators run
in the VM, so they are for its architecture; a busybox is for the container's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import busybox
from .addons import Addon, Fetched, fetch_locked, known_architecture
from .build import shipped
from .config import BUSYBOX_BINARY, BUSYBOX_PACKAGE
from .deb import data_members
from .elf import is_elf, needed
from .errors import FormatError
from .lockfiles import read_locks
from .progress import Progress, nobody_watches

EMULATOR_PACKAGE = "qemu-user"
"""From trixie on its programs are linked statically, so that they run in any root file system."""

QEMU_USER = Addon("emulators", "the emulators", (EMULATOR_PACKAGE,))

_PROGRAMS = "/usr/bin/"


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
    files = [
        *(directory / f"{known_architecture(arch)}.lock" for directory in locks),
        shipped(f"{arch}.lock"),
    ]
    lock = max(read_locks(arch, files), key=lambda lock: lock.timestamp)
    wanted = (BUSYBOX_PACKAGE,)
    fetched = fetch_locked(lock, wanted, wanted, packages, mirror, progress)
    inputs = f"{fetched.package(BUSYBOX_PACKAGE).sha256} {fetched.lock.epoch} ".encode()
    tag = hashlib.sha256(inputs + Path(busybox.__file__).read_bytes()).hexdigest()[:24]
    directory = out / f"busybox-{arch}-{tag}"
    if not directory.exists():
        _write_busybox(directory, arch, fetched)
        for other in out.glob(f"busybox-{arch}-*"):
            if other != directory:
                shutil.rmtree(other, ignore_errors=True)
    return directory


def _write_busybox(directory: Path, arch: str, fetched: Fetched) -> None:
    members = data_members(fetched.files[BUSYBOX_PACKAGE].read_bytes())
    binary = next((it.data for it in members if it.path == BUSYBOX_BINARY), None)
    if binary is None:
        raise FormatError(f"{BUSYBOX_PACKAGE} has no {BUSYBOX_BINARY}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=directory.parent))
    try:
        version = fetched.package(BUSYBOX_PACKAGE).version
        busybox.write_layout(work, binary, arch, version, fetched.lock.epoch)
        work.rename(directory)
    except OSError:
        if not directory.exists():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
