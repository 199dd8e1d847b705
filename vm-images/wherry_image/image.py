"""Finished images on disk: `out/NAME-INPUTS/`, a directory that appears by one rename. NAME is the
architecture, and the kernel's label where it is not the shipped one.

INPUTS is a hash of everything that decides what the image is, so an unchanged one is found in
milliseconds. The directory holds:

    image.json        what `VmImage` says
    kernel, initrd    for QEMU's -kernel and -initrd
    vmlinux           the same kernel uncompressed (x86)
    busybox/          an OCI image layout
    lock              what it is made of
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

RECORD = "image.json"
FAST_KERNEL = "vmlinux"


@dataclass(frozen=True, slots=True)
class VmImage:
    """A finished image.

    Attributes:
        key: SHA-256 over the contents (kernel, initrd, command line, busybox image), hexadecimal.
        kernel, initrd: files for QEMU; more cpio archives may be appended to the initrd.
        fast_kernel: the same kernel uncompressed, which starts sooner under software emulation
            and has no KASLR; `kernel` itself where the package's is not compressed (arm64).
        busybox: an OCI image layout that holds `localhost/busybox`.
        notices: lines for a person, such as "packages changed: …"; usually none.
    """

    key: str
    arch: str
    kernel: Path
    fast_kernel: Path
    initrd: Path
    cmdline: str
    kernel_version: str
    busybox: Path
    notices: tuple[str, ...] = ()


def image_directory(out: Path, name: str, inputs: str) -> Path:
    return out / f"{name}-{inputs}"


def find_image(directory: Path) -> VmImage | None:
    """The finished image in `directory`, or None when there is none or one of its files is gone."""
    try:
        record = json.loads((directory / RECORD).read_bytes())
        for name, size in record["sizes"].items():
            if (directory / name).stat().st_size != size:
                return None
    except OSError:
        return None
    fast = FAST_KERNEL if FAST_KERNEL in record["sizes"] else "kernel"
    return VmImage(
        key=record["key"],
        arch=record["arch"],
        kernel=directory / "kernel",
        fast_kernel=directory / fast,
        initrd=directory / "initrd",
        cmdline=record["cmdline"],
        kernel_version=record["kernel_version"],
        busybox=directory / "busybox",
    )
