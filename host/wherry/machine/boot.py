"""From a command line to an agent that answers: phases, each with a deadline and an epitaph.

    spawned   QEMU runs and answers on QMP
    kernel    the guest runs; until PID 1 says `wherry: init`
    init      until the agent says `wherry: agent`
    agent     until the agent has answered over the link
    disk      until the guest is set up: its data disk, clock, entropy, network
    ready     what is left until it can be used

QEMU is started paused and detached; its record is on disk before the guest executes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from wherry.errors import BootFailed, LinkError, MachineError
from wherry.machine.argv import VmSpec, qemu_argv
from wherry.machine.console import Console
from wherry.machine.endpoints import Chardevs, Endpoints, QemuEnded
from wherry.machine.epitaph import boot_failed, ending
from wherry.machine.qmp import Qmp
from wherry.machine.record import QemuRecord, write_record
from wherry.osutil import exit_status, raise_file_limit, terminate, wait_gone
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""progress(phase, done, total)"""

PHASES = ("spawned", "kernel", "init", "agent", "disk", "ready")

_CONSOLE_LINES = 12
_STDERR_LINES = 6
_STATUS_SECONDS = 0.5
"""A keeper ends a moment after its QEMU."""

T = TypeVar("T")


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds for each phase: many times what a slow host without virtualization needs."""

    spawned: float = 20.0
    kernel: float = 90.0
    init: float = 60.0
    agent: float = 60.0
    restore: float = 20.0
    """For loading a saved state, and again for the agent's answer."""

    def times(self, factor: float) -> Deadlines:
        return Deadlines(**{name: factor * value for name, value in asdict(self).items()})

    def of(self, phase: str) -> float:
        return {
            "spawned": self.spawned,
            "kernel": self.kernel,
            "init": self.init,
            "agent": self.agent,
        }[phase]


@dataclass(slots=True)
class RunningQemu:
    """A QEMU of ours: process, control connection, console (None when it could not be had)."""

    record: QemuRecord
    qmp: Qmp
    console: Console | None
    child: int | None
    """The child process of ours whose exit status is QEMU's; None: an earlier engine's."""
    continued: bool = False
    """Its guest ran before: an earlier engine's, or out of a saved state."""

    async def aclose(self) -> None:
        """Let go of it; it goes on."""
        await self.qmp.aclose()
        if self.console is not None:
            await self.console.aclose()

    async def quit(self, timeout: float = 5.0) -> None:
        """Ask QEMU to end (it flushes its disks), kill it when it does not, and let go of it."""
        with contextlib.suppress(MachineError, TimeoutError):  # if it does not: it is killed
            await self.qmp.execute("quit", timeout=timeout)
            async with asyncio.timeout(timeout):
                await self.qmp.wait_closed()
        await self.kill()

    async def kill(self, grace: float = 2.0) -> None:
        """End it the hard way and let go of it."""
        await asyncio.to_thread(terminate, self.record.identity, grace=grace)
        await self.aclose()

    def exit_status(self) -> int | None:
        """None while it runs, or when it is not our child."""
        return None if self.child is None else exit_status(self.child, within=_STATUS_SECONDS)


async def start_qemu(
    spec: VmSpec,
    paths: MachinePaths,
    *,
    image_key: str,
    agent_digest: str,
    deadlines: Deadlines,
    endpoints: Endpoints,
) -> RunningQemu:
    """Start QEMU, paused, and connect to it.

    Raises:
        BootFailed: phase `spawned`.
    """
    for log in (paths.qemu_log, paths.console_log):
        log.unlink(missing_ok=True)
    record, child = await _to_the_end(
        partial(_spawn, spec, paths, endpoints, image_key=image_key, agent_digest=agent_digest)
    )
    console = qmp = None
    try:
        async with asyncio.timeout(deadlines.spawned):
            console = await Console.connect(paths.serial_socket, paths.console_log)
            qmp = await Qmp.connect(paths.qmp_socket, timeout=deadlines.spawned)
            await qmp.execute("query-status")
    except BaseException as error:
        by_itself = await asyncio.to_thread(wait_gone, record.identity, 0.5)
        status = exit_status(child) if by_itself else None
        await asyncio.to_thread(terminate, record.identity, grace=1.0)
        for connection in (qmp, console):
            if connection is not None:
                await connection.aclose()
        if not isinstance(error, MachineError | OSError):
            raise
        raise boot_failed(
            "spawned",
            ending(status) or _reason(error),
            qemu_log=paths.qemu_log,
            status=status,
            hint=f"the command line is in {paths.qemu_record}",
        ) from error
    logger.info("QEMU runs as process %d: %s", record.identity.pid, record.argv[0])
    return RunningQemu(record=record, qmp=qmp, console=console, child=child)


async def await_agent(
    vm: RunningQemu,
    paths: MachinePaths,
    link: Coroutine[Any, Any, T],
    *,
    deadlines: Deadlines,
    progress: Progress | None = None,
) -> T:
    """Let the guest run until `link` is connected, and return what that returns.

    The link alone decides; the console's markers tell how far the guest is.

    Raises:
        BootFailed: names the phase, what QEMU printed and the console's last lines. QEMU is gone.
    """
    console = vm.console
    assert console is not None, "a booting QEMU has its console"
    connecting = asyncio.ensure_future(link)
    phase = "kernel"
    try:
        await vm.qmp.execute("cont")
        for phase, sign in (
            ("kernel", lambda: console.wait_for("init")),
            ("init", lambda: console.wait_for("agent")),
            ("agent", console.wait_ended),
        ):
            if progress is not None:
                progress(phase, PHASES.index(phase), len(PHASES))
            trouble = await _next_sign(phase, sign(), connecting, deadlines.of(phase))
            if connecting.done():
                return connecting.result()
            if trouble is not None:
                raise MachineError(trouble)
        raise MachineError("the guest ended")
    except (MachineError, LinkError, OSError) as error:
        await drop(connecting)
        raise await failure(vm, paths, phase, error) from error
    except BaseException:
        await drop(connecting)
        await vm.kill()
        raise


async def _next_sign(
    phase: str,
    sign: Coroutine[Any, Any, object],
    connecting: asyncio.Future[T],
    timeout: float,
) -> str | None:
    """Wait for a sign on the console or for the link. Returns what is wrong, None when nothing."""
    watching: asyncio.Future[object] = asyncio.ensure_future(sign)
    waited: set[asyncio.Future[Any]] = {watching, connecting}
    try:
        await asyncio.wait(waited, timeout=timeout, return_when="FIRST_COMPLETED")
        if connecting.done():
            return None
        if not watching.done():
            return f"nothing more was heard of it within {timeout:g} s"
        return None if watching.result() else "the guest ended"
    finally:
        watching.cancel()


def _spawn(
    spec: VmSpec,
    paths: MachinePaths,
    endpoints: Endpoints,
    *,
    image_key: str,
    agent_digest: str,
) -> tuple[QemuRecord, int]:
    """Start it and write its record. Blocking.

    Returns:
        The record, and the child process to ask for its exit status.
    """
    raise_file_limit()

    def command(chardevs: Chardevs) -> list[str]:
        return qemu_argv(spec, chardevs)

    try:
        spawned = endpoints.launch(command, paths, spec.qemu.environment())
    except OSError as error:
        reason = f"{spec.qemu.binary}: {error.strerror}"
        raise boot_failed("spawned", reason, qemu_log=paths.qemu_log) from error
    except QemuEnded as error:
        reason = ending(error.status) or "it ended"
        raise boot_failed(
            "spawned", reason, qemu_log=paths.qemu_log, status=error.status
        ) from error
    record = QemuRecord(
        identity=spawned.identity,
        boot=secrets.token_hex(8),
        image_key=image_key,
        agent_digest=agent_digest,
        accel=spec.accel,
        started_ns=time.time_ns(),
        argv=spawned.argv,
    )
    try:
        write_record(paths.qemu_record, record)
    except OSError as error:  # nobody would know of it
        terminate(record.identity, grace=1.0)
        reason = f"{paths.qemu_record}: {error.strerror}"
        raise boot_failed("spawned", reason, qemu_log=paths.qemu_log) from error
    return record, spawned.child


async def failure(
    vm: RunningQemu, paths: MachinePaths, phase: str, error: BaseException
) -> BootFailed:
    """Bury QEMU and say what it died of."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):  # what it still has to say comes before its end
            await vm.qmp.wait_closed()
    died_by_itself = vm.qmp.closed
    await asyncio.to_thread(terminate, vm.record.identity, grace=1.0)
    status = vm.exit_status() if died_by_itself else None
    console = vm.console.tail() if vm.console else []
    last_words = (vm.console.fatal or vm.console.panic) if vm.console else None
    await vm.aclose()
    return boot_failed(
        phase,
        (ending(status) if status else None) or _reason(error),
        qemu_log=paths.qemu_log,
        status=status,
        console=console,
        last_words=last_words,
        hint=f"the guest's console is in {paths.console_log}",
    )


def _reason(error: BaseException) -> str:
    return str(error) or "no answer in time"


async def _to_the_end(work: Callable[[], T]) -> T:
    """Do blocking work in a thread; a caller that is cancelled waits for it, so that what it has
    started is known."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        working.exception()  # looked at, so that asyncio does not complain
        raise


async def drop(task: asyncio.Future[Any]) -> None:
    """Cancel it and wait for its end; what it has brought all the same is closed."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        if isinstance(result, _Closable):
            await result.aclose()
