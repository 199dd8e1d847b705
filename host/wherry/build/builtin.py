"""`localhost/busybox` for architectures that no machine here has: made of its package alone."""

from __future__ import annotations

from pathlib import Path

from wherry.errors import ImageBuildError
from wherry.paths import Home
from wherry_image import VmImageError
from wherry_image.archive import ARCHITECTURES
from wherry_image.config import BUSYBOX_PACKAGE
from wherry_image.foreign import busybox_layout

__all__ = ["ARCHITECTURES", "MADE_BY", "builtin_layout"]

MADE_BY = f"Debian {BUSYBOX_PACKAGE} "
"""How the one step of its history begins."""


def builtin_layout(architecture: str, home: Home, mirror: str | None) -> Path:
    """An OCI layout; its package is downloaded when it is not here. Blocking.

    Raises:
        ImageBuildError: it cannot be had.
    """
    try:
        return busybox_layout(
            arch=architecture,
            packages=home.packages,
            out=home.vm_images,
            locks=[home.vm_locks],
            mirror=mirror,
        )
    except VmImageError as error:
        raise ImageBuildError(error.message, hint=error.hint) from error
