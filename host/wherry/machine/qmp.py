"""QMP, QEMU's control protocol: connect with a deadline, execute, hear events, notice the end.

The only module that knows `qemu.qmp`. Its errors come out as MachineError. Commands that are
started one after the other in one go (`asyncio.gather`) are sent without waiting for answers, and
QEMU executes them in that order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from qemu.qmp import EventListener, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecuteError

from wherry.errors import MachineError
from wherry.osutil.local import open_local

logger = logging.getLogger(__name__)

_MESSAGE_LIMIT = 64 * 1024 * 1024

EventHandler = Callable[[str, Mapping[str, Any]], None]
"""Called with an event's name and data; must not block."""


class QmpError(MachineError):
    """QEMU refused a command; `kind` is its error class (GenericError, DeviceNotFound, ...)."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class QmpClosed(MachineError):
    """The connection is gone, so (almost always) is QEMU."""


class Qmp:
    """A connection to one QMP socket. Made by `connect`, ended by `aclose`."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._handlers: list[EventHandler] = []
        self._closed = asyncio.Event()
        self._running: dict[asyncio.Future[Any], float] = {}
        self._refusal: MachineError | None = None
        self._given_up: set[asyncio.Future[Any]] = set()
        self._listener = EventListener()
        client.register_listener(self._listener)
        self._pump = asyncio.create_task(self._dispatch(), name="qmp events")
        self._watch = asyncio.create_task(self._watch_connection(), name="qmp connection")

    @classmethod
    async def connect(cls, path: Path, *, timeout: float) -> Self:
        """Connect to the socket at `path` and negotiate.

        Raises:
            MachineError: nobody listens, or no greeting within `timeout` seconds (another client
                is connected: QMP serves one at a time).
        """
        client = _LocalClient("machine")
        client.logger.setLevel(logging.CRITICAL)  # it logs each lost connection; we report them
        try:
            async with asyncio.timeout(timeout):
                await client.connect(os.fspath(path))
        except TimeoutError as error:
            raise MachineError(f"QEMU did not answer on {path} within {timeout:g} s") from error
        except QMPError as error:
            raise MachineError(f"cannot reach QEMU on {path}: {_cause(error)}") from error
        return cls(client)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def on_event(self, handler: EventHandler) -> None:
        self._handlers.append(handler)

    def remove_handler(self, handler: EventHandler) -> None:
        self._handlers.remove(handler)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = 30.0,
        probe: bool = False,
    ) -> Any:
        """Run a command and return its value.

        Args:
            probe: to see whether QEMU answers, also while it is known not to.

        Raises:
            QmpError: QEMU refused.
            QmpClosed: the connection ended first.
            MachineError: no answer within `timeout` seconds, or as `refuse` was told.
        """
        if self._refusal is not None and not probe:
            raise self._refusal
        if self.closed or self._client.runstate is not Runstate.RUNNING:
            raise QmpClosed(f"QEMU is gone: cannot execute {command}")
        execution = asyncio.ensure_future(self._client.execute(command, arguments))
        if not probe:
            self._running[execution] = asyncio.get_running_loop().time()
            execution.add_done_callback(lambda it: self._running.pop(it, None))
        try:
            async with asyncio.timeout(timeout):
                return await execution
        except asyncio.CancelledError:
            if self._refusal is not None and execution in self._given_up:
                self._given_up.discard(execution)
                raise self._refusal from None
            raise
        except ExecuteError as error:
            message = f"QEMU refused {command}: {error}"
            raise QmpError(message, kind=error.error_class) from error
        except QMPError as error:
            raise QmpClosed(f"QEMU is gone: {command} was not answered") from error
        except TimeoutError as error:
            raise MachineError(f"QEMU did not answer {command} within {timeout:g} s") from error

    @property
    def silence(self) -> float:
        """Seconds for which the oldest command has waited; 0: none waits."""
        if not self._running:
            return 0.0
        return asyncio.get_running_loop().time() - min(self._running.values())

    def refuse(self, error: MachineError | None) -> None:
        """QEMU cannot answer, as somebody knows: commands in flight fail with `error`, others at
        once, until None says that it can."""
        self._refusal = error
        if error is not None:
            for execution in tuple(self._running):
                self._given_up.add(execution)
                execution.cancel()

    @property
    def version(self) -> tuple[int, int]:
        """QEMU's, as it said in its greeting."""
        greeting = self._client.greeting
        assert greeting is not None, "a connection begins with it"
        version: Any = greeting.QMP.version["qemu"]  # VersionInfo (qapi/control.json)
        return int(version["major"]), int(version["minor"])

    async def send_file(self, name: str, descriptor: int) -> None:
        """Give QEMU an open file, for `fd:NAME`; ours may be closed afterwards.

        Raises:
            MachineError: as `execute`; also where QEMU is not reached by a Unix socket.
        """
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:
            raise MachineError(f"QEMU cannot be given a file: {_cause(error)}") from error
        await self.execute("getfd", {"fdname": name})

    async def wait_closed(self) -> None:
        """Return when the connection has ended, for whatever reason."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """End the connection; QEMU goes on."""
        if not self._watch.done():
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            await self._disconnect()
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump

    async def _watch_connection(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        await self._disconnect()

    async def _disconnect(self) -> None:
        """Bring qemu.qmp back to its idle state; it demands that even of a lost connection."""
        with contextlib.suppress(EOFError, OSError, QMPError):  # why it was lost: nobody asks
            await self._client.disconnect()
        if self._running:
            await asyncio.wait(tuple(self._running))
        self._closed.set()

    async def _dispatch(self) -> None:
        async for event in self._listener:
            name, data = str(event["event"]), event.get("data", {})
            for handler in tuple(self._handlers):
                try:
                    handler(name, data if isinstance(data, Mapping) else {})
                except Exception:  # one handler's bug must not deafen the others
                    logger.exception("handler of QMP event %s", name)


class _LocalClient(QMPClient):
    """Connects as everything of ours does, so that it knows pipes."""

    async def _do_connect(self, address: Any, ssl: Any = None) -> None:
        # As qemu.qmp's own (0.0.3 to 0.0.6), which knows Unix sockets and TCP.
        self._set_state(Runstate.CONNECTING)
        await asyncio.sleep(0)  # those that watch the state see it
        self._reader, self._writer = await open_local(Path(address), limit=_MESSAGE_LIMIT)


def _cause(error: BaseException) -> str:
    """The innermost reason, which says more than qemu.qmp's own text."""
    root = getattr(error, "exc", None) or error.__cause__ or error
    return getattr(root, "strerror", None) or str(root) or type(root).__name__
