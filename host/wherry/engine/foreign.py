"""Containers of other architectures than the machine's: what runs by itself, what is emulated.

The emulators are a layer like any other, made on the host when they are first needed, attached and
registered once in a boot. From then on the kernel holds them, so nobody unplugs the layer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from wherry.build.emulators import EMULATORS, PROGRAMS, EmulatorLayer, EmulatorSource
from wherry.engine.facts import GuestFacts
from wherry.engine.model import Container, Json
from wherry.engine.ports import LinkPort, MachinePort, Progress
from wherry.errors import MachineError
from wherry.images.platform import Platform, matches, parse_platform
from wherry.machine import LayerDisk

HOLDER = "emulators"
"""Who holds the layer, in the machine."""

REGISTER_TIMEOUT = 60.0

_CRASHES = {
    128 + 4: "SIGILL",
    128 + 5: "SIGTRAP",
    128 + 6: "SIGABRT",
    128 + 7: "SIGBUS",
    128 + 8: "SIGFPE",
    128 + 11: "SIGSEGV",
    128 + 31: "SIGSYS",
}
"""Exit codes of what an emulator cannot do, or does wrong: it ends as its program would."""

_MACHINES = ("amd64", "arm64")
"""Architectures that a machine can have."""


class Emulation:
    """What a machine needs for images of other platforms.

    Args:
        source: of the layer; its `arch` is the machine's.
        facts: what is known of the guest now.
    """

    def __init__(
        self, machine: MachinePort, source: EmulatorSource, facts: Callable[[], GuestFacts]
    ) -> None:
        self.native = Platform("linux", source.arch)
        self._machine = machine
        self._source = source
        self._facts = facts
        self._registered: LinkPort | None = None
        self._lock = asyncio.Lock()

    def is_foreign(self, container: Container) -> bool:
        """Whether its programs may need an emulator: 32-bit ones of the same family may not."""
        return parse_platform(container.platform).architecture != self.native.architecture

    def mismatch(self, container: Container) -> str | None:
        """Docker's warning for an image that was not asked for by its platform."""
        image = parse_platform(container.platform)
        here = replace(self.native, variant=self._facts().variant)
        if matches(here, image):
            return None
        if here.architecture == "arm64":
            here = replace(here, variant="v8")  # as Docker shows it
        return (
            f"The requested image's platform ({image}) does not match the detected host platform "
            f"({here}) and no specific platform was requested"
        )

    def lacks_emulators(self, container: Container) -> bool:
        """Whether a start of it would first fetch the emulators. Reads files: call it in a
        thread."""
        return self.is_foreign(container) and self._source.find() is None

    async def fetch(self, progress: Progress) -> None:
        """Have the emulators on this host. Raises ImageBuildError."""
        await self._make(progress)

    async def ensure(self, link: LinkPort, container: Container) -> None:
        """Let the machine run the container's programs; quick when it can already.

        Raises:
            MachineError: there is no emulator for them, or it cannot be registered.
            ImageBuildError: the emulators cannot be had.
        """
        if not self.is_foreign(container):
            return
        platform = parse_platform(container.platform)
        known = {emulator.architecture for emulator in EMULATORS}
        if platform.architecture not in known:
            raise MachineError(
                f"there is no emulator for programs of {platform}",
                hint=f"images of these run here: {', '.join(sorted(known))}",
            )
        async with self._lock:
            if link is not self._registered:
                await self._register(link)
                self._registered = link

    async def _register(self, link: LinkPort) -> None:
        layer = await self._make(lambda phase, done, total: None)
        disk = LayerDisk(layer.diff_id, layer.path, layer.uuid)
        self._machine.pin_layers(HOLDER, [disk.diff_id])
        await self._machine.attach_layers([disk])
        formats = [
            {
                "name": f"wherry-{it.architecture}",
                "interpreter": f"{PROGRAMS}/{it.program}",
                "magic": it.magic.hex(),
                "mask": it.mask.hex(),
                "probe": it.probe_program.hex(),
            }
            for it in EMULATORS
            if it.architecture != self.native.architecture
        ]
        params: Json = {"diff_id": disk.diff_id, "formats": formats}
        await link.call("emulators.register", params, timeout=REGISTER_TIMEOUT)

    async def _make(self, progress: Progress) -> EmulatorLayer:
        loop = asyncio.get_running_loop()

        def report(phase: str, done: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, phase, done, total)

        return await asyncio.to_thread(self._source.make, report)

    def complaint(self, container: Container, code: int) -> str:
        """A word on the emulator, for an exit code that says that it may be to blame; else ""."""
        signal = _CRASHES.get(code)
        if signal is None or not self.is_foreign(container):
            return ""
        architecture = parse_platform(container.platform).architecture
        text = f"the program, or its emulation of {architecture}, crashed ({signal})"
        if architecture not in _MACHINES:
            return text
        return (
            f"{text}; emulation is not perfect, a machine of that architecture is complete: "
            f"wherry machine create --arch {architecture}"
        )


def native_platform(machine: MachinePort) -> Platform:
    """What the machine runs by itself. Raises StorageError when its configuration is damaged."""
    return Platform("linux", machine.config.arch)
