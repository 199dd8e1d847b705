"""One container: its state machine, its files, its descriptors.

    starting -> running -> draining -> exited (-> starting ...)
                              └──────> waiting (a policy starts it again) -> starting

Rules: `state.json` is written before PID 1 is asked for anything, so that a new agent can take
every process over; the exit is stored on the data disk before it is told, and in state.json before
PID 1 forgets.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from wherry_guest.agent.crash import CrashWatch
from wherry_guest.agent.health import Check, Health
from wherry_guest.agent.kernel import (
    TIOCSWINSZ,
    big_pipe,
    ioctl,
    make_directory,
    write_atomically,
)
from wherry_guest.agent.logfile import Limits
from wherry_guest.agent.logframes import STDERR, STDOUT
from wherry_guest.agent.logs import Log, Output, Unlogged
from wherry_guest.agent.paths import ContainerPaths
from wherry_guest.agent.request import NONE, Options, Request
from wherry_guest.agent.restart import Restarts
from wherry_guest.agent.stdio import LogPump, Stdin
from wherry_guest.agent.tasks import Promise
from wherry_guest.channel import CallError
from wherry_guest.loop import Loop, Timer
from wherry_guest.zygote import Exited, Started

_os: Final[Any] = os
_signal: Final[Any] = signal

EXIT_PATIENCE: Final = 10.0
"""Seconds that an ended container's output may take to find its place (a full disk, a reader that
does not read, somebody outside who holds the pipe); then it ends without."""


class Status(enum.Enum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    """The process is gone, its output is not all in the log."""
    WAITING = "waiting"
    """Its policy will start it again."""
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Exit:
    """A container's end, as in `container.exit`."""

    id: str
    exit_code: int
    signal: int | None
    oom: bool
    started_ns: int
    finished_ns: int
    log_bytes: int
    log_lost: int = 0
    restarting: bool = False
    restart_count: int = 0
    error: str = ""
    health: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The event's payload."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Stdio:
    """The pipes of a start. `child` goes to the process (None with a terminal), the rest stays
    here.

    With a terminal `outputs` is one pipe, (reader, writer), that the terminal's output goes
    through.
    """

    child: tuple[int, int, int] | None
    stdin: int | None
    outputs: tuple[int, ...]

    @classmethod
    def make(cls, options: Options) -> Stdio:
        if options.tty:
            return cls(None, None, big_pipe())
        stdin_reader, stdin = _stdin_pipe(options.open_stdin)
        out_reader, out_writer = big_pipe()
        err_reader, err_writer = big_pipe()
        return cls((stdin_reader, out_writer, err_writer), stdin, (out_reader, err_reader))

    def close_child(self) -> None:
        for fd in self.child or ():
            os.close(fd)

    def close_ours(self) -> None:
        for fd in (*self.outputs, *(() if self.stdin is None else (self.stdin,))):
            os.close(fd)


class Container:
    """The life of one container in this agent.

    Args:
        on_drained: called when the process is gone and its output is all in the log.
    """

    def __init__(
        self, loop: Loop, id: str, paths: ContainerPaths, on_drained: Callable[[Container], None]
    ) -> None:
        self.id = id
        self.paths = paths
        self.status = Status.EXITED
        self.options = Options(False, False, False, ())
        self.pid = 0
        self.started_ns = 0
        self.exit: Exit | None = None
        self.log: Output = Log(paths.log, closed=True)
        self.restarts = Restarts()
        self.waits_until = 0.0
        """When WAITING ends, by the loop's clock, which counts in the machine's life."""
        self.request: Request | None = None
        """What a policy starts again; None where there is none."""
        self.check: Check | None = None
        self.health: Health | None = None
        self.paused = False
        self.stdin: Stdin | None = None
        self.stdio: Stdio | None = None
        self.started: Promise[None] = Promise()
        self.exited: Promise[None] = Promise()
        self.oom_watch: int | None = None
        self.ending: Exited | None = None
        self._crash_watch: CrashWatch | None = None
        self._crashed: int | None = None
        self._loop = loop
        self._on_drained = on_drained
        self._pumps: list[LogPump] = []
        self._draining: Timer | None = None
        self._pidfd = -1
        self._terminal = -1

    @property
    def alive(self) -> bool:
        """Whether it may not be started or removed."""
        return self.status is not Status.EXITED

    @property
    def running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def has_run(self) -> bool:
        """Whether a process of it was ever started."""
        return self.paths.log.exists()

    def begin(self, request: Request, lowerdirs: tuple[str, ...]) -> None:
        """A start was asked for; what follows is `has_started` or `start_failed`."""
        self.status = Status.STARTING
        self.options = request.options(lowerdirs)
        self.check = request.check
        if self.check is not None:
            self.health = self.health or Health()
            self.health.restart()
        else:
            self.health = None
        self.log = self._make_log(request.reader_expected)
        self.keep_request(request)
        self.started = Promise()
        self.exited = Promise()
        self.ending = None
        self.save()

    def keep_request(self, request: Request) -> None:
        """What its policy starts from now on; kept only where there is one."""
        make_directory(str(self.paths.run), 0o700)
        if self.restarts.policy.active:
            self.request = request
            write_atomically(self.paths.request, json.dumps(dict(request.params)))
        else:
            self.request = None
            self.paths.request.unlink(missing_ok=True)

    def has_started(
        self, message: Started, stdio: Stdio, on_stdin_closed: Callable[[], None]
    ) -> None:
        """The process runs: begin to pump. Takes `stdio`'s and the message's descriptors over."""
        self.status = Status.RUNNING
        self.pid = message.pid
        self.started_ns = message.started_ns
        again = self.exit is not None
        if again:
            self.exit = None
            self.paths.exit.unlink(missing_ok=True)
        self.stdio = None
        self.log.start()
        self._open_pidfd()
        self._crashed = None
        if self.options.emulated:
            self._crash_watch = CrashWatch(self._loop, self.pid, self._end_crashed)
        stdin = stdio.stdin
        if message.terminal is not None:
            self._terminal = message.terminal
            stdin = _os.dup(message.terminal)
            reader, writer = stdio.outputs
            self._pumps = [self._pump(STDOUT, reader, message.terminal, writer)]
        else:
            out, err = stdio.outputs
            self._pumps = [self._pump(STDOUT, out), self._pump(STDERR, err)]
        if stdin is not None:
            once = self.options.stdin_once and not self.options.tty
            self.stdin = Stdin(self._loop, stdin, once, on_stdin_closed)
        if again:  # else `begin` has saved all that PID 1 would not tell a new agent
            self.save()
        self.started.resolve(None)

    def start_failed(self, error: CallError) -> None:
        """Nothing runs; an earlier run's exit still stands."""
        self.status = Status.EXITED
        self.stdio = None
        self.paths.state.unlink(missing_ok=True)
        if self.exit is not None:
            self.save()
        self.started.reject(error)

    def process_gone(self, message: Exited) -> None:
        """PID 1 has reaped it: wait for the last of its output."""
        self.status = Status.DRAINING
        if self._crash_watch is not None:
            self._crash_watch.stop()
        if self._crashed is not None:
            message = replace(message, status=self._crashed)  # a wait status: of that signal
        self.ending = message
        self.paused = False
        if self.stdin is not None:
            self.stdin.close()
            self.stdin = None
        self._drained()
        if self.status is Status.DRAINING:
            self._draining = self._loop.call_later(
                EXIT_PATIENCE, lambda: self._give_up_output(message)
            )

    def _end_crashed(self, number: int) -> None:
        """Its emulator cannot end by the signal that its program died of."""
        self._crashed = number
        self.kill(_signal.SIGKILL)

    @property
    def log_lost(self) -> int:
        """Bytes of its output that found no place."""
        return self.log.lost + sum(pump.lost for pump in self._pumps)

    def finished(self, exit: Exit) -> None:
        """All output is in the log: end the readers. `store_exit`, `save` are the caller's."""
        self.pid = 0
        if self._draining is not None:
            self._draining.cancel()  # or it would hold all of this for as long as it waits
            self._draining = None
        self.set_exit(exit)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        self.log.finish()
        self.exited.resolve(None)

    def set_exit(self, exit: Exit) -> None:
        """This is how it ended, and whether that is its end. Storing it is the caller's."""
        self.status = Status.WAITING if exit.restarting else Status.EXITED
        self.exit = exit

    def store_exit(self) -> None:
        """Keep the exit on the data disk, for later boots."""
        if self.exit is None:
            return
        try:
            write_atomically(self.paths.exit, json.dumps(self.exit.as_json()))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # A full disk: state.json has it in this boot, and the engine for good.
            self.paths.exit.unlink(missing_ok=True)
            self.save()

    def kill(self, number: int) -> None:
        """Send a signal to the container's first process; lost on one whose exit is on its way.

        Raises:
            CallError: `conflict` when it does not run, `invalid` for a number that is no signal.
        """
        if not self.running or self._pidfd < 0:
            raise CallError("conflict", f"container {self.id} is not running")
        try:
            _signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return  # as a signal to a zombie: it was in time, and changes nothing
        except OSError as error:
            raise CallError("invalid", f"signal {number}: {error.strerror}") from error

    def resize(self, rows: int, cols: int) -> None:
        """Give the terminal a size. Raises CallError when there is none."""
        if not self.running:
            raise CallError("conflict", f"container {self.id} is not running")
        if self._terminal < 0:
            raise CallError("invalid", f"container {self.id} has no terminal")
        set_size(self._terminal, rows, cols)

    def detach(self) -> None:
        """At the machine's shutdown: let go of the data disk."""
        for pump in self._pumps:
            pump.detach()
        self.log.abandon()

    def log_bytes(self) -> int:
        """The log's size; of an ended container without opening the log."""
        if self.exit is not None and self.status in (Status.EXITED, Status.WAITING):
            return self.exit.log_bytes
        return self.log.end_offset()

    def listed(self) -> dict[str, Any]:
        """As in `container.list`."""
        return {
            "id": self.id,
            "status": self._listed_status(),
            "pid": self.pid,
            "started_ns": self.started_ns,
            "exit": None if self.exit is None else self.exit.as_json(),
            "log_bytes": self.log_bytes(),
            "restart_count": self.restarts.count,
            "health": None if self.health is None else self.health.as_json(),
        }

    def _listed_status(self) -> str:
        if self.status is Status.WAITING:
            return "restarting"
        if self.paused:
            return "paused"
        return "running" if self.alive else "exited"

    def save(self) -> None:
        """Write state.json, for a new agent."""
        state = {
            "status": self.status.value,
            "options": self.options.as_json(),
            "pid": self.pid,
            "started_ns": self.started_ns,
            "exit": None if self.exit is None else self.exit.as_json(),
            "restarts": self.restarts.saved(),
            "waits_until": self.waits_until,
            "paused": self.paused,
            "check": None if self.check is None else asdict(self.check),
        }
        write_atomically(self.paths.state, json.dumps(state))

    def save_health(self) -> None:
        """Write health.json, for a new agent: with its outputs it is too big for each state."""
        if self.health is not None:
            write_atomically(self.paths.health, json.dumps(self.health.as_json()))

    def load(self) -> None:
        """Take what a former agent, or a former boot, has left on the disks."""
        self.exit = self._stored_exit()
        if self.exit is not None:
            self.started_ns = self.exit.started_ns
        if not self.paths.state.exists():
            return
        state = json.loads(self.paths.state.read_text(encoding="utf-8"))
        options = state["options"]
        # An agent of an earlier version wrote less.
        lowerdirs, limits = tuple(options["lowerdirs"]), Limits(**options.get("limits", {}))
        self.options = Options(**{**options, "lowerdirs": lowerdirs, "limits": limits})
        self.status = Status(state["status"])
        self.pid = state["pid"]
        self.started_ns = state["started_ns"] or self.started_ns
        if self.exit is None and state["exit"] is not None:
            self.exit = Exit(**state["exit"])
        if "restarts" in state:
            self.restarts = Restarts.load(state["restarts"])
        self.waits_until = state.get("waits_until", 0.0)
        self.paused = state.get("paused", False)
        self.log = self._make_log(reader_expected=False)
        self._load_policies(state)

    def _load_policies(self, state: dict[str, Any]) -> None:
        if self.paths.request.exists():
            self.request = Request.read(json.loads(self.paths.request.read_text(encoding="utf-8")))
        if state.get("check") is not None:
            self.check = Check(**state["check"])
            self.health = Health()
            if self.paths.health.exists():
                text = self.paths.health.read_text(encoding="utf-8")
                self.health = Health.load(json.loads(text))

    def _make_log(self, reader_expected: bool) -> Output:
        if self.options.driver == NONE:
            size = self.log.end_offset()
            return Unlogged(self._loop, self.paths.log, size, reader_expected)
        log = Log(self.paths.log, closed=True, limits=self.options.limits)
        if not self.options.buffer:
            return log
        from wherry_guest.agent.ring import RingLog  # here: few containers want it

        return RingLog(self._loop, log, self.options.buffer)

    def _stored_exit(self) -> Exit | None:
        """The last exit, from the data disk.

        None: it did not end in order, or the machine lost power before the file had its contents
        (which is not worth an fsync: the engine has the exit).
        """
        if not self.paths.exit.exists():
            return None
        try:
            return Exit(**json.loads(self.paths.exit.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            self.paths.exit.unlink()
            return None

    def _pump(
        self, stream: int, pipe: int, terminal: int | None = None, feed: int | None = None
    ) -> LogPump:
        return LogPump(self._loop, self.log, stream, pipe, self._drained, terminal, feed)

    def _drained(self) -> None:
        if self.status is Status.DRAINING and all(pump.done for pump in self._pumps):
            self._on_drained(self)

    def _give_up_output(self, ending: Exited) -> None:
        if self.ending is ending and self.status is Status.DRAINING:
            for pump in self._pumps:
                pump.give_up()

    def _open_pidfd(self) -> None:
        try:
            self._pidfd = _os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._pidfd = -1  # it has ended already, and PID 1 says so next


def set_size(terminal: int, rows: int, cols: int) -> None:
    """struct winsize, asm-generic/termios.h. Raises CallError for sizes that are none."""
    if not (0 <= rows <= 0xFFFF and 0 <= cols <= 0xFFFF):
        raise CallError("invalid", f"a terminal of {rows} rows and {cols} columns")
    size = b"".join(value.to_bytes(2, "little") for value in (rows, cols, 0, 0))
    ioctl(terminal, TIOCSWINSZ, size)


def read_exit_code(status: int) -> tuple[int, int | None]:
    """(Docker's exit code, the signal or None) of a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return (code, None) if code >= 0 else (128 - code, -code)


def _stdin_pipe(wanted: bool) -> tuple[int, int | None]:
    if wanted:
        return big_pipe()
    return os.open("/dev/null", os.O_RDONLY | _os.O_CLOEXEC), None
