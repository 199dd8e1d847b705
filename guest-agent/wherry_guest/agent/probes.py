"""Health probes: short processes in a container, whose output is kept for the result.

They are execs of PID 1's, but nobody's stream: the host hears of a probe by the container's health
only. Rules: one answer per probe; one that outlives its time is killed and then waited for, so that
dying probes never pile up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Final

from wherry_guest.agent.container import read_exit_code
from wherry_guest.agent.health import OUTPUT_LIMIT, Check
from wherry_guest.loop import Loop, Timer
from wherry_guest.zygote import Exited, SpawnFailed, Started, Zygote

_os: Final[Any] = os
_signal: Final[Any] = signal

KEY: Final = "probe:"
"""PID 1 knows a probe by this, the container's id, a slash and a number."""

NOT_RUN: Final = -1
"""The exit code of a probe that could not be run, or was not done in time."""

_SIGKILL: Final = 9  # Windows' signal module has no name for it

Answer = Callable[[int, str], None]


class Probes:
    """All probes under way."""

    def __init__(self, loop: Loop, zygote: Zygote) -> None:
        self._loop = loop
        self._zygote = zygote
        self._probes: dict[str, _Probe] = {}
        # Not from 1: an earlier agent's may still run, under a key of its own.
        self._last = int(loop.time() * 1000)

    def run(self, container_id: str, pid: int, check: Check, answer: Answer) -> None:
        """Run one in the container whose first process is `pid`."""
        self._last += 1
        name = f"{container_id}/{self._last}"
        reader, writer = _os.pipe2(_os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDONLY | _os.O_CLOEXEC)
        try:
            stdio = (null, writer, writer)
            self._zygote.exec(KEY + name, pid, check.process, container_id, stdio, False)
        finally:
            os.close(null)
            os.close(writer)
        _os.set_blocking(reader, False)
        self._probes[name] = _Probe(self._loop, reader, check.timeout, answer)

    # What PID 1 says; of an earlier agent's probes only their ends matter, to forget them.

    def started(self, name: str, message: Started) -> None:
        if (probe := self._probes.get(name)) is not None:
            probe.started(message.pid)

    def spawn_failed(self, name: str, message: SpawnFailed) -> None:
        if (probe := self._probes.pop(name, None)) is not None:
            probe.end(NOT_RUN, message.message)

    def ended(self, name: str, message: Exited) -> None:
        self._zygote.forget(KEY + name)
        if (probe := self._probes.pop(name, None)) is not None:
            code, _ = read_exit_code(message.status)
            probe.end(code)


class _Probe:
    """One probe: reads its output as it comes, so that it never blocks on a full pipe."""

    def __init__(self, loop: Loop, output: int, timeout: float, answer: Answer) -> None:
        self._loop = loop
        self._output = output
        self._timeout = timeout
        self._answer = answer
        self._text = bytearray()
        self._truncated = False
        self._pidfd = -1
        self._late = False
        self._timer: Timer = loop.call_later(timeout, self._expire)
        loop.add_reader(output, self._read)

    def started(self, pid: int) -> None:
        try:
            self._pidfd = _os.pidfd_open(pid)
        except ProcessLookupError:
            return  # it has ended already, and PID 1 says so next
        if self._late:
            self._kill()

    def end(self, exit_code: int, message: str = "") -> None:
        self._timer.cancel()
        if self._loop.remove_reader(self._output):
            while self._take():
                pass
        os.close(self._output)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        output = message or self._text.decode("utf-8", "replace") + "..." * self._truncated
        if self._late:
            said = f": {output}" if output else ""
            output = f"Health check exceeded timeout ({go_duration(self._timeout)}){said}"
            exit_code = NOT_RUN
        self._answer(exit_code, output)

    def _read(self) -> None:
        if self._take() == 0:
            self._loop.remove_reader(self._output)

    def _take(self) -> int | None:
        """Read once. How much came; 0 at the end, None when there is nothing now."""
        try:
            data = os.read(self._output, 4 * OUTPUT_LIMIT)
        except BlockingIOError:
            return None
        room = OUTPUT_LIMIT - len(self._text)
        self._text += data[:room]
        self._truncated = self._truncated or len(data) > room
        return len(data)

    def _expire(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        if self._pidfd < 0:
            return  # as soon as it has started
        try:
            _signal.pidfd_send_signal(self._pidfd, _SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended by itself


def go_duration(seconds: float) -> str:
    """As Go prints it: 500ms, 30s, 1m30s."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{rest:g}s"
