"""What the kernel is given: the image's initrd, this host's agent, the guest's byte code.

Three cpio archives, one behind the other. The byte code was compiled by the guest itself, before
any container ran in it, and belongs to one image and one agent.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import MachineError
from wherry.osutil import atomic_write, lock_file, sync_descriptor

BYTECODE_LIMIT = 32 << 20
"""Bytes that are taken from a guest; it sends some 3 MB."""

_CPIO_MAGIC = b"070701"
"""newc, cpio(5)."""

_KEPT = 4
"""Files of a kind: an engine of another version, which has its own, may be about to boot."""

_ALIGNMENT = 512
"""The kernel wants each archive to begin at a multiple of 4 (init/initramfs.c)."""


@dataclass(frozen=True, slots=True)
class BootFiles:
    """The names beside an image for one agent.

    Attributes:
        bytecode: the third archive; missing until the guest has sent it.
    """

    directory: Path
    initrd: Path
    agent_digest: str

    @property
    def bytecode(self) -> Path:
        return self.directory / f"bytecode-{self.agent_digest[:16]}.cpio"

    def combined(self, agent: bytes) -> Path:
        """The three archives in one file, made when it is not there yet; the eldest others go."""
        with lock_file(self.directory / "initrd.lock"):
            bytecode = self.bytecode.read_bytes() if self.bytecode.is_file() else b""
            key = hashlib.sha256(agent + bytecode).hexdigest()[:16]
            target = self.directory / f"boot-{key}.initrd"
            if not target.is_file():
                self._write(target, (agent, bytecode))
                _keep_newest(self.directory.glob("boot-*"))
        return target

    def keep_bytecode(self, archive: bytes) -> None:
        """Store what the guest sent for later boots; that of the eldest other agents goes.

        Raises:
            MachineError: it is no cpio archive.
        """
        if not archive.startswith(_CPIO_MAGIC) or len(archive) % 4:
            raise MachineError("the guest's byte code is no cpio archive")
        atomic_write(self.bytecode, archive)
        _keep_newest(self.directory.glob("bytecode-*.cpio"))

    def _write(self, target: Path, appended: Sequence[bytes]) -> None:
        temporary = target.with_suffix(".new")
        with temporary.open("wb") as file:
            with self.initrd.open("rb") as base:
                shutil.copyfileobj(base, file, 1 << 20)
            for part in appended:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                file.write(part)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.replace(target)


def _keep_newest(files: Iterable[Path]) -> None:
    """Of files that others may remove at the same time."""
    dated = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            dated.append((file.stat().st_mtime_ns, file))
    for _, old in sorted(dated, reverse=True)[_KEPT:]:
        old.unlink(missing_ok=True)
