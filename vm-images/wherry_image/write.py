"""Writing a finished image: everything to a directory of its own, on disk, then one rename.

Deterministic: the bytes depend on the assembly and the lock's timestamp only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from . import busybox
from .assemble import Assembly
from .config import BUSYBOX_PACKAGE
from .cpio import write_cpio
from .image import FAST_KERNEL, RECORD, find_image
from .kernel import uncompressed
from .lock import Lock, format_lock

_WORK_PREFIX = ".building-"
_KEPT = 3
"""Finished images of a name that stay; one is about 100 MB, and can be rebuilt."""


def write_image(directory: Path, lock: Lock, cmdline: str, assembly: Assembly) -> None:
    """Write a finished image to `directory`; nothing is there before everything is on disk."""
    out = directory.parent
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=out))
    try:
        record = _fill(work, lock, cmdline, assembly)
        (work / RECORD).write_bytes(json.dumps(record, indent=1).encode() + b"\n")
        _make_durable(work)
        _publish(work, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _remove_old(directory)


def _fill(work: Path, lock: Lock, cmdline: str, assembly: Assembly) -> dict[str, Any]:
    files = {"kernel": assembly.kernel, "initrd": write_cpio(assembly.root, lock.epoch)}
    if (plain := uncompressed(assembly.kernel)) is not None:
        files[FAST_KERNEL] = plain
    for name, content in files.items():
        (work / name).write_bytes(content)
    (work / "lock").write_bytes(format_lock(lock).encode())
    (work / "busybox").mkdir()
    version = next(p.version for p in lock.packages if p.name == BUSYBOX_PACKAGE)
    busybox.write_layout(work / "busybox", assembly.busybox, lock.architecture, version, lock.epoch)
    index = (work / "busybox" / "index.json").read_bytes()
    parts = (
        lock.architecture.encode(),
        cmdline.encode(),
        files["kernel"],
        files["initrd"],
        index,
    )
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return {
        "key": hashlib.sha256(digests).hexdigest(),
        "arch": lock.architecture,
        "cmdline": cmdline,
        "kernel_version": assembly.kernel_version,
        "sizes": {name: len(content) for name, content in files.items()},
    }


def _make_durable(work: Path) -> None:
    for path in sorted(work.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _publish(work: Path, directory: Path) -> None:
    """Give `work` its name. Another process's equal image may be there; a damaged one goes."""
    if find_image(directory) is not None:
        return
    shutil.rmtree(directory, ignore_errors=True)
    try:
        work.rename(directory)
    except OSError:
        if find_image(directory) is None:
            raise


def _remove_old(keep: Path) -> None:
    """Of the same architecture and kernel: the last part of a directory's name is its inputs."""
    name = keep.name.rpartition("-")[0]
    records = [
        path
        for path in keep.parent.glob(f"{name}-*/{RECORD}")
        if path.parent != keep and path.parent.name.rpartition("-")[0] == name
    ]
    records.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for record in records[_KEPT - 1 :]:
        shutil.rmtree(record.parent, ignore_errors=True)
