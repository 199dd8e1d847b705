"""Programs of other architectures: emulators that lie in a layer, registered with the kernel.

binfmt_misc (Documentation/admin-guide/binfmt-misc.rst). The flags: F, the kernel opens the emulator
now and holds it, so that it works in every root file system, and the layer cannot be unmounted; P,
the program keeps its argv[0]; C (and O, which it needs), set-id bits count as if no emulator were.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.children import run_program
from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.layers import LayerError, Layers
from wherry_guest.channel import CallError
from wherry_guest.core.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, Kernel
from wherry_guest.loop import Loop

DIRECTORY: Final = Path("/proc/sys/fs/binfmt_misc")

_FLAGS: Final = "POCF"
_HOLDER: Final = "emulators"
_PROBE_TIMEOUT: Final = 5.0


class Formats:
    """The registrations of this boot; the kernel remembers them, no agent has to.

    Args:
        run: a directory on which programs can be started (/run/wherry).
    """

    def __init__(
        self, loop: Loop, kernel: Kernel, layers: Layers, run: Path, directory: Path = DIRECTORY
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._layers = layers
        self._run = run
        self._directory = directory

    async def register(self, params: Params) -> Answer:
        """`emulators.register`: all that the processors do not run by themselves."""
        formats = [Format.read(values) for values in params.items("formats", dict)]
        try:
            (mount,) = self._layers.hold(_HOLDER, [params.text("diff_id")])
        except LayerError as error:
            raise CallError("conflict", str(error)) from error
        self._mount()
        registered, native = [], []
        for wanted in formats:
            if wanted.probe and await self._runs(wanted):
                native.append(wanted.name)
                continue
            self._register(wanted, self._run / "l" / mount / wanted.interpreter)
            registered.append(wanted.name)
        return {"registered": registered, "native": native}

    def _mount(self) -> None:
        if not (self._directory / "register").exists():
            flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
            self._kernel.mount("binfmt_misc", str(self._directory), "binfmt_misc", flags, None)

    def _register(self, wanted: Format, interpreter: Path) -> None:
        entry = self._directory / wanted.name
        if entry.exists():
            if f"interpreter {interpreter}" in entry.read_text(encoding="utf-8").splitlines():
                return
            entry.write_text("-1", encoding="utf-8")
        if not interpreter.is_file():
            raise CallError("invalid", f"the layer has no {wanted.interpreter}")
        line = f":{wanted.name}:M::{wanted.magic}:{wanted.mask}:{interpreter}:{_FLAGS}"
        (self._directory / "register").write_text(line, encoding="ascii")

    async def _runs(self, wanted: Format) -> bool:
        """Whether the kernel starts such a program without an emulator, and it ends well."""
        if (self._directory / wanted.name).exists():
            return False  # an emulator would run it
        program = self._run / f"probe-{wanted.name}"
        program.write_bytes(wanted.probe)
        program.chmod(0o700)
        try:
            finished = await run_program(self._loop, [str(program)], _PROBE_TIMEOUT)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            return False
        finally:
            program.unlink()
        return finished.code == 0


class Format:
    """Programs that begin with `magic` where `mask` has bits; both as the kernel takes them."""

    __slots__ = ("interpreter", "magic", "mask", "name", "probe")

    def __init__(
        self, name: str, interpreter: str, magic: bytes, mask: bytes, probe: bytes
    ) -> None:
        self.name = name
        self.interpreter = interpreter
        self.magic = _escaped(magic)
        self.mask = _escaped(mask)
        self.probe = probe

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Format:
        """From a call's parameters. Raises CallError."""
        params = Params(values)
        name, interpreter = params.text("name"), params.text("interpreter")
        parts = interpreter.split("/")
        if not is_safe_name(name) or not all(is_safe_name(part) for part in parts):
            raise CallError("invalid", f"{name!r} and {interpreter!r} cannot be registered")
        try:
            magic, mask, probe = (
                bytes.fromhex(params.optional_text(key)) for key in ("magic", "mask", "probe")
            )
        except ValueError as error:
            raise CallError("invalid", f"{name}: {error}") from error
        if not magic or len(magic) != len(mask):
            raise CallError("invalid", f"{name}: magic and mask must be of one length")
        return cls(name, interpreter, magic, mask, probe)


def _escaped(data: bytes) -> str:
    """The kernel splits at colons and ends at NULs: every byte is written as `\\xNN`."""
    return "".join(f"\\x{byte:02x}" for byte in data)
