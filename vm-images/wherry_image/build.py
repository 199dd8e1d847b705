"""linuxkit.yml and a lock in, a bootable VM image out: the public functions of this package.

An image's inputs are the configuration, the lock and this package's own sources. When a finished
image of the same inputs is there, it is returned without parsing anything but the lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .archive import ARCHITECTURES
from .config import BUSYBOX_BINARY, BUSYBOX_PACKAGE, ImageConfig, parse_config
from .errors import ConfigError, LockError, PackageGone, StorageError
from .image import VmImage, find_image, image_directory
from .kernels import SHIPPED, KernelChoice
from .lock import Lock, PackageChange, compare_locks, format_lock, without_kernel
from .lockfiles import read_locks, write_lock
from .mirror import Mirror, mirrors
from .progress import Progress, nobody_watches

if TYPE_CHECKING:
    from .localkernel import LocalKernel

CONFIG_NAME = "linuxkit.yml"


@dataclass(frozen=True, slots=True)
class LockChange:
    """What a refreshed lock changed; `packages` is empty when it was the newest already."""

    path: Path
    packages: tuple[PackageChange, ...]
    notices: tuple[str, ...] = ()


def build_image(
    *,
    arch: str,
    packages: Path,
    out: Path,
    config: Path | None = None,
    kernel: KernelChoice = SHIPPED,
    locks: Sequence[Path] = (),
    mirror: str | None = None,
    locked: bool = False,
    progress: Progress | None = None,
) -> VmImage:
    """The VM image for `arch`, from `out` when it is there, else built.

    Args:
        arch: amd64 or arm64; any host can build either.
        packages: cache directory of downloaded packages.
        out: directory of finished images.
        config: a linuxkit.yml; None: the default VM.
        kernel: another kernel, with a lock and images of its own.
        locks: directories that may hold `ARCH.lock` (`ARCH-LABEL.lock`). Of those and the lock that
            Wherry ships, the newest that fits the configuration is used. A lock that has to be made
            anew is kept in the first directory.
        mirror: base URL of a Debian mirror; None: as `mirror.mirrors` describes.
        locked: build what the lock says or fail.
        progress: called with (`index`, `download`, `unpack` or `write`, done, total).

    Raises:
        VmImageError: one of its kinds; nothing half-built is left behind.
    """
    inputs = _Inputs.read(arch, config, kernel, locks)
    if inputs.locks and (image := find_image(inputs.directory(out, inputs.locks[0]))):
        return image
    build = _Build(inputs, locks, mirror, progress or nobody_watches)
    lock = build.choose_lock(locked)
    if image := find_image(inputs.directory(out, lock)):
        return image
    try:
        files = build.fetch(lock, packages)
    except PackageGone as gone:
        if locked:
            raise
        build.notices.append(gone.message)
        lock = build.resolve_anew(lock)
        files = build.fetch(lock, packages)
    return build.make(lock, files, inputs.directory(out, lock))


def check_kernel(arch: str, kernel: KernelChoice) -> None:
    """Look at what a choice names, without building anything.

    Raises:
        VmImageError: the kernel, its modules or the linuxkit.yml is not there or not usable.
    """
    inputs = _Inputs.read(arch, None, kernel, ())
    settings = inputs.settings()
    if (local := inputs.local) is not None:
        from .modules import ModuleSource, require_modules

        require_modules(ModuleSource(local.modules()), settings.modules, local.version)


def refresh_lock(
    *,
    arch: str,
    locks: Sequence[Path],
    config: Path | None = None,
    kernel: KernelChoice = SHIPPED,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> LockChange:
    """Resolve the newest signed packages into `locks[0]/ARCH.lock` (`ARCH-LABEL.lock`).

    When no package changes nothing is written, so that the image stays the same.

    Raises:
        VmImageError: one of its kinds; the present lock stays as it is.
    """
    inputs = _Inputs.read(arch, config, kernel, locks)
    build = _Build(inputs, locks, mirror, progress or nobody_watches)
    present = build.fitting_lock()
    lock = build.resolve(present)
    changes = compare_locks(present.packages if present else (), lock.packages)
    if changes:
        build.keep_lock(lock)
    return LockChange(
        _lock_file(locks[0], arch, kernel.label), tuple(changes), tuple(build.notices)
    )


def shipped(name: str) -> Path:
    """A file that comes with Wherry: from the installed package, else from the checkout."""
    here = Path(__file__).parent
    places = (here / "data" / name, here.parent / name, here.parent.parent / name)
    return next((place for place in places if place.exists()), places[0])


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Everything that decides what an image is, read once. `locks` are sorted, newest first."""

    arch: str
    config_name: str
    config: bytes
    kernel: KernelChoice
    local: LocalKernel | None
    locks: tuple[Lock, ...]

    @classmethod
    def read(
        cls, arch: str, config: Path | None, kernel: KernelChoice, locks: Sequence[Path]
    ) -> _Inputs:
        if arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConfigError(f"unknown architecture {arch}", hint=f"one of {known}")
        file = config or kernel.config or shipped(CONFIG_NAME)
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        local = _open_local(kernel, arch)
        directories = (*locks, shipped(f"{arch}.lock").parent)
        labels = (kernel.label,) if kernel.release else dict.fromkeys((kernel.label, ""))
        files = [_lock_file(place, arch, label) for place in directories for label in labels]
        found = sorted(read_locks(arch, files), key=lambda lock: lock.timestamp, reverse=True)
        if local is not None:
            found = [without_kernel(lock) for lock in found]
        config_text = text.replace(b"\r\n", b"\n")
        return cls(arch, str(file), config_text, kernel, local, tuple(found))

    def settings(self) -> ImageConfig:
        """The configuration, with the kernel that was chosen."""
        read = parse_config(self.config.decode(), self.config_name, self.arch)
        if self.local is not None:
            return replace(read, kernel=())
        if self.kernel.release is not None:
            names = (name.partition("/")[0] for name in read.kernel)
            return replace(read, kernel=tuple(f"{name}/{self.kernel.release}" for name in names))
        return read

    def directory(self, out: Path, lock: Lock) -> Path:
        """Where the image of these inputs and `lock` is, finished or not."""
        own = self.local.fingerprint() if self.local else b""
        parts = (_own_sources(), self.config, own, format_lock(lock).encode())
        text = self.arch.encode() + b"".join(hashlib.sha256(part).digest() for part in parts)
        name = f"{self.arch}-{self.kernel.label}" if self.kernel.label else self.arch
        return image_directory(out, name, hashlib.sha256(text).hexdigest()[:24])


class _Build:
    """One run: what is asked for, and the remarks that come up on the way."""

    def __init__(
        self, inputs: _Inputs, locks: Sequence[Path], mirror: str | None, progress: Progress
    ) -> None:
        self.inputs = inputs
        self.lock_directories = locks
        self.mirror = mirror
        self.progress = progress
        self.notices: list[str] = []
        self.settings = inputs.settings()
        self.roots = _roots(self.settings)

    def fitting_lock(self) -> Lock | None:
        return next((lock for lock in self.inputs.locks if lock.roots == self.roots), None)

    def choose_lock(self, locked: bool) -> Lock:
        lock = self.fitting_lock()
        if lock is not None:
            return lock
        if locked:
            raise LockError(
                f"no lock fits {self.inputs.config_name} for {self.inputs.arch}",
                hint="make one: python -m wherry_image lock",
            )
        lock = self.resolve(None)
        self.keep_lock(lock)
        return lock

    def resolve(self, present: Lock | None) -> Lock:
        """A new lock from a mirror's signed index, not older than `present`."""
        from .index import resolve_lock  # the HTTP client takes 100 ms to import

        resolution = resolve_lock(
            self.inputs.arch,
            self.roots,
            mirrors(self.mirror, datetime.now(UTC)),
            not_before=present.timestamp if present else None,
            progress=self.progress,
        )
        self.notices.extend(resolution.notices)
        return resolution.lock

    def resolve_anew(self, gone: Lock) -> Lock:
        """A lock instead of `gone`, one of whose packages can no longer be had."""
        lock = self.resolve(gone)
        changes = ", ".join(map(str, compare_locks(gone.packages, lock.packages)))
        self.notices.append(f"packages changed: {changes or 'none'}")
        self.keep_lock(lock)
        return lock

    def keep_lock(self, lock: Lock) -> None:
        if self.lock_directories:
            label = self.inputs.kernel.label
            file = _lock_file(self.lock_directories[0], lock.architecture, label)
            write_lock(file, lock)

    def fetch(self, lock: Lock, packages: Path) -> dict[str, Path]:
        from .fetch import fetch_packages  # as above

        def sources() -> list[Mirror]:
            return mirrors(self.mirror, lock.timestamp)

        return fetch_packages(lock.packages, packages, sources, self.progress)

    def make(self, lock: Lock, files: dict[str, Path], directory: Path) -> VmImage:
        from .assemble import assemble  # with the archive formats, not needed for a finished image
        from .write import write_image

        assembly = assemble(
            self.settings,
            self.inputs.arch,
            lock.packages,
            files,
            (BUSYBOX_PACKAGE, BUSYBOX_BINARY),
            self.inputs.local,
            lambda done, total: self.progress("unpack", done, total),
        )
        self.notices.extend(assembly.notices)
        self.progress("write", 0, 1)
        write_image(directory, lock, self.settings.cmdline, assembly)
        self.progress("write", 1, 1)
        image = find_image(directory)
        if image is None:
            raise StorageError(f"{directory} was removed while it was written", hint="try again")
        return replace(image, notices=tuple(self.notices))


def _open_local(kernel: KernelChoice, arch: str) -> LocalKernel | None:
    if kernel.image is None:
        return None
    from .localkernel import open_kernel  # with the archive formats, for the few who have one

    return open_kernel(kernel.image, kernel.modules, arch)


def _lock_file(directory: Path, arch: str, label: str) -> Path:
    return directory / (f"{arch}-{label}.lock" if label else f"{arch}.lock")


def _roots(settings: ImageConfig) -> tuple[str, ...]:
    return tuple(sorted({*settings.kernel, *settings.init, BUSYBOX_PACKAGE}))


@cache
def _own_sources() -> bytes:
    """This package's code is an input of the image like any other: no version to forget."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.digest()
