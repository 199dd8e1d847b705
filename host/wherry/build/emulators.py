"""The emulators for programs of other architectures, as a layer: Debian's qemu-user in EROFS.

Which programs the kernel hands to which emulator is data here; the guest registers it with
binfmt_misc (Documentation/admin-guide/binfmt-misc.rst). Blocking; call it in a thread.
"""

from __future__ import annotations

import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from wherry.errors import ImageBuildError
from wherry.images.convert import convert, read_chunks
from wherry.images.erofs import FORMAT, layer_uuid
from wherry.osutil import private_directory
from wherry_image import VmImageError
from wherry_image.foreign import EMULATOR_PACKAGE, QEMU_USER, emulator_programs

Progress = Callable[[str, int, int], None]
"""progress(phase, done, total); phases: index, download, unpack."""

_CLASS32, _CLASS64 = 1, 2
_LITTLE, _BIG = 1, 2
_EXECUTABLE = 2
_IDENT_BYTES = 16
"""elf(5): e_ident, then e_type (2: a program; 3: one that may lie anywhere) and e_machine."""

PROGRAMS = "usr/bin"
"""Their directory in the layer."""

_LAYER_BYTES = 1 << 30
"""More than the package can honestly unpack to; it has about 100 MB."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """One program of qemu-user.

    Attributes:
        architecture: of the programs that it runs, in images' terms.
        machine: elf(5), e_machine.
        probe: machine code that exits with 0, of 32-bit architectures that some 64-bit processors
            run by themselves: only the guest can tell.
    """

    architecture: str
    program: str
    machine: int
    bits: int = _CLASS64
    order: int = _LITTLE
    probe: bytes = b""

    @property
    def magic(self) -> bytes:
        """How such a program begins."""
        ident = struct.pack("4sBBB9x", b"\x7fELF", self.bits, self.order, 1)
        return ident + self._halves(_EXECUTABLE, self.machine)

    @property
    def mask(self) -> bytes:
        """The bits of it that count: not the OS ABI, and programs that may lie anywhere count."""
        ident = b"\xff" * 7 + b"\0" + b"\xff" * 8
        return ident + self._halves(0xFFFE, 0xFFFF)

    @property
    def probe_program(self) -> bytes:
        """`probe` as a whole program; b"" where there is none."""
        if not self.probe:
            return b""
        header, segment, base = 52, 32, 0x10000
        size = header + segment + len(self.probe)
        head = self._halves(_EXECUTABLE, self.machine)
        rest = struct.pack("<5I", 1, base + header + segment, header, 0, 0)
        sizes = struct.pack("<6H", header, segment, 1, 0, 0, 0)
        load = struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000)
        return self.magic[:_IDENT_BYTES] + head + rest + sizes + load + self.probe

    def _halves(self, *values: int) -> bytes:
        return struct.pack((">" if self.order == _BIG else "<") + f"{len(values)}H", *values)


EMULATORS = (
    Emulator("arm64", "qemu-aarch64", 183),
    Emulator("amd64", "qemu-x86_64", 62),
    # mov r0, #0; mov r7, #1 (exit); svc 0
    Emulator("arm", "qemu-arm", 40, _CLASS32, probe=bytes.fromhex("0000a0e30170a0e3000000ef")),
    # xor ebx, ebx; mov eax, 1 (exit); int 0x80
    Emulator("386", "qemu-i386", 3, _CLASS32, probe=bytes.fromhex("31dbb801000000cd80")),
    Emulator("riscv64", "qemu-riscv64", 243),
    Emulator("ppc64le", "qemu-ppc64le", 21),
    Emulator("s390x", "qemu-s390x", 22, order=_BIG),
)
"""e_machine: elf.h, EM_*. PowerPC's little-endian programs differ in the byte order only."""


@dataclass(frozen=True, slots=True)
class EmulatorLayer:
    """The layer on this disk; its programs are in PROGRAMS."""

    diff_id: str
    path: Path

    @property
    def uuid(self) -> str:
        return layer_uuid(self.diff_id).hex


@dataclass(frozen=True, slots=True)
class EmulatorSource:
    """Where emulators for a machine of `arch` come from.

    Attributes:
        packages, locks, layers: directories.
        mirror: the configured one, or None.
    """

    arch: str
    packages: Path
    locks: Path
    layers: Path
    mirror: str | None = None

    def find(self) -> EmulatorLayer | None:
        """The layer of the locked package, when it was made before."""
        with_package = f"{self.arch}-{self._locked_digest()[:24]}-{FORMAT}-"
        for path in self.layers.glob(f"{with_package}*.erofs"):
            return EmulatorLayer(f"sha256:{path.stem.removeprefix(with_package)}", path)
        return None

    def make(self, progress: Progress = lambda phase, done, total: None) -> EmulatorLayer:
        """The layer; downloaded and made when there is none. Those of other packages go.

        Raises:
            ImageBuildError: it cannot be had.
        """
        try:
            if (found := self.find()) is not None:
                return found
            fetched = QEMU_USER.fetch(
                arch=self.arch,
                packages=self.packages,
                locks=[self.locks],
                mirror=self.mirror,
                progress=progress,
            )
            names = [it.program for it in EMULATORS if it.architecture != self.arch]
            programs = emulator_programs(fetched.files[EMULATOR_PACKAGE], names)
            digest = fetched.package(EMULATOR_PACKAGE).sha256
            prefix = f"{self.arch}-{digest[:24]}-{FORMAT}-"
            epoch = fetched.lock.epoch
            return self._write(_counted(programs, len(names), progress), epoch, prefix)
        except VmImageError as error:
            raise ImageBuildError(
                f"the emulators for programs of other architectures: {error.message}",
                hint=error.hint,
            ) from error

    def _write(
        self, programs: Iterable[tuple[str, bytes]], epoch: int, prefix: str
    ) -> EmulatorLayer:
        private_directory(self.layers)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self.layers) as directory:
            tar = Path(directory, "layer.tar")
            _write_tar(tar, programs, epoch)
            target = Path(directory, "layer.erofs")
            with tar.open("rb") as file:
                made = convert(read_chunks(file), target, None, _LAYER_BYTES)
            path = self.layers / f"{prefix}{made.diff_id.removeprefix('sha256:')}.erofs"
            target.replace(path)
        self._remove_others(path)
        return EmulatorLayer(made.diff_id, path)

    def _remove_others(self, path: Path) -> None:
        for other in self.layers.glob(f"{self.arch}-*.erofs"):
            if other != path:
                try:
                    other.unlink(missing_ok=True)
                except OSError:
                    continue  # Windows: a machine has it open; it goes when the next one is made

    def _locked_digest(self) -> str:
        return QEMU_USER.lock(self.arch, [self.locks]).packages[0].sha256


def _write_tar(path: Path, programs: Iterable[tuple[str, bytes]], epoch: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in programs:
            info = tarfile.TarInfo(f"{PROGRAMS}/{name}")
            info.mode, info.mtime, info.size = 0o755, epoch, len(data)
            tar.addfile(info, BytesIO(data))


def _counted(
    programs: Iterable[tuple[str, bytes]], total: int, progress: Progress
) -> Iterator[tuple[str, bytes]]:
    for number, program in enumerate(programs, start=1):
        yield program
        progress("unpack", number, total)
