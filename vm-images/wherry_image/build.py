"""linuxkit.yml and a lock in, a bootable VM image out: the public functions of this package.

A finished image is a directory `out/ARCH-INPUTS/` that appears by one rename; INPUTS is a hash of the
configuration, the lock and this package's own sources, so an unchanged image is found in milliseconds,
without parsing anything. It holds:

    image.json        what `VmImage` says
    kernel, initrd    for QEMU's -kernel and -initrd
    vmlinux           the same kernel uncompressed (x86)
    busybox/          an OCI image layout
    lock              what it is made of
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from . import busybox
from .archive import ARCHITECTURES
from .assemble import Assembly, assemble
from .config import ImageConfig, parse_config
from .cpio import write_cpio
from .errors import ConfigError, LockError, PackageGone
from .index import resolve_lock
from .kernel import uncompressed
from .lock import Lock, PackageChange, compare_locks, format_lock, parse_lock
from .mirror import Progress, fetch_packages, mirrors

CONFIG_NAME = "linuxkit.yml"
_RECORD = "image.json"
_FAST_KERNEL = "vmlinux"


@dataclass(frozen=True, slots=True)
class VmImage:
    """A finished image.

    Attributes:
        key: SHA-256 over the contents (kernel, initrd, command line, busybox image), hexadecimal.
        kernel, initrd: files for QEMU; more cpio archives may be appended to the initrd.
        fast_kernel: the same kernel uncompressed, which starts sooner under software emulation and has no
            KASLR; `kernel` itself where the distribution's is not compressed (arm64).
        busybox: an OCI image layout that holds `localhost/busybox`.
        notices: lines for a person, such as "linux-image-… 6.12.1-1 -> 6.12.2-1"; usually none.
    """

    key: str
    arch: str
    kernel: Path
    fast_kernel: Path
    initrd: Path
    cmdline: str
    kernel_version: str
    busybox: Path
    notices: tuple[str, ...] = ()


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
        locks: directories that may hold `ARCH.lock`. Of those and the lock that Wherry ships, the newest
            that fits the configuration is used. A lock that has to be made anew is kept in the first.
        mirror: base URL of a Debian mirror; None: as `mirror.mirrors` describes.
        locked: build what the lock says or fail.
        progress: called with (`index`, `download`, `unpack` or `write`, done, total).

    Raises:
        VmImageError: one of its kinds; nothing half-built is left behind.
    """
    inputs = _Inputs.read(arch, config, locks)
    if inputs.locks and (image := _finished(out, inputs, inputs.locks[0].text)):
        return image
    settings = parse_config(inputs.config.decode(), inputs.config_name, arch)
    roots = _roots(settings)
    found = next((lock for lock in inputs.locks if lock.parsed.roots == roots), None)
    notices: list[str] = []
    if found is None:
        if locked:
            raise LockError(
                f"no lock fits {inputs.config_name} for {arch}",
                hint="make one: python -m wherry_image lock",
            )
        found = _relock(arch, roots, None, locks, mirror, notices, progress)
    if image := _finished(out, inputs, found.text):
        return image
    sources = lambda: mirrors(mirror, found.parsed.timestamp)  # noqa: E731 - asked for only when needed
    try:
        files = fetch_packages(found.parsed.packages, packages, sources, progress)
    except PackageGone as gone:
        if locked:
            raise
        notices.append(gone.message)
        found = _relock(arch, roots, found.parsed, locks, mirror, notices, progress)
        files = fetch_packages(
            found.parsed.packages,
            packages,
            lambda: mirrors(mirror, datetime.now(UTC)),
            progress,
        )
    step = (lambda done, total: progress("unpack", done, total)) if progress else _no_step
    assembly = assemble(
        settings,
        arch,
        found.parsed.packages,
        files,
        (busybox.PACKAGE, busybox.BINARY),
        step,
    )
    return _write(out, inputs, found, settings, assembly, tuple(notices), progress)


def refresh_lock(
    *,
    arch: str,
    locks: Sequence[Path],
    config: Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> LockChange:
    """Resolve the newest signed packages into `locks[0]/ARCH.lock`.

    When no package changes nothing is written, so that the image stays the same.

    Raises:
        VmImageError: one of its kinds; the present lock stays as it is.
    """
    inputs = _Inputs.read(arch, config, locks)
    settings = parse_config(inputs.config.decode(), inputs.config_name, arch)
    roots = _roots(settings)
    present = next((lock.parsed for lock in inputs.locks if lock.parsed.roots == roots), None)
    path = locks[0] / f"{arch}.lock"
    resolution = resolve_lock(
        arch,
        roots,
        mirrors(mirror, datetime.now(UTC)),
        not_before=present.timestamp if present else None,
        progress=progress,
    )
    changes = compare_locks(present.packages if present else (), resolution.lock.packages)
    if changes:
        _replace(path, format_lock(resolution.lock).encode())
    return LockChange(path, tuple(changes), resolution.notices)


def shipped(name: str) -> Path:
    """A file that comes with Wherry: from the installed package, else from the checkout."""
    here = Path(__file__).parent
    places = (here / "data" / name, here.parent / name, here.parent.parent / name)
    return next((place for place in places if place.exists()), places[0])


@dataclass(frozen=True, slots=True)
class _FoundLock:
    text: bytes
    parsed: Lock


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Everything that decides what an image is, read once. `locks` is sorted, newest first."""

    arch: str
    config_name: str
    config: bytes
    locks: tuple[_FoundLock, ...] = field(default=())

    @classmethod
    def read(cls, arch: str, config: Path | None, locks: Sequence[Path]) -> _Inputs:
        if arch not in ARCHITECTURES:
            raise ConfigError(
                f"unknown architecture {arch}", hint=f"one of {', '.join(ARCHITECTURES)}"
            )
        file = config or shipped(CONFIG_NAME)
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        name = f"{arch}.lock"
        found = list(_read_locks(arch, [*(directory / name for directory in locks), shipped(name)]))
        found.sort(key=lambda lock: lock.parsed.timestamp, reverse=True)
        return cls(arch, str(file), text.replace(b"\r\n", b"\n"), tuple(found))

    def digest(self, lock: bytes) -> str:
        parts = (_own_sources(), self.config, lock)
        text = self.arch.encode() + b"".join(hashlib.sha256(part).digest() for part in parts)
        return hashlib.sha256(text).hexdigest()[:24]


def _read_locks(arch: str, files: Sequence[Path]) -> Iterator[_FoundLock]:
    for file in files:
        if not file.exists():
            continue
        text = file.read_bytes().replace(b"\r\n", b"\n")
        lock = parse_lock(text.decode(errors="replace"), str(file))
        if lock.architecture != arch:
            raise LockError(f"{file} is a lock for {lock.architecture}")
        yield _FoundLock(text, lock)


@cache
def _own_sources() -> bytes:
    """This package's code is an input of the image like any other: no version number to forget."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.digest()


def _roots(settings: ImageConfig) -> tuple[str, ...]:
    return tuple(sorted({*settings.kernel, *settings.init, busybox.PACKAGE}))


def _relock(
    arch: str,
    roots: tuple[str, ...],
    present: Lock | None,
    locks: Sequence[Path],
    mirror: str | None,
    notices: list[str],
    progress: Progress | None,
) -> _FoundLock:
    resolution = resolve_lock(
        arch,
        roots,
        mirrors(mirror, datetime.now(UTC)),
        not_before=present.timestamp if present else None,
        progress=progress,
    )
    notices.extend(resolution.notices)
    if present is not None:
        changes = compare_locks(present.packages, resolution.lock.packages)
        notices.append("packages changed: " + ", ".join(map(str, changes)))
    text = format_lock(resolution.lock).encode()
    if locks:
        _replace(locks[0] / f"{arch}.lock", text)
    return _FoundLock(text, resolution.lock)


def _no_step(done: int, total: int) -> None:
    """Nobody watches."""


def _finished(out: Path, inputs: _Inputs, lock: bytes) -> VmImage | None:
    directory = out / f"{inputs.arch}-{inputs.digest(lock)}"
    try:
        record = json.loads((directory / _RECORD).read_bytes())
        sizes = [(directory / name).stat().st_size for name in ("kernel", "initrd")]
    except OSError:
        return None
    return _image(directory, record) if sizes == record["sizes"] else None


def _image(directory: Path, record: dict[str, str], notices: tuple[str, ...] = ()) -> VmImage:
    return VmImage(
        key=record["key"],
        arch=record["arch"],
        kernel=directory / "kernel",
        fast_kernel=plain if (plain := directory / _FAST_KERNEL).exists() else directory / "kernel",
        initrd=directory / "initrd",
        cmdline=record["cmdline"],
        kernel_version=record["kernel_version"],
        busybox=directory / "busybox",
        notices=notices,
    )


def _write(
    out: Path,
    inputs: _Inputs,
    lock: _FoundLock,
    settings: ImageConfig,
    assembly: Assembly,
    notices: tuple[str, ...],
    progress: Progress | None,
) -> VmImage:
    if progress:
        progress("write", 0, 1)
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=out))
    try:
        record = _fill(work, inputs.arch, lock, settings, assembly)
        final = out / f"{inputs.arch}-{inputs.digest(lock.text)}"
        _publish(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if progress:
        progress("write", 1, 1)
    return _image(final, record, notices)


def _fill(
    work: Path, arch: str, lock: _FoundLock, settings: ImageConfig, assembly: Assembly
) -> dict[str, str]:
    epoch = lock.parsed.epoch
    initrd = write_cpio(assembly.root, epoch)
    (work / "kernel").write_bytes(assembly.kernel)
    if (plain := uncompressed(assembly.kernel)) is not None:
        (work / _FAST_KERNEL).write_bytes(plain)
    (work / "initrd").write_bytes(initrd)
    (work / "lock").write_bytes(lock.text)
    (work / "busybox").mkdir()
    version = next(p.version for p in lock.parsed.packages if p.name == busybox.PACKAGE)
    busybox.write_layout(work / "busybox", assembly.busybox, arch, version, epoch)
    parts = (
        arch.encode(),
        settings.cmdline.encode(),
        assembly.kernel,
        initrd,
        (work / "busybox" / "index.json").read_bytes(),
    )
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    record = {
        "key": hashlib.sha256(digests).hexdigest(),
        "arch": arch,
        "cmdline": settings.cmdline,
        "kernel_version": assembly.kernel_version,
    }
    sizes = [len(assembly.kernel), len(initrd)]
    (work / _RECORD).write_text(json.dumps({**record, "sizes": sizes}, indent=1) + "\n")
    return record


def _publish(work: Path, final: Path) -> None:
    """Make `work` durable and give it its name; another process's equal result may win."""
    for path in sorted(work.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    try:
        work.rename(final)
    except OSError:
        if (final / _RECORD).exists():
            shutil.rmtree(final)
        work.rename(final)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".lock-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
