"""What the cradle is asked for, until it has said which process it is.

Rules: nothing here waits. The cradle answers programs in their order, with a pid or with a failure;
who asked is told by a call. A process may end before its pid was heard: its end is held until then.
A cradle that ends takes with it what it was asked for and has not answered; a new one is made, if
the old one was of any use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wherry_guest.core.cradle import Cradle

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

Born = Callable[[int], None]
"""Takes the pid."""

Unborn = Callable[[bool], None]
"""Takes whether it is certain that there is no process."""

Ended = Callable[[int, int, int], object]
"""Takes pid, wait status, and time in ns of an end that came before the pid."""


@dataclass(frozen=True, slots=True)
class _Expected:
    born: Born
    unborn: Unborn


class Births:
    """The cradle, and who is expected of it.

    Args:
        watch, unwatch: called with the cradle's descriptor; `hear` when it is readable.
    """

    def __init__(
        self,
        kernel: Kernel,
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
        ended: Ended,
    ) -> None:
        self._cradle = Cradle(kernel)
        self._watch = watch
        self._unwatch = unwatch
        self._ended = ended
        self._expected: deque[_Expected] = deque()
        self._held: dict[int, tuple[int, int]] = {}

    @property
    def architecture(self) -> str:
        """For `flatten`; "": there is no cradle on this machine."""
        return self._cradle.architecture

    @property
    def alive(self) -> bool:
        """Whether it makes sense to ask."""
        return self._cradle.fileno() >= 0

    def prepare(self) -> None:
        """Make the cradle. OSError: there will be none now, and forks do all."""
        fd = self._cradle.start()
        if fd >= 0:
            self._watch(fd)

    def ask(self, program: bytes, fds: Sequence[int], born: Born, unborn: Unborn) -> bool:
        """Have a program run that makes a process; False: nobody will, and nobody is called."""
        if not self._cradle.send(program, fds):
            return False
        self._expected.append(_Expected(born, unborn))
        return True

    def hear(self, fd: int) -> bool:
        """Read what the cradle says, if `fd` is its descriptor."""
        if fd != self._cradle.fileno():
            return False
        self.listen()
        return True

    def listen(self) -> None:
        """Read what the cradle has said."""
        for pid in self._cradle.births():
            expected = self._expected.popleft()
            if not pid:
                expected.unborn(True)
                continue
            expected.born(pid)
            if (end := self._held.pop(pid, None)) is not None:
                self._ended(pid, *end)
        if not self._expected:
            self._held.clear()  # orphans of the containers

    def hold(self, pid: int, status: int, time_ns: int) -> bool:
        """An end of nobody that is known: kept while it may be of one whose pid was not heard."""
        if self._expected:
            self._held[pid] = status, time_ns
        return bool(self._expected)

    def reaped(self, pid: int) -> bool:
        """Whether it was the cradle that has ended."""
        if pid != self._cradle.pid:
            return False
        self.listen()
        self._unwatch(self._cradle.fileno())
        useful = self._cradle.useful
        self._cradle.ended()
        expected, self._expected = self._expected, deque()
        for it in expected:
            it.unborn(False)
        if useful:  # else the next one would do no better
            self.prepare()
        return True
