"""A kernel that the user brings: a bzImage or Image, and the directory of its modules.

Modules are read when they are needed: a distribution's directory holds hundreds of megabytes, the
VM takes some sixty files of it. Layout: `modules.builtin` and `kernel/…` below
`lib/modules/VERSION`, as `make modules_install INSTALL_MOD_PATH=DIR` leaves it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError, FormatError
from .kernel import uncompressed

_X86_MAGIC_AT, _X86_MAGIC = 0x202, b"HdrS"
_X86_VERSION_AT = 0x20E
"""The version's place less 0x200 (Documentation/arch/x86/boot.rst, kernel_version)."""
_ARM_MAGIC_AT, _ARM_MAGIC = 0x38, b"ARM\x64"
"""Documentation/arch/arm64/booting.rst, "Call the kernel image"."""
_ELF, _GZIP = b"\x7fELF", b"\x1f\x8b"
_ELF_MACHINE_AT = 18
_ELF_MACHINES = {62: "amd64", 183: "arm64"}
"""elf.h: EM_X86_64, EM_AARCH64."""
_BANNER = re.compile(rb"Linux version ([0-9][^ \x00]{1,100}) ")
"""linux_banner, init/version-timestamp.c."""
_LIMIT = 1 << 30
"""Bytes that a compressed Image may unpack to."""

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_INDEXES = ("modules.builtin", "modules.builtin.modinfo", "modules.alias")


@dataclass(frozen=True, slots=True)
class LocalKernel:
    """`image`: what QEMU boots, as it lies on disk; `directory`: that of its modules."""

    file: Path
    directory: Path
    version: str
    image: bytes

    def modules(self) -> Mapping[str, bytes]:
        """Path below the directory to content, read at each access."""
        return _Files(self.directory)

    def fingerprint(self) -> bytes:
        """Changes whenever the kernel or a module is replaced."""
        digest = hashlib.sha256(self.image)
        for path in sorted(_Files(self.directory)):
            status = (self.directory / path).stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.digest()


def open_kernel(file: Path, modules: Path | None, arch: str) -> LocalKernel:
    """Read a kernel and find its modules.

    Raises:
        ConfigError: it cannot be read, is for another architecture, or its modules are not there.
        FormatError: it is no kernel.
    """
    try:
        image = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the kernel {file}: {error.strerror}") from error
    found, version = identify_kernel(image, str(file))
    if found != arch:
        raise ConfigError(f"{file} is a kernel for {found}, the machine is {arch}")
    return LocalKernel(file, _module_directory(file, modules, version), version, image)


def identify_kernel(image: bytes, name: str) -> tuple[str, str]:
    """(architecture, version) of a bzImage, of arm64's Image or Image.gz, or of an ELF vmlinux.

    Raises:
        FormatError: something else.
    """
    if image[_X86_MAGIC_AT : _X86_MAGIC_AT + 4] == _X86_MAGIC:
        (offset,) = struct.unpack_from("<H", image, _X86_VERSION_AT)
        text = image[offset + 0x200 :][:256].split(b"\0")[0].split(b" ")[0]
        if offset and text:
            return "amd64", text.decode("ascii", "replace")
        return "amd64", _banner(uncompressed(image) or b"", name)
    if image.startswith(_GZIP):
        image = _gunzip(image, name)
    if image[_ARM_MAGIC_AT : _ARM_MAGIC_AT + 4] == _ARM_MAGIC:
        return "arm64", _banner(image, name)
    if image.startswith(_ELF) and len(image) > _ELF_MACHINE_AT + 2:
        (machine,) = struct.unpack_from("<H", image, _ELF_MACHINE_AT)
        if machine in _ELF_MACHINES:
            return _ELF_MACHINES[machine], _banner(image, name)
    raise FormatError(f"{name} is not a Linux kernel (a bzImage, Image or vmlinux)")


def _banner(image: bytes, name: str) -> str:
    match = _BANNER.search(image)
    if match is None:
        raise FormatError(f"{name} does not tell its version: is it a Linux kernel?")
    return match[1].decode("ascii", "replace")


def _gunzip(image: bytes, name: str) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(image, _LIMIT)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{name} is damaged: {error}") from error


def _module_directory(file: Path, given: Path | None, version: str) -> Path:
    """The directory of exactly this version's modules."""
    places = [given] if given else [file.parent, file.parent.parent]
    for place in places:
        names = (f"lib/modules/{version}", f"usr/lib/modules/{version}", version)
        below = [place / name for name in names]
        own = [place] if place.name == version else []
        for directory in (*own, *below):
            if not directory.is_dir():
                continue
            if not (directory / "modules.builtin").is_file():
                raise ConfigError(
                    f"{directory} has no modules.builtin, so what is built in is not known",
                    hint="make modules_install INSTALL_MOD_PATH=DIR writes it",
                )
            return directory
    looked = given or file.parent
    raise ConfigError(
        f"the modules of kernel {version} are not in {looked} (lib/modules/{version})",
        hint="make modules_install INSTALL_MOD_PATH=DIR, then --modules DIR",
    )


class _Files(Mapping[str, bytes]):
    """The modules and indexes below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names = tuple(_walk(directory))

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        path = self._directory / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _walk(directory: Path) -> Iterator[str]:
    """Relative paths with slashes. The links `build` and `source` lead to whole source trees."""
    for root, _, files in os.walk(directory):
        for name in files:
            if name.endswith(_SUFFIXES) or name in _INDEXES:
                yield Path(root, name).relative_to(directory).as_posix()
