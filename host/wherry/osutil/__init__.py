"""What differs per operating system, and nothing else: everything above asks here.

Leaf package: imports only the standard library and `wherry.errors`. All functions are synchronous
but those of `local`; those that wait say so and take a deadline.
"""

from __future__ import annotations

from wherry.osutil.files import (
    atomic_write,
    disk_error,
    disk_hint,
    fsync_directory,
    has_no_room,
    is_refused,
    private_directory,
    replace_file,
    sync_descriptor,
)
from wherry.osutil.host import cpu_count, raise_file_limit, total_memory
from wherry.osutil.locks import LockHeld, lock_file
from wherry.osutil.priority import lower_priority
from wherry.osutil.process import (
    ProcessIdentity,
    exit_status,
    identify,
    is_alive,
    kill,
    spawn_detached,
    terminate,
    wait_gone,
)
from wherry.osutil.sockets import listen_unix

__all__ = [
    "LockHeld",
    "ProcessIdentity",
    "atomic_write",
    "cpu_count",
    "disk_error",
    "disk_hint",
    "exit_status",
    "fsync_directory",
    "has_no_room",
    "identify",
    "is_alive",
    "is_refused",
    "kill",
    "listen_unix",
    "lock_file",
    "lower_priority",
    "private_directory",
    "raise_file_limit",
    "replace_file",
    "spawn_detached",
    "sync_descriptor",
    "terminate",
    "total_memory",
    "wait_gone",
]
