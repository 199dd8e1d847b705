"""A machine put back to one of its snapshots, in two steps that a crash may fall between.

First, while it may still run, everything is copied into `rewind/`: it may fail, and nothing has
changed. Then the machine is ended and its engine opens anew, and before that looks at anything,
`finish_rewind` renames what lies there into place: again and again if need be, since only the last
rename takes away the directory that says so. Blocking.
"""

from __future__ import annotations

import json
import logging
import shutil

from wherry.errors import StorageError
from wherry.machine.endpoints import forget_sockets
from wherry.machine.record import read_record
from wherry.machine.snapshot import (
    SNAPSHOT,
    Snapshot,
    drop_memory,
    forget_suspension,
    read_snapshot,
    suspend,
)
from wherry.osutil import atomic_write, fsync_directory, is_alive, private_directory, terminate
from wherry.osutil.sparse import copy_sparse
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)

_ORIGIN = "origin.json"


def prepare_rewind(paths: MachinePaths, snapshot: Snapshot) -> None:
    """Copy what the machine is to have; from the end of this on it will.

    Raises:
        StorageError, OSError: the disk is full; nothing has changed.
    """
    draft = paths.rewind.with_name(f".{paths.rewind.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    private_directory(draft)
    try:
        copy_sparse(snapshot.disk, draft / paths.data_disk.name)
        copy_sparse(snapshot.rows, draft / paths.state_db.name)
        origin = {"snapshot": snapshot.name}
        atomic_write(draft / _ORIGIN, json.dumps(origin).encode())
        draft.rename(paths.rewind)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    fsync_directory(paths.root)


def finish_rewind(paths: MachinePaths) -> str | None:
    """Put it in place, if something is prepared; returns the snapshot's name.

    Nobody may have the machine's rows open. What still runs of it is ended.

    Raises:
        StorageError: it cannot be put in place; the next call tries again.
    """
    if not paths.rewind.is_dir():
        return None
    try:
        return _finish(paths)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the machine cannot be put back to its snapshot: {error}",
            hint=f"it is tried again at each start; without {paths.rewind} it stays as it is",
        ) from error


def _finish(paths: MachinePaths) -> str:
    name = str(json.loads((paths.rewind / _ORIGIN).read_bytes())["snapshot"])
    logger.info("the machine goes back to its snapshot %s", name)
    record = read_record(paths.qemu_record)
    if record is not None and is_alive(record.identity):
        terminate(record.identity, grace=0)
    paths.qemu_record.unlink(missing_ok=True)
    forget_sockets(paths)
    forget_suspension(paths)
    drop_memory(paths)
    disk = paths.rewind / paths.data_disk.name
    if disk.exists():
        disk.replace(paths.data_disk)
    rows = paths.rewind / paths.state_db.name
    if rows.exists():
        for tail in ("-wal", "-shm"):  # SQLite's, of the rows that go
            paths.state_db.with_name(paths.state_db.name + tail).unlink(missing_ok=True)
        rows.replace(paths.state_db)
    snapshot = read_snapshot(paths.snapshots / name)
    if snapshot is not None and snapshot.board is not None:
        suspend(paths, SNAPSHOT, snapshot.directory)
    fsync_directory(paths.root)
    shutil.rmtree(paths.rewind)
    return name
