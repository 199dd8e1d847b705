"""Small file systems for state directories: one fills up, one loses its power. Root on Linux.

The power fails by ext4's own way of testing for it: at one moment the file system stops, its
journal is not written out, and what only the page cache holds is lost.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import eventually

_EXT4_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32), include/uapi/linux/ext4.h of the kernel."""
_NOLOGFLUSH = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH."""


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def _unmount(directory: Path) -> None:
    """Wait for what has files open there."""

    def unmounted() -> bool:
        return not subprocess.run(
            ["umount", directory], capture_output=True, timeout=60, check=False
        ).returncode

    eventually(f"{directory} can be unmounted", unmounted)


@contextmanager
def memory_disk(directory: Path, mib: int) -> Iterator[None]:
    """A file system of so many MiB."""
    _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "none", os.fspath(directory))
    try:
        yield
    finally:
        _unmount(directory)


def resize(directory: Path, mib: int) -> None:
    """Give a memory disk another size."""
    _run("mount", "-o", f"remount,size={mib}m", os.fspath(directory))


@contextmanager
def failing_disk(directory: Path, image: Path, mib: int) -> Iterator[None]:
    """An ext4 in the file `image`."""
    with image.open("xb") as file:
        file.truncate(mib << 20)
    _run("mkfs.ext4", "-q", "-F", os.fspath(image))
    _run("mount", "-o", "loop", os.fspath(image), os.fspath(directory))
    try:
        yield
    finally:
        _unmount(directory)


def fail_power(directory: Path) -> None:
    """From now on nothing below `directory` can be read or written."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
    finally:
        os.close(descriptor)


def power_on(directory: Path, image: Path) -> None:
    """Mount it again, once nobody uses it any more: the journal is replayed.

    It is another file then: where some other mount namespace still has the old file system, its
    image would give that very one again.
    """
    _unmount(directory)
    copy = image.with_suffix(".copy")
    _run("cp", "--sparse=always", os.fspath(image), os.fspath(copy))
    copy.replace(image)
    _run("mount", "-o", "loop", os.fspath(image), os.fspath(directory))
