"""linuxkit.yml -> kernel and initrd, from signed distribution packages; any OS, no root.

The public functions; what they do is in docs/vm-image.md.
"""

from __future__ import annotations

from .agent import agent_cpio
from .build import LockChange, build_image, check_kernel, refresh_lock
from .errors import VmImageError
from .image import VmImage
from .kernels import KernelChoice, parse_kernel

__all__ = [
    "KernelChoice",
    "LockChange",
    "VmImage",
    "VmImageError",
    "agent_cpio",
    "build_image",
    "check_kernel",
    "parse_kernel",
    "refresh_lock",
]
