"""Checks of what is stored: databases, machines' disks, VM images, container images."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from wherry.doctor.finding import Context, Finding, fail, ok, skipped, warn
from wherry.doctor.host import FIX
from wherry.errors import WherryError
from wherry.images.layers import disk_bytes
from wherry.images.store import ImageStore
from wherry.machine.config import read_config
from wherry.machine.qcow2 import check_disk
from wherry.machine.record import read_record
from wherry.osutil import is_alive
from wherry.osutil.databases import cannot_write
from wherry.osutil.reserve import is_full
from wherry.osutil.walcopy import read_copy
from wherry.paths import MachinePaths
from wherry.units import human_size
from wherry_image.image import find_image

_BUSY_SECONDS = 5.0
_MANY_LEAKED = 64 << 20


def databases(context: Context) -> Iterator[Finding]:
    """SQLite's own quick check. A machine's state is asked for its own, too."""
    store = context.home.store_db
    if store.exists():
        problem = database_problem(store)
        if problem is None:
            yield _sound("store.db", store)
        else:
            yield fail(
                "store.db",
                f"damaged: {problem}",
                f"{FIX} sets it aside; it is made again of index.json and the blobs: images and "
                "tags come back, the log of the tags does not",
                lambda: _set_aside(store),
            )
    for name in context.machines:
        state = context.home.machine(name).state_db
        if not state.exists():
            continue
        problem = database_problem(state)
        if problem is None:
            yield _sound(f"state.db {name}", state)
        else:
            yield fail(
                f"state.db {name}",
                f"damaged: {problem}",
                f"keep {state}: `sqlite3 {state.name} .recover` reads what is left of the "
                "containers' records; volumes and files are on the machine's disk",
            )


def _sound(title: str, path: Path) -> Finding:
    if is_full(path.parent):
        return ok(title, "SQLite finds it sound; nothing can be added, the disk is full")
    return ok(title, "SQLite finds it sound")


def database_problem(path: Path) -> str | None:
    """What SQLite says of it, in one line; None: nothing. A disk that takes nothing, so that not
    even SQLite's index of the log can be made, is none of the database's faults."""
    try:
        try:
            # rw: a database with a write-ahead log cannot be read without its index being made.
            uri = f"file:{quote(os.fsencode(path))}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)
            lines = _quick_check(connection)
        except sqlite3.Error as error:
            if not cannot_write(error):
                raise
            lines = _quick_check(read_copy(path))
    except (sqlite3.Error, OSError) as error:
        return str(error)
    return None if lines == ["ok"] else "; ".join(lines)


def _quick_check(connection: sqlite3.Connection) -> list[str]:
    try:
        rows = connection.execute("PRAGMA quick_check(3)").fetchall()
    finally:
        connection.close()
    return [str(row[0]) for row in rows]


def _set_aside(path: Path) -> str:
    kept = path.with_name(f"{path.name}.damaged")
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.replace(kept.with_name(kept.name + suffix))
    return f"{path.name} is {kept.name} now; the next command makes a new one"


def machine_configurations(context: Context) -> Iterator[Finding]:
    for name in context.machines:
        read_config(context.home.machine(name).config)  # raises what is wrong with it
    if context.machines:
        yield ok("machine.json", f"{len(context.machines)} read")


def data_disks(context: Context) -> Iterator[Finding]:
    for name in context.machines:
        paths = context.home.machine(name)
        if paths.data_disk.exists():
            yield _data_disk(f"disk {name}", paths)


def _data_disk(title: str, paths: MachinePaths) -> Finding:
    record = read_record(paths.qemu_record)
    running = record is not None and is_alive(record.identity)
    try:
        report = check_disk(paths.data_disk, tables=not running)
    except OSError as error:
        return fail(title, f"{paths.data_disk}: {error.strerror}", "see state-directory")
    if report.damages:
        return fail(
            title,
            f"{paths.data_disk}: {'; '.join(report.damages)}",
            f"copy the file first, then: qemu-img check -r all {paths.data_disk}",
        )
    size = human_size(report.size)
    taken = human_size(disk_bytes(paths.data_disk.stat()))
    if report.leaked > _MANY_LEAKED:
        return warn(
            title,
            f"{human_size(report.leaked)} of it are used by nothing, after a power cut",
            f"harmless; with the machine off: qemu-img check -r leaks {paths.data_disk}",
        )
    extent = "its header is sound (the machine runs)" if running else "its tables are sound"
    return ok(title, f"{extent}: {taken} of {size} are taken")


def vm_images(context: Context) -> Iterator[Finding]:
    """Sizes, quickly. What is damaged is built again when it is next needed."""
    try:
        directories = [it for it in sorted(context.home.vm_images.iterdir()) if it.is_dir()]
    except FileNotFoundError:
        yield ok("vm-image", "none has been built yet")
        return
    damaged = [it for it in directories if (it / "image.json").exists() and not _whole(it)]
    if not damaged:
        yield ok("vm-image", f"{len(directories)} on disk, files are of the right size")
        return

    def remove() -> str:
        for directory in damaged:
            shutil.rmtree(directory)
        return f"{len(damaged)} removed; the next start builds them again from packages"

    names = ", ".join(it.name for it in damaged)
    yield fail("vm-image", f"damaged: {names}", FIX, remove)


def _whole(directory: Path) -> bool:
    try:
        return find_image(directory) is not None
    except (ValueError, KeyError):
        return False  # image.json itself is damaged


def images(context: Context) -> Iterator[Finding]:
    """Every file's size, and the digests of what is small; with `deep` every byte."""
    if not context.home.store_db.exists():
        yield ok("images", "there are none yet")
        return
    if database_problem(context.home.store_db) is not None:
        yield skipped("images", "store.db must be sound first")
        return
    store = ImageStore(context.home, context.settings)
    try:
        yield from _deep(context, store) if context.deep else _quick(context, store)
    finally:
        store.close()


def _quick(context: Context, store: ImageStore) -> Iterator[Finding]:
    problems = store.upkeep.glance()
    if problems:
        more = " …" if len(problems) > 3 else ""
        text = "; ".join(problems[:3]) + more
        yield fail("images", text, FIX, lambda: _mend(context))
    else:
        yield ok("images", f"{len(store.list())} images: their files are there, sizes are right")


def _deep(context: Context, store: ImageStore) -> Iterator[Finding]:
    verified = store.upkeep.verify()
    if verified.damages:
        first = verified.damages[0]
        text = f"{len(verified.damages)} damaged files, as {first.kind} {first.digest}"
        yield fail("images", f"{text}: {first.problem}", FIX, lambda: _mend(context))
    else:
        size = human_size(verified.bytes)
        yield ok("images", f"{verified.checked} files, {size}: all as they should be")


def _mend(context: Context) -> str:
    """Layers are written again of their blobs, blobs fetched again. Raises what was left."""
    store = ImageStore(context.home, context.settings)
    try:
        verified = store.upkeep.verify(repair=True)
    finally:
        store.close()
    left = [damage for damage in verified.damages if not damage.repaired]
    if left:
        raise WherryError(f"{left[0].kind} {left[0].digest}: {left[0].failure}")
    return f"{len(verified.damages)} files were mended"
