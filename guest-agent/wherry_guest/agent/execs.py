"""Exec'd processes: start, resize, kill, list. Their output goes to one stream and is not kept.

Rules: without a stream, or once it is gone, output is thrown away and the process goes on.
`exec.exit` is emitted when the process ends, before its stream does: who has read the stream finds
the exit code there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.container import read_exit_code, set_size
from wherry_guest.agent.containers import Containers
from wherry_guest.agent.kernel import big_pipe
from wherry_guest.agent.logframes import STDERR, STDOUT
from wherry_guest.agent.request import read_size, with_size
from wherry_guest.agent.stdio import Stdin, StreamPump
from wherry_guest.agent.tasks import Promise
from wherry_guest.channel import CallError, Channel, GuestStream
from wherry_guest.loop import Loop
from wherry_guest.zygote import Exited, SpawnFailed, Started, Zygote

_os: Final[Any] = os
_signal: Final[Any] = signal

KEY: Final = "exec:"
"""PID 1 knows an exec by this, the container's id, a slash and the exec's id."""

REMEMBER: Final = 256
"""Ended execs that `exec.list` still knows."""

FORGET_AFTER: Final = 5.0
"""Seconds until PID 1 forgets an exit, which it would tell to a new agent."""

LINGER: Final = 0.1
"""Seconds that the output of an ended process is waited for while something else (a daemon that it
left behind) holds the other end and writes nothing."""


class Exec:
    """One exec'd process."""

    def __init__(self, exec_id: str, container_id: str, stream: GuestStream | None) -> None:
        self.exec_id = exec_id
        self.container_id = container_id
        self.stream = stream
        self.pid = 0
        self.exit_code: int | None = None
        self.started: Promise[None] = Promise()
        self.stdin: Stdin | None = None
        self.pumps: list[StreamPump] = []
        self.pipes: tuple[int, ...] = ()
        """Reading ends of its output, and the writing end of its stdin, until it has started."""
        self.wants_stdin = False
        self.terminal = -1
        self.pidfd = -1
        self.finished = False
        """It has ended and all that it wrote has been passed on."""

    @property
    def key(self) -> str:
        return f"{KEY}{self.container_id}/{self.exec_id}"

    @property
    def running(self) -> bool:
        return self.pidfd >= 0 and self.exit_code is None


class Execs:
    """All execs; of a former agent's only the exits."""

    def __init__(
        self, loop: Loop, zygote: Zygote, containers: Containers, channel: Callable[[], Channel]
    ) -> None:
        self._loop = loop
        self._zygote = zygote
        self._containers = containers
        self._channel = channel
        self._execs: dict[str, Exec] = {}

    async def start(self, params: Params) -> Answer:
        """`exec.start`; a repeat is answered as the first one was."""
        exec_id = params.identifier("exec_id")
        known = self._execs.get(exec_id)
        if known is None:
            known = self._begin(exec_id, params)
        await known.started
        return {"pid": known.pid}

    def resize(self, params: Params) -> Answer:
        """`exec.resize`."""
        known = self._running(params)
        if known.terminal < 0:
            raise CallError("invalid", f"exec {known.exec_id} has no terminal")
        set_size(known.terminal, params.number("rows"), params.number("cols"))
        return None

    def kill(self, params: Params) -> Answer:
        """`exec.kill`."""
        known, number = self._running(params), params.number("signal")
        try:
            _signal.pidfd_send_signal(known.pidfd, number)
        except ProcessLookupError as error:
            raise CallError("conflict", f"exec {known.exec_id} is not running") from error
        except OSError as error:
            raise CallError("invalid", f"signal {number}: {error.strerror}") from error
        return None

    def list_all(self, params: Params) -> Answer:
        """`exec.list`."""
        return {
            "execs": [
                {
                    "exec_id": known.exec_id,
                    "id": known.container_id,
                    "pid": known.pid,
                    "exit": known.exit_code,
                }
                for known in self._execs.values()
            ]
        }

    # What PID 1 says.

    def started(self, name: str, message: Started) -> None:
        """`name`: the key without KEY."""
        known = self._known(name)
        known.pid = message.pid
        try:
            known.pidfd = _os.pidfd_open(message.pid)
        except ProcessLookupError:
            known.pidfd = -1  # it has ended already, and PID 1 says so next
        outputs, stdin = known.pipes[:2], known.pipes[2:]
        known.pipes = ()
        if message.terminal is not None:
            known.terminal = message.terminal
            outputs = (_os.dup(message.terminal),)
            stdin = (_os.dup(message.terminal),) if known.wants_stdin else ()
        for number, fd in zip((STDOUT, STDERR), outputs, strict=False):
            known.pumps.append(self._pump(known, number, fd))
        if stdin:
            known.stdin = Stdin(self._loop, stdin[0], message.terminal is None)
        if known.stream is not None:
            self._connect(known, known.stream)
        known.started.resolve(None)

    def spawn_failed(self, name: str, message: SpawnFailed) -> None:
        known = self._known(name)
        for fd in known.pipes:
            os.close(fd)
        self._zygote.drop(known.key)
        del self._execs[known.exec_id]
        data = {
            "step": message.step,
            "errno": message.errno,
            "exit_code": message.exit_code,
        }
        known.started.reject(CallError("start_failed", message.message, data))

    def ended(self, name: str, message: Exited) -> None:
        known = self._known(name)
        known.exit_code, _ = read_exit_code(message.status)
        self._channel().emit(
            "exec.exit",
            {
                "exec_id": known.exec_id,
                "id": known.container_id,
                "exit_code": known.exit_code,
            },
        )
        if known.stdin is not None:
            known.stdin.close()
            known.stdin = None
        self._await_output(known, idle=False)
        self._loop.call_later(FORGET_AFTER, lambda: self._zygote.forget(known.key))

    def restore(self, kept: Mapping[str, Sequence[int]]) -> list[str]:
        """Take over what PID 1 keeps for execs of a former agent, whose streams are gone.

        Returns:
            The kept names that are ours.
        """
        ours = [name for name in kept if name.startswith(KEY)]
        for name in ours:
            known = self._known(name.removeprefix(KEY))
            known.pipes = tuple(kept[name])
        return ours

    def _begin(self, exec_id: str, params: Params) -> Exec:
        container = self._containers.running(params.identifier("id"))
        number = params.optional_number("stream")
        stream = None if number is None else self._channel().stream(number)
        process = with_size(params.mapping("process"), read_size(params))
        tty = params.flag("tty")
        known = Exec(exec_id, container.id, stream)
        known.wants_stdin = params.flag("stdin") and stream is not None
        self._prune()
        self._execs[exec_id] = known
        child = None if tty else _pipes_for(known)
        if known.pipes:
            self._zygote.keep(known.key, known.pipes[:2])
        self._zygote.exec(known.key, container.pid, process, container.id, child, tty)
        for fd in child or ():
            os.close(fd)
        return known

    def _pump(self, known: Exec, number: int, fd: int) -> StreamPump:
        return StreamPump(self._loop, number, fd, known.stream, lambda: self._output_ended(known))

    def _connect(self, known: Exec, stream: GuestStream) -> None:
        def writable() -> None:
            for pump in known.pumps:
                pump.resume()

        def gone(reason: str) -> None:
            for pump in known.pumps:
                pump.discard()
            if known.stdin is not None:
                known.stdin.close()

        stream.on_writable(writable)
        stream.on_reset(gone)
        if known.stdin is not None:
            known.stdin.connect(stream)
        else:
            stream.on_data(lambda data: None)  # gives the credit back; nobody reads it

    def _output_ended(self, known: Exec) -> None:
        if known.exit_code is not None and all(pump.done for pump in known.pumps):
            self._finish(known)

    def _await_output(self, known: Exec, idle: bool) -> None:
        """Until every pump is done, or has had nothing to do for LINGER seconds."""
        if known.finished:
            return
        if all(pump.done for pump in known.pumps):
            self._finish(known)
            return
        empty = all(pump.empty for pump in known.pumps)
        if empty and idle:
            for pump in known.pumps:
                pump.finish()
            return
        self._loop.call_later(LINGER, lambda: self._await_output(known, empty))

    def _finish(self, known: Exec) -> None:
        known.finished = True
        known.pumps = []
        for fd in (known.pidfd, known.terminal):
            if fd >= 0:
                os.close(fd)
        known.pidfd = known.terminal = -1
        self._zygote.drop(known.key)
        if known.stream is not None:
            known.stream.end()
            known.stream = None

    def _prune(self) -> None:
        ended = [known for known in self._execs.values() if known.exit_code is not None]
        for known in ended[: max(0, len(ended) - REMEMBER)]:
            del self._execs[known.exec_id]

    def _known(self, name: str) -> Exec:
        """By the key's rest; one that a former agent started is made known here."""
        container_id, _, exec_id = name.partition("/")
        if exec_id not in self._execs:
            self._execs[exec_id] = Exec(exec_id, container_id, None)
        return self._execs[exec_id]

    def _running(self, params: Params) -> Exec:
        exec_id = params.identifier("exec_id")
        known = self._execs.get(exec_id)
        if known is None:
            raise CallError("not_found", f"there is no exec {exec_id}")
        if not known.running:
            raise CallError("conflict", f"exec {exec_id} is not running")
        return known


def _pipes_for(known: Exec) -> tuple[int, int, int]:
    """Fill `known.pipes`, and return what goes to the process: without a stream /dev/null."""
    if known.stream is None:
        return _null(os.O_RDONLY), _null(os.O_WRONLY), _null(os.O_WRONLY)
    out_reader, out_writer = big_pipe()
    err_reader, err_writer = big_pipe()
    if not known.wants_stdin:
        known.pipes = (out_reader, err_reader)
        return _null(os.O_RDONLY), out_writer, err_writer
    stdin_reader, stdin_writer = big_pipe()
    known.pipes = (out_reader, err_reader, stdin_writer)
    return stdin_reader, out_writer, err_writer


def _null(flags: int) -> int:
    return os.open("/dev/null", flags | _os.O_CLOEXEC)
