"""What a client does about an engine that is there but does nothing: it is ended, once.

The next connection starts a new engine, which takes the machine over; containers notice nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wherry.connection import Connection, readable
from wherry.errors import EngineUnreachable, StorageError
from wherry.paths import MachinePaths

if TYPE_CHECKING:
    from wherry.osutil import ProcessIdentity

SUSPICIOUS_SECONDS = 15.0
"""A heartbeat that is older is watched before anything is asked of the engine."""

LOOK_SECONDS = 2.0
"""A client that waits for an answer looks so often whether the engine's heart still beats."""

_BEAT_POLL_SECONDS = 0.05
_LOCK_SECONDS = 30.0
_END_SECONDS = 5.0


class EngineHung(EngineUnreachable):
    """The engine did not answer and its heart did not beat. It is gone now."""


class Guard:
    """Waits for an engine's answers, not for ever. Cheap until one takes its time."""

    def __init__(self, paths: MachinePaths, machine: str) -> None:
        self._paths = paths
        self._machine = machine

    def suspicious(self) -> bool:
        """Whether the last heartbeat is so old that the engine should be watched first."""
        try:
            age = time.time() - self._paths.engine_record.stat().st_mtime
        except OSError:
            return False  # an engine that only just starts, or one of a version without a heartbeat
        return age > SUSPICIOUS_SECONDS

    def settle(self) -> None:
        """Return when the engine's heart beats, or when there is no engine; a hung one is ended."""
        from wherry.osutil.pulse import Watch

        watch = Watch(self._paths.engine_record)
        while self.alive() and not watch.beating:
            if (process := watch.hung()) is not None:
                end_engine(self._paths, self._machine, process)
                return
            time.sleep(_BEAT_POLL_SECONDS)

    def wait_readable(self, connection: Connection) -> None:
        """Return when there is something to read.

        Raises:
            EngineHung: the engine was hung, and is gone.
            EngineUnreachable: there is no engine, and somebody else has its pipe.
        """
        if readable(connection, LOOK_SECONDS):
            return
        if self._paths.pipe is not None and not self.alive() and self._lock_is_free():
            raise EngineUnreachable(
                f"the pipe {self._paths.pipe} is in use by a program that is no engine of ours",
                hint="end that program, or set WHERRY_HOME to another directory",
            )
        from wherry.osutil.pulse import Watch

        watch = Watch(self._paths.engine_record)
        while not readable(connection, LOOK_SECONDS):
            if (process := watch.hung()) is not None:
                end_engine(self._paths, self._machine, process)
                raise EngineHung(
                    f"the engine of machine {self._machine!r} was hung and has been ended",
                    hint="run the command again: a new engine takes the machine over as it is",
                )

    def alive(self) -> bool:
        """Whether the engine that was recorded last is there."""
        from wherry.osutil import is_alive

        engine = recorded_engine(self._paths)
        return engine is not None and is_alive(engine)

    def _lock_is_free(self) -> bool:
        """Whether it is certain that there is no engine."""
        from wherry.osutil import LockHeld, lock_file

        if not self._paths.engine_lock.exists():
            return True
        try:
            with lock_file(self._paths.engine_lock, timeout=0):
                return True
        except (LockHeld, StorageError):
            return False


class Guarded:
    """A connection whose `recv` does not wait for a hung engine."""

    def __init__(self, connection: Connection, guard: Guard) -> None:
        self._connection = connection
        self._guard = guard

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def sendall(self, data: bytes, /) -> None:
        self._connection.sendall(data)

    def recv(self, limit: int, /) -> bytes:
        """Raises EngineHung."""
        self._guard.wait_readable(self._connection)
        return self._connection.recv(limit)

    def shutdown(self, how: int, /) -> None:
        self._connection.shutdown(how)

    def close(self) -> None:
        self._connection.close()


def end_engine(paths: MachinePaths, machine: str, engine: ProcessIdentity) -> None:
    """Kill it, unless another process just did; return when it holds nothing any more.

    Raises:
        EngineUnreachable: it cannot be killed.
    """
    from wherry.osutil import LockHeld, kill, lock_file, wait_gone

    with lock_file(paths.start_lock, timeout=_LOCK_SECONDS):
        if recorded_engine(paths) != engine:
            return
        kill(engine)
        try:
            # The lock, not the process: a zombie's threads may still be closing its socket.
            with lock_file(paths.engine_lock, timeout=_END_SECONDS):
                wait_gone(engine, _END_SECONDS)  # where it is our child it is reaped
        except LockHeld:
            raise EngineUnreachable(
                f"the engine of machine {machine!r} hangs in the kernel and cannot be ended"
                f" (process {engine.pid})",
                hint="a disk that does not answer is the usual cause; see wherry doctor",
            ) from None


def recorded_engine(paths: MachinePaths) -> ProcessIdentity | None:
    """The engine that was recorded last, alive or not."""
    from wherry.osutil.pulse import read_holder

    holder = read_holder(paths.engine_record)
    return holder.identity if holder else None
