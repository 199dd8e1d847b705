"""Work that blocks and has a stream of bytes for a result: a forked child, a pipe, a stream.

Rules: the child imports nothing that was not loaded and never returns into the agent's loop; it
outlives an agent that is killed and then ends by itself, with what it has to undo undone (its pipe
has no reader any more). The stream is half-closed only when the child said that all went well; else
it is reset with the child's words.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from wherry_guest.agent.calls import one_line
from wherry_guest.agent.kernel import big_pipe
from wherry_guest.channel import GuestStream
from wherry_guest.core.child import close_others
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop

READ_BYTES: Final = 256 * 1024
_COMPLAINT_BYTES: Final = 4000

_os: Final[Any] = os
_signal: Final[Any] = signal

Job = Callable[[int], None]
"""Writes to the descriptor, in the child; what it raises is the reason of the stream's reset."""


class JobError(Exception):
    """A job's refusal, in the words that the host shall see."""


class Worker:
    """One child whose output goes to `stream`.

    Args:
        on_end: called once, when the child is gone and the stream is over.
        keep: descriptors that the job uses; the caller's ends stay the caller's.

    Attributes:
        abandoned: nobody wants the rest: its end is near.
        on_abandon: called then, for a job that reads from somewhere and would wait there.
    """

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        stream: GuestStream,
        job: Job,
        on_end: Callable[[], None],
        keep: Sequence[int] = (),
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._on_end = on_end
        self._complaint = b""
        self.abandoned = False
        self.on_abandon: Callable[[], None] = lambda: None
        self._output, writer = big_pipe()
        self._errors, errors = _os.pipe2(_os.O_CLOEXEC | _os.O_NONBLOCK)
        pid = os.fork()  # type: ignore[attr-defined, unused-ignore]  # POSIX only
        if pid == 0:
            _work(kernel, job, writer, errors, keep)
        os.close(writer)
        os.close(errors)
        self._pid = pid
        self._pidfd: int = _os.pidfd_open(pid)
        _os.set_blocking(self._output, False)
        stream.on_data(lambda data: None)  # gives the credit back; nobody reads it
        stream.on_writable(self._resume)
        stream.on_reset(lambda reason: self.abandon(""))
        loop.add_reader(self._output, self._readable)

    def abandon(self, reason: str) -> None:
        """Nobody wants the rest: the child ends at its next write."""
        if self.abandoned or self._output < 0:
            return
        self.abandoned = True
        if reason:
            self._stream.reset(reason)
        self._close_output()
        self.on_abandon()

    def kill(self) -> None:
        """End the child at once: for a job that leaves nothing to be undone."""
        _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)

    def _resume(self) -> None:
        if self._output >= 0:
            self._loop.add_reader(self._output, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close_output()
        elif not self._stream.write(data):
            self._loop.remove_reader(self._output)

    def _close_output(self) -> None:
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self._output = -1
        self._loop.add_reader(self._pidfd, self._exited)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        complaint = os.read(self._errors, _COMPLAINT_BYTES)
        os.close(self._errors)
        code = os.waitstatus_to_exitcode(status)
        if not self.abandoned and code:
            words = complaint.decode("utf-8", "replace")
            self._stream.reset(words or f"the process that reads the files ended with {code}")
        elif not self.abandoned:
            self._stream.end()
        self._on_end()


def _work(kernel: Kernel, job: Job, output: int, errors: int, keep: Sequence[int]) -> NoReturn:
    code = 1
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        signal.set_wakeup_fd(-1)
        # A pipe without a reader must be an error here: what the job changed has to be undone.
        signal.signal(_signal.SIGPIPE, signal.SIG_IGN)
        close_others(kernel, [output, errors, *keep])
        job(output)
        code = 0
    except BaseException as error:  # noqa: BLE001 - everything is told; nothing may go on from here
        words = str(error) if isinstance(error, JobError) else one_line(error)
        os.write(errors, words.encode("utf-8", "replace")[:_COMPLAINT_BYTES])
    finally:
        os._exit(code)
