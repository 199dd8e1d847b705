"""Driving the `wherry` and `docker` command lines as a user does: processes, pipes, a terminal."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from waiting import eventually

from wherry.paths import Home

if sys.platform != "win32":  # unit tests run there too; terminals are tested elsewhere
    import fcntl
    import pty
    import termios

ROOT = Path(__file__).resolve().parents[1]
_SOURCE_ROOTS = os.pathsep.join(str(ROOT / name) for name in ("host", "guest-agent", "vm-images"))


@dataclass
class Wherry:
    """One WHERRY_HOME and the commands that use it."""

    home: Home
    extra_environment: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY", "DOCKER"))}
        return {
            **inherited,
            "WHERRY_HOME": str(self.home.root),
            "PYTHONPATH": _SOURCE_ROOTS,
            "DOCKER_HOST": f"unix://{self.home.machine('default').api_socket}",
            **self.extra_environment,
        }

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "wherry", *args]

    def run(
        self, *args: str, input: bytes = b"", timeout: float = 60, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `wherry ARGS`; with `check` a failure is an AssertionError that shows its output."""
        return self._finish(self.argv(*args), input, timeout, check)

    def out(self, *args: str, input: bytes = b"", timeout: float = 60) -> str:
        """The standard output of a `wherry` command that must succeed, stripped."""
        return self.run(*args, input=input, timeout=timeout, check=True).stdout.decode().strip()

    def docker(
        self, *args: str, input: bytes = b"", timeout: float = 60, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        return self._finish(["docker", *args], input, timeout, check)

    def popen(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(*args),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def engine_pid(self) -> int:
        return int(self.home.machine("default").engine_lock.read_text())

    def kill_engine(self) -> None:
        """`kill -9`, and wait until it is gone."""
        pid = self.engine_pid()
        os.kill(pid, signal.SIGKILL)
        eventually("the killed engine is gone", lambda: not _alive(pid))

    def _finish(
        self, argv: Sequence[str], input: bytes, timeout: float, check: bool
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            argv,
            env=self.environment,
            input=input,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, (
                f"{' '.join(argv)} ended with {done.returncode}\n"
                f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
            )
        return done


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] != b"Z"
    except OSError:
        return False


class Terminal:
    """A program on a pseudo-terminal: type into it, and wait for what it shows."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str], rows: int, columns: int):
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], list(argv), environment)
        self.shown = b""
        self._seen = 0
        self.resize(rows, columns)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if _alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def expect(self, text: bytes, seconds: float = 20.0) -> None:
        """Wait until `text` is shown, after what earlier calls waited for."""
        if not self.shows(text, seconds):
            raise AssertionError(f"{text!r} was not shown; the terminal shows:\n{self.shown!r}")

    def shows(self, text: bytes, seconds: float) -> bool:
        """Whether `text` is shown within so many seconds, after what earlier calls waited for."""
        deadline = time.monotonic() + seconds
        while (position := self.shown.find(text, self._seen)) < 0:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                return False
        self._seen = position + len(text)
        return True

    def interrupt(self, prompt: bytes) -> None:
        """Ctrl-C until the shell shows its prompt: one may come before the command has begun."""

        def interrupted() -> bool:
            self.type(b"\x03")
            return self.shows(prompt, 1.0)

        eventually("Ctrl-C ends the command", interrupted)

    def wait(self, seconds: float = 20.0) -> int:
        """The exit code of the program."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        assert time.monotonic() < deadline, f"did not end; the terminal shows:\n{self.shown!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, seconds: float) -> bool:
        """Read once; False at the end or when nothing came within `seconds`."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.shown += data
        return bool(data)
