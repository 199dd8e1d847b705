"""Which `wherry_guest` this is: a digest over its source files, the same on host and guest.

The host compares the digest in an agent's HELLO with its own and replaces an older agent in place.
Reads files, nothing else; imports on any OS.
"""

from __future__ import annotations

from pathlib import Path

import wherry_guest
from wherry_guest.zygote import code_digest


def digest(directory: Path | None = None) -> str:
    """SHA-256 (hex) over the sorted (name, length, bytes) of the package's `.py` files.

    Args:
        directory: what holds `wherry_guest/`; None: the one that is running.
    """
    return code_digest(package_parent() if directory is None else directory)


def package_parent() -> Path:
    """The directory (an entry of sys.path) that holds the running `wherry_guest`."""
    return Path(next(iter(wherry_guest.__path__))).parent
