"""A workload that acknowledges what it has written, and the processes that tests kill under it.

A ledger is a container that appends numbered lines to a volume: it says a number on its standard
output when that line is on the disk. What a client has heard must be there after any fault, and
the file must have no gap: a container that comes back goes on behind the last line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType

from harness import Wherry
from waiting import eventually

from wherry.osutil import ProcessIdentity, is_alive, kill
from wherry.paths import Home

BUSYBOX = "localhost/busybox"

RECOVERY_SECONDS = 90.0
"""A restart policy waits longer each time: a second after some deaths in a row."""

_APPEND = """
set -e
last=$(tail -n 1 /ledger/lines 2>/dev/null || true)
n=${last:-0}
while :; do
    n=$((n + 1))
    echo $n >> /ledger/lines
    sync /ledger/lines
    echo $n
done
"""


class Ledger:
    """The container, and a client that listens to it, whatever dies. A context manager.

    Attributes:
        heard: the highest number that was acknowledged to a client.
    """

    def __init__(self, wherry: Wherry, name: str) -> None:
        self.name = name
        self.heard = 0
        self._wherry = wherry
        self._ends = threading.Event()
        self._listener: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ledger:
        self._wherry.out(
            "run", "-d", "--name", self.name, "--restart", "always", "--log-opt", "max-size=1m",
            "-v", f"{self.name}:/ledger", BUSYBOX, "sh", "-c", _APPEND, timeout=120,
        )  # fmt: skip
        self.listen()
        self.goes_on()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.deafen()
        self._wherry.run("rm", "--force", self.name)
        self._wherry.run("volume", "rm", self.name)

    def listen(self) -> None:
        """From now on somebody listens, whatever dies."""
        self._ends.clear()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def deafen(self) -> None:
        """Nobody listens any more; what was heard stays."""
        self._ends.set()
        if self._listener is not None:
            self._listener.kill()
        if self._thread is not None:
            self._thread.join(30)

    def goes_on(self, seconds: float = RECOVERY_SECONDS) -> None:
        """Wait until it acknowledges what it had not when this was called."""
        mark = self.heard + 1
        eventually(f"the ledger goes on behind {mark}", lambda: self.heard > mark, seconds)

    def check(self) -> int:
        """Compare what is on the disk with what was said.

        Returns:
            The number of lines.
        """
        heard = self.heard
        read = self._wherry.run("exec", self.name, "cat", "/ledger/lines", check=True)
        # The last line may just be written: only whole ones are compared.
        lines = read.stdout.decode().split("\n")[:-1]
        gap = next((n for n, line in enumerate(lines, 1) if line != str(n)), None)
        assert gap is None, f"line {gap} of {len(lines)} reads {lines[gap - 1 : gap + 1]}"
        assert len(lines) >= heard, f"{heard} was acknowledged, the last line is {len(lines)}"
        return len(lines)

    def _listen(self) -> None:
        while not self._ends.is_set():
            self._listener = self._wherry.popen("logs", "--follow", "--tail", "1", self.name)
            assert self._listener.stdout is not None
            for line in self._listener.stdout:
                if line.endswith(b"\n"):
                    self.heard = max(self.heard, int(line))
            self._listener.kill()
            self._listener.communicate()
            self._ends.wait(0.1)  # nobody may be there: not at full speed


def new_home(root: Path, cache: Path) -> Home:
    """A state directory for machines like those of other tests, whose templates it shares."""
    (root / "config.yml").write_text("memory_mib: 1024\ncpus: 2\n")
    (root / "cache").symlink_to(cache)
    return Home(root)


def qemu_of(wherry: Wherry, machine: str = "default") -> ProcessIdentity:
    """The QEMU that the machine's record names."""
    record = json.loads(wherry.home.machine(machine).qemu_record.read_text())["identity"]
    return ProcessIdentity(record["pid"], record["start_time"])


def kill_qemu(wherry: Wherry) -> None:
    """`kill -9`, and wait until it is gone."""
    qemu = qemu_of(wherry)
    kill(qemu)
    eventually("the killed QEMU is gone", lambda: not is_alive(qemu))


def kill_in_guest(wherry: Wherry, what: str) -> None:
    """`kill -9` of a process in the machine. Args: what: a shell word that gives its pid."""
    script = f"kill -9 {what}"
    host = ("--pid", "host", "--privileged")
    done = wherry.run("run", "--rm", *host, BUSYBOX, "sh", "-c", script)
    # An agent that it kills may not have answered yet.
    assert done.returncode == 0 or b"the agent was restarted" in done.stderr, done.stderr


_CHILD = "$(ps -o pid,ppid,args | awk '$2 == 1 && $NF == \"{}\" {{print $1}}')"

AGENT = _CHILD.format("/init")
"""PID 1's child that runs the same program."""

CRADLE = _CHILD.format("wherry-cradle")
"""The child of PID 1 that containers are born in."""


def container_state(wherry: Wherry, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(wherry.out("inspect", name))[0]["State"]
    return state


def kill_container(wherry: Wherry, name: str) -> None:
    """`kill -9` of a container's first process, behind the engine's back."""
    kill_in_guest(wherry, str(container_state(wherry, name)["Pid"]))


def kill_command(command: subprocess.Popen[bytes]) -> None:
    """`kill -9` of a command that may have ended."""
    if command.poll() is None:
        os.kill(command.pid, signal.SIGKILL)


def leftovers(directory: Path) -> set[str]:
    """Names of what is in a directory and below, but for what SQLite keeps beside a database."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }
