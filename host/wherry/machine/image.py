"""The VM image as machines see it: built when missing, renewed on demand. All calls block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from wherry.errors import ImageBuildError
from wherry.machine.config import MachineConfig
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage, VmImageError, build_image, parse_kernel, refresh_lock
from wherry_image.foreign import QEMU_USER
from wherry_image.lock import PackageChange
from wherry_image.sshserver import SSH_SERVER

Progress = Callable[[str, int, int], None]


def prepare_image(
    config: MachineConfig, home: Home, settings: Settings, progress: Progress | None = None
) -> VmImage:
    """The image for such a machine; made from packages when it is not there yet.

    Raises:
        ImageBuildError: a package, the mirror or the configuration is at fault.
    """
    try:
        return build_image(
            arch=config.arch,
            kernel=parse_kernel(config.kernel, config.modules),
            packages=home.packages,
            out=home.vm_images,
            locks=[home.vm_locks],
            mirror=settings.debian_mirror,
            progress=progress,
        )
    except VmImageError as error:
        raise ImageBuildError(error.message, hint=error.hint) from error


def upgrade_image(
    config: MachineConfig, home: Home, settings: Settings, progress: Progress | None = None
) -> list[dict[str, str]]:
    """Take the newest signed packages and build the image of the next start.

    Returns:
        {name, old, new} per package that changed; `old` or `new` is empty where it came or went.

    Raises:
        ImageBuildError: as `prepare_image`.
    """
    try:
        change = refresh_lock(
            arch=config.arch,
            kernel=parse_kernel(config.kernel, config.modules),
            locks=[home.vm_locks],
            mirror=settings.debian_mirror,
            progress=progress,
        )
        changes = [*change.packages, *_newer_extras(config.arch, home, settings)]
    except VmImageError as error:
        raise ImageBuildError(error.message, hint=error.hint) from error
    prepare_image(config, home, settings, progress)
    return [asdict(package) for package in changes]


def _newer_extras(arch: str, home: Home, settings: Settings) -> list[PackageChange]:
    """Emulators for other architectures' programs and the SSH server, where they are in use."""
    changes: list[PackageChange] = []
    locks, mirror = [home.vm_locks], settings.debian_mirror
    if any(home.emulators.glob(f"{arch}-*.erofs")):
        changes += QEMU_USER.refresh(arch=arch, locks=locks, mirror=mirror)
    if any(home.ssh_servers.glob(f"ssh-{arch}-*.cpio")):
        changes += SSH_SERVER.refresh(arch=arch, locks=locks, mirror=mirror)
    return changes
