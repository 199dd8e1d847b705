"""Pumps: a container's output into its log, an exec's output into its stream, streams into stdin.

Rules: as few Python operations per 64 KiB as can be; nothing blocks (a full pipe pauses the stream,
an exhausted stream pauses the pipe); every pump says exactly once that it is done.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from wherry_guest.agent.kernel import bytes_available
from wherry_guest.agent.logframes import FULL_PAYLOAD, PASSING_PAYLOAD, frame_header
from wherry_guest.agent.logs import Output, Sink
from wherry_guest.channel import GuestStream
from wherry_guest.loop import Loop, Timer

_os: Final[Any] = os

TURN: Final = 8 * FULL_PAYLOAD
"""Bytes that one pump moves before others get their turn."""

DISK_RETRY: Final = 0.5
"""Seconds between two tries to write a log to a full disk; the container waits meanwhile."""


class LogPump:
    """One output pipe of a container into its log, or to its readers. Owns the descriptor.

    Args:
        terminal: the pty's master; its output goes through the pipe (`feed`, the pipe's writer),
            which PID 1 keeps, so that a killed agent loses none.
        on_end: called once, when the pipe is at its end (or `give_up` was called) and closed.

    Attributes:
        lost: bytes that `give_up` found no place for.
    """

    __slots__ = (
        "_feed",
        "_log",
        "_loop",
        "_on_end",
        "_pipe",
        "_retry",
        "_stream",
        "_terminal",
        "_waiting",
        "lost",
    )

    def __init__(
        self,
        loop: Loop,
        log: Output,
        stream: int,
        pipe: int,
        on_end: Callable[[], None],
        terminal: int | None = None,
        feed: int | None = None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._stream = stream
        self._pipe = pipe
        self._on_end = on_end
        self._terminal = terminal
        self._feed = feed
        self._retry: Timer | None = None
        self._waiting = False
        self.lost = 0
        _os.set_blocking(pipe if terminal is None else terminal, False)
        self._listen()
        if terminal is not None:
            loop.call_soon(self._terminal_readable)  # what a former agent left in the pipe

    @property
    def done(self) -> bool:
        return self._pipe < 0

    def give_up(self) -> None:
        """Take what is there now, as far as it finds a place, then close. What is left is told."""
        if self.done:
            return
        try:
            while self._log.ready and self._log.take(self._pipe, self._stream):
                pass
        except OSError:
            pass  # the disk is full: the last words have no place
        self.lost = bytes_available(self._pipe)
        self._finish()

    def detach(self) -> None:
        """Stop without a word, at the machine's shutdown."""
        if not self.done:
            self._close()

    def _listen(self) -> None:
        if self._terminal is None:
            self._loop.add_reader(self._pipe, self._pipe_readable)
        else:
            self._loop.add_reader(self._terminal, self._terminal_readable)

    def _pipe_readable(self) -> None:
        budget = TURN
        while budget > 0:
            if not self._log.ready:
                self._wait_for_reader()
                return
            try:
                moved = self._log.take(self._pipe, self._stream)
            except OSError as error:
                self._wait_for_disk(error)
                return
            if moved is None:
                self._finish()
            if not moved or moved < FULL_PAYLOAD:
                return  # most likely empty; if not, the loop says so
            budget -= moved

    def _terminal_readable(self) -> None:
        if self.done or self._retry is not None or self._waiting:
            return
        if not self._log.ready:
            self._wait_for_reader()
            return
        ended = False
        try:
            ended = not _os.splice(
                self._terminal, self._feed, FULL_PAYLOAD, flags=_os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: no process has the terminal any more
                raise
            ended = True
        try:
            while self._log.take(self._pipe, self._stream):
                pass
        except OSError as error:
            self._wait_for_disk(error)
            return
        if ended:
            self._finish()

    def _wait_for_disk(self, error: OSError) -> None:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        self._loop.remove_reader(self._pipe if self._terminal is None else self._terminal)
        self._retry = self._loop.call_later(DISK_RETRY, self._try_again)

    def _wait_for_reader(self) -> None:
        self._loop.remove_reader(self._pipe if self._terminal is None else self._terminal)
        self._waiting = True
        self._log.when_ready(self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._waiting = False
        if self.done:
            return
        if self._terminal is None:
            self._pipe_readable()
        else:
            self._terminal_readable()
        if not (self.done or self._waiting or self._retry is not None):
            self._listen()  # not before: most often there is more than the reader takes

    def _finish(self) -> None:
        self._close()
        self._on_end()

    def _close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._pipe if self._terminal is None else self._terminal)
        os.close(self._pipe)
        self._pipe = -1
        if self._feed is not None:
            os.close(self._feed)


class StreamPump:
    """One output of an exec into its stream, framed, not kept. Owns the descriptor.

    Without a sink, or once it is gone (`discard`), output is read and thrown away.
    """

    __slots__ = ("_fd", "_loop", "_on_end", "_sink", "_stream")

    def __init__(
        self, loop: Loop, stream: int, fd: int, sink: Sink | None, on_end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._fd = fd
        self._sink = sink
        self._on_end = on_end
        _os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

    @property
    def done(self) -> bool:
        return self._fd < 0

    @property
    def empty(self) -> bool:
        """Whether all that was written so far has been passed on."""
        return self.done or not bytes_available(self._fd)

    def resume(self) -> None:
        """The sink takes data again."""
        if not self.done:
            self._loop.add_reader(self._fd, self._readable)

    def discard(self) -> None:
        """The sink is gone."""
        self._sink = None
        self.resume()

    def finish(self) -> None:
        """Close, though somebody may still hold the other end."""
        if not self.done:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._on_end()

    def _readable(self) -> None:
        budget = TURN
        while budget > 0:
            try:
                data = os.read(self._fd, PASSING_PAYLOAD)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that no process has any more
                    raise
                data = b""
            if not data:
                self.finish()
                return
            if self._sink is not None:
                header = frame_header(self._stream, len(data), time.time_ns())
                if not self._sink.write(header, data):
                    self._loop.remove_reader(self._fd)
                    return
            if len(data) < PASSING_PAYLOAD:
                return
            budget -= len(data)


class Stdin:
    """A process's stdin: a pipe or a terminal that several streams may write to. Owns the
    descriptor.

    Args:
        once: the first stream that half-closes closes it (not a terminal's: half of it cannot be
            closed).
        on_close: called once, when it is closed, by us or since nobody reads it.
    """

    __slots__ = ("_fd", "_loop", "_on_close", "_once", "_paused", "_queue", "_will_close")

    def __init__(
        self, loop: Loop, fd: int, once: bool, on_close: Callable[[], None] | None = None
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._once = once
        self._on_close = on_close
        self._queue: deque[memoryview] = deque()
        self._paused: list[GuestStream] = []
        self._will_close = False
        _os.set_blocking(fd, False)

    def connect(self, stream: GuestStream) -> None:
        """Feed what the stream brings."""
        stream.on_data(lambda data: self._feed(data, stream))
        stream.on_end(self._stream_ended)

    def close(self) -> None:
        """Close now; what was not written yet is lost."""
        if self._fd < 0:
            return
        self._loop.remove_writer(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._queue.clear()
        self._release()
        if self._on_close is not None:
            self._on_close()

    def _feed(self, data: bytes, stream: GuestStream) -> None:
        if self._fd < 0 or self._will_close:
            return  # nobody reads it any more: as a write to a closed pipe, but without the signal
        if not self._queue:
            written = self._write(data)
            if written == len(data) or self._fd < 0:
                return
            data = data[written:]
            self._loop.add_writer(self._fd, self._writable)
        self._queue.append(memoryview(data))
        stream.pause()
        if stream not in self._paused:
            self._paused.append(stream)

    def _stream_ended(self) -> None:
        if self._once:
            self._will_close = True
            if not self._queue:
                self.close()

    def _writable(self) -> None:
        while self._queue:
            head = self._queue[0]
            written = self._write(head)
            if self._fd < 0:
                return
            if written < len(head):
                self._queue[0] = head[written:]
                return
            self._queue.popleft()
        self._loop.remove_writer(self._fd)
        if self._will_close:
            self.close()
        self._release()

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.close()
            return 0

    def _release(self) -> None:
        paused, self._paused = self._paused, []
        for stream in paused:
            stream.resume()
