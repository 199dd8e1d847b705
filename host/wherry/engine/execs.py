"""More processes in a running container: Docker's execs.

An exec's output is not logged: it goes to the client that started it, and its frames end only when
its exit code is known, so that a client that then asks for the code gets it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wherry.engine import names
from wherry.engine.attach import StreamAttachment, wanted_streams
from wherry.engine.config import check_process
from wherry.engine.events import EventBus, container_event
from wherry.engine.exits import LOST_CODE
from wherry.engine.failure import EXEC, SETUP_FAILED, start_failure
from wherry.engine.guest import START_TIMEOUT, Guest, number
from wherry.engine.model import Attachment, Exec, Json, Status
from wherry.engine.ports import StreamPort
from wherry.engine.registry import Entry, Registry
from wherry.engine.spec import Facts, console_size, exec_process
from wherry.engine.state import State
from wherry.errors import (
    AgentError,
    Conflict,
    InvalidInput,
    LinkError,
    NotFound,
    StartFailed,
    WherryError,
)

KEEP_ENDED = 256
"""Ended execs that are remembered; health checks make thousands."""


@dataclass(slots=True, eq=False)
class _Held:
    """An exec and the future of its end."""

    execution: Exec
    ended: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Execs:
    """The execs of one machine."""

    def __init__(
        self, state: State, registry: Registry, events: EventBus, guest: Guest, facts: Facts
    ) -> None:
        self._registry = registry
        self._events = events
        self._guest = guest
        self._facts = facts
        self._held: dict[str, _Held] = {}
        for execution in state.execs():
            held = self._held[execution.id] = _Held(execution)
            if execution.started and not execution.running:
                held.ended.set_result(None)

    def create(self, ref: str, config: Mapping[str, Any]) -> Exec:
        """Note an exec in a running container.

        Raises:
            Conflict, NotFound, InvalidInput.
            MachineError: the machine is paused; said now, since `start` can only write it into
                the stream.
        """
        entry = self._registry.find(ref)
        self._need_running(entry)
        self._guest.need_moving()
        command = config.get("Cmd") or []
        if not command:
            raise InvalidInput("No exec command specified")
        check_process(config)
        execution = Exec(names.new_id(), entry.container.id, time.time_ns(), dict(config))
        action = f"exec_create: {' '.join(command)}"
        with self._events.transaction() as transaction:
            transaction.save_exec(execution)
            transaction.add_event(container_event(entry.container, action, execID=execution.id))
        self._held[execution.id] = _Held(execution)
        self._prune()
        return execution

    def get(self, exec_id: str) -> Exec:
        """Raises NotFound."""
        return self._find(exec_id).execution

    async def start(
        self, exec_id: str, detach: bool = False, tty: bool | None = None
    ) -> Attachment | None:
        """Start it, once. `tty` is Docker's repetition of what `create` said, which holds.

        Returns:
            its input and output; None when `detach`.

        Raises:
            Conflict: it was started before, or the container does not run.
            StartFailed: the command cannot be run; the exec has the exit code then.
        """
        held = self._find(exec_id)
        execution = held.execution
        if execution.started:
            raise Conflict(f"Error: Exec command {exec_id} has already run")
        entry = self._registry.get(execution.container_id)
        if entry is None:
            raise NotFound(f"No such container: {execution.container_id}")
        self._need_running(entry)
        link = self._guest.need_link()
        held.execution = replace(execution, started=True, running=True)
        stream = None if detach else link.open_stream()
        command = " ".join(execution.config["Cmd"])
        self._events.publish_late(
            container_event(entry.container, f"exec_start: {command}", execID=exec_id)
        )
        try:
            params = self._params(entry, execution, stream)
            result = await link.call("exec.start", params, timeout=START_TIMEOUT)
            pid = number(result, "pid")
        except BaseException as error:
            if stream is not None:
                stream.reset("the exec did not start")
            if isinstance(error, WherryError):
                raise self._failed(held, error) from error
            raise  # the client left: it runs, and its exit will be told
        if held.execution.running:  # its exit may have come first
            held.execution = replace(held.execution, pid=pid)
        return None if stream is None else _attachment(held, stream)

    async def resize(self, exec_id: str, rows: int, cols: int) -> None:
        """Raises Conflict when it does not run."""
        held = self._find(exec_id)
        if not held.execution.running:
            raise Conflict(f"exec {exec_id} is not running")
        await self._guest.need_link().call(
            "exec.resize", {"exec_id": exec_id, "rows": rows, "cols": cols}
        )

    def exited(self, exec_id: str, exit_code: int) -> None:
        """The guest says that it has ended; once more is fine, and so is an unknown one."""
        held = self._held.get(exec_id)
        if held is None or held.ended.done():
            return
        execution = replace(
            held.execution, started=True, running=False, pid=None, exit_code=exit_code
        )
        entry = self._registry.get(execution.container_id)
        with self._events.transaction() as transaction:
            transaction.save_exec(execution)
            if entry is not None:
                transaction.add_event(
                    container_event(
                        entry.container, "exec_die", execID=exec_id, exitCode=str(exit_code)
                    )
                )
        held.execution = execution
        held.ended.set_result(None)

    def found(self, exec_id: str, pid: int) -> None:
        """The guest says that it runs (asked when a running machine was adopted)."""
        held = self._held.get(exec_id)
        if held is not None and not held.ended.done():
            held.execution = replace(held.execution, started=True, running=True, pid=pid)

    def lost(self) -> None:
        """The machine went away, and with it every exec."""
        for exec_id in self.running():
            self.exited(exec_id, LOST_CODE)

    def running(self) -> list[str]:
        return [id for id, held in self._held.items() if held.execution.running]

    def forget(self, container_id: str) -> None:
        """Its container was removed (the rows went with the container's)."""
        for exec_id, held in tuple(self._held.items()):
            if held.execution.container_id == container_id:
                del self._held[exec_id]
                if held.execution.running:
                    held.execution = replace(
                        held.execution, running=False, pid=None, exit_code=LOST_CODE
                    )
                if not held.ended.done():
                    held.ended.set_result(None)

    def _params(self, entry: Entry, execution: Exec, stream: StreamPort | None) -> Json:
        config = execution.config
        return {
            "exec_id": execution.id,
            "id": entry.container.id,
            "process": exec_process(entry.container, config, self._facts),
            "tty": execution.tty,
            "stream": None if stream is None else stream.id,
            "stdin": stream is not None and bool(config.get("AttachStdin")),
            "size": console_size(config.get("ConsoleSize")) if execution.tty else None,
        }

    def _failed(self, held: _Held, error: WherryError) -> WherryError:
        """Note the failure; the error to raise."""
        execution = held.execution
        failure = error
        if isinstance(error, AgentError):
            failure = start_failure(EXEC, execution.config["Cmd"][0], error)
        code = failure.exit_code if isinstance(failure, StartFailed) else SETUP_FAILED
        held.execution = replace(execution, running=False, exit_code=code)
        if self._registry.get(execution.container_id) is not None:
            with self._events.transaction() as transaction:
                transaction.save_exec(held.execution)
        if not held.ended.done():
            held.ended.set_result(None)
        return failure

    def _find(self, exec_id: str) -> _Held:
        held = self._held.get(exec_id)
        if held is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return held

    def _need_running(self, entry: Entry) -> None:
        container = entry.container
        if container.status is Status.PAUSED:
            raise Conflict(
                f"Container {container.name} is paused, unpause the container before exec"
            )
        if container.status is Status.RESTARTING:
            raise Conflict(
                f"Container {container.id} is restarting, wait until the container is running"
            )
        if not container.running:
            raise Conflict(f"container {container.id} is not running")

    def _prune(self) -> None:
        ended = [id for id, held in self._held.items() if held.ended.done()]
        if len(ended) <= KEEP_ENDED:
            return
        with self._events.transaction() as transaction:
            for exec_id in ended[:-KEEP_ENDED]:
                transaction.delete_exec(exec_id)
                del self._held[exec_id]


def exec_exit(payload: Mapping[str, Any]) -> tuple[str, int]:
    """The id and exit code of `exec.exit`. Raises LinkError when the guest sent something else."""
    exec_id, code = payload.get("exec_id"), payload.get("exit_code")
    if not isinstance(exec_id, str) or not isinstance(code, int):
        raise LinkError("the guest sent an exec's exit without its fields")
    return exec_id, code


def _attachment(held: _Held, stream: StreamPort) -> Attachment:
    config = held.execution.config
    attachment = StreamAttachment(
        tty=held.execution.tty,
        streams=wanted_streams(bool(config.get("AttachStdout")), bool(config.get("AttachStderr"))),
        stdin=bool(config.get("AttachStdin")),
    )
    attachment.bind(stream, last=held.ended)
    return attachment
