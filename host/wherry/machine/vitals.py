"""Whether QEMU is alive while somebody waits for its guest: a hung one is known in seconds.

What is *sure* counts, and nothing else. A guest that is slow, or paused, has a QEMU that answers
questions, or uses the processor. One that does neither is looked at: a process that a signal has
stopped does nothing, and neither does one whose threads all sleep while a question waits. Nobody is
ended here: commands fail at once, with the reason, until QEMU answers again.
"""

from __future__ import annotations

import asyncio
import logging

from wherry.errors import LinkError, MachineError
from wherry.machine.guest import LinkPort
from wherry.machine.qmp import Qmp
from wherry.osutil import ProcessIdentity, is_alive
from wherry.osutil.activity import Activity, Doing, activity

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

SUSPICIOUS_SECONDS = 1.5
"""Calls that have waited for so long without a word from the guest are a reason to look."""

ANSWER_SECONDS = 1.0
"""QEMU answers in milliseconds; when it does not, it is looked at what the process does."""

SURE_SECONDS = 6.0
"""Silent for so long, all threads asleep and no processor time used: it waits for itself."""

DISK_SECONDS = 30.0
"""As SURE_SECONDS where a thread waits for a disk (it may be slow), or the system does not tell."""

_IDLE_CPU_SECONDS = 0.02
"""Two ticks: timers that only wake threads up."""


class Vitals:
    """Watches one QEMU.

    Attributes:
        hung: what is the matter with it; None: it answers, or that is not known.
    """

    def __init__(self, qmp: Qmp, process: ProcessIdentity, link: LinkPort) -> None:
        self.hung: str | None = None
        self._qmp = qmp
        self._process = process
        self._link = link

    async def watch(self) -> None:
        """Until the connection to QEMU ends."""
        while not self._qmp.closed:
            await asyncio.sleep(LOOK_SECONDS)
            if max(self._link.silence, self._qmp.silence) >= SUSPICIOUS_SECONDS:
                await self._examine()

    async def _examine(self) -> None:
        """Return when QEMU answers, or has ended."""
        loop = asyncio.get_running_loop()
        since, before = loop.time(), activity(self._process.pid)
        while not self._qmp.closed and is_alive(self._process):
            now = activity(self._process.pid)
            self._say(verdict(before, now, loop.time() - since, self._process.pid))
            if now is not None and (before is None or _has_worked(before, now)):
                since, before = loop.time(), now
            if await self._answers():
                break
        self._say(None)

    async def _answers(self) -> bool:
        try:
            await self._qmp.execute("query-status", timeout=ANSWER_SECONDS, probe=True)
        except MachineError:
            return False
        return True

    def _say(self, hung: tuple[str, str] | None) -> None:
        reason = hung[0] if hung else None
        if reason == self.hung:
            return
        self.hung = reason
        if hung is None:
            logger.warning("QEMU %s", "is gone" if self._qmp.closed else "answers again")
            self._qmp.refuse(None)
            self._link.refuse(None)
            return
        logger.error("%s", reason)
        self._qmp.refuse(MachineError(hung[0], hint=hung[1]))
        self._link.refuse(LinkError(hung[0], hint=hung[1]))


def verdict(
    before: Activity | None, now: Activity | None, seconds: float, pid: int
) -> tuple[str, str] | None:
    """What is surely the matter with a QEMU that has not answered, and what to do.

    Args:
        before: what it did `seconds` ago.
    """
    ends = "wherry machine stop ends it, as a power cut would"
    if now is None:
        return None
    if now.doing is Doing.STOPPED:
        return (
            f"the machine stands still: its QEMU (process {pid}) was stopped by a signal",
            f"kill -CONT {pid} lets it go on; {ends}",
        )
    if before is None or now.doing is Doing.RUNNABLE or _has_worked(before, now):
        return None
    if now.doing is Doing.ASLEEP and seconds >= SURE_SECONDS:
        return f"the machine hangs: its QEMU (process {pid}) answers nothing and does nothing", ends
    if now.doing is Doing.DISK and seconds >= DISK_SECONDS:
        return (
            f"the machine hangs: its QEMU (process {pid}) waits for a disk that does not answer",
            f"look at the disk that Wherry's directory is on; {ends}",
        )
    if now.doing is Doing.UNKNOWN and seconds >= DISK_SECONDS:
        return f"the machine hangs: its QEMU (process {pid}) answers nothing", ends
    return None


def _has_worked(before: Activity, now: Activity) -> bool:
    if before.cpu_seconds is None or now.cpu_seconds is None:
        return False
    return now.cpu_seconds - before.cpu_seconds > _IDLE_CPU_SECONDS
