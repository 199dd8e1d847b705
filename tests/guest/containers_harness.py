"""Real containers through a real zygote, for tests: a busybox root, a spec like the engine's."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import needs
import pytest
from waiting import PATIENCE, eventually

from wherry_guest.core.plan import Layout
from wherry_guest.zygote import Exited, Kept, Message, Rootfs, SpawnFailed, Started, Zygote

DEADLINE = 20.0 * PATIENCE
DEFAULT_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
web:x:1000:1000:a user:/home/web:/bin/sh
"""
GROUP = "root:x:0:\nweb:x:1000:\nstaff:x:50:web\nwheel:x:10:root,web\n"

SPEC: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "cwd": "/",
        "capabilities": {
            "bounding": DEFAULT_CAPABILITIES,
            "effective": DEFAULT_CAPABILITIES,
            "permitted": DEFAULT_CAPABILITIES,
        },
        "noNewPrivileges": False,
        "oomScoreAdj": 0,
    },
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]},
    ],
    "linux": {
        "namespaces": [
            {"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")
        ],
        "resources": {},
        "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list",
                        "/proc/scsi", "/sys/firmware", "/proc/no-such-thing"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                          "/proc/sysrq-trigger"],
    },
}  # fmt: skip
"""What the engine sends for a container with no options."""


def held_open(pid: int) -> list[str]:
    """What a process has open, as /proc names it, without one network namespace.

    PID 1 makes one ready for the next container when it has nothing else to do, so that it is open
    or not says nothing about what was forgotten; a second one would.
    """
    links = open_files(pid)
    spare = next((link for link in links if link.startswith("net:")), None)
    return [link for link in links if link != spare]


def open_files(pid: int) -> list[str]:
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed since
            links.append(str(path.readlink()))
    return links


@dataclass
class Result:
    """How a container went. `exit_code`: os.waitstatus_to_exitcode, negative for a signal."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class Running:
    """A started container or exec. Descriptors: stdin's write end, stdout's and stderr's read."""

    key: str
    started: Started
    stdin: int
    stdout: int
    stderr: int

    @property
    def pid(self) -> int:
        return self.started.pid


class StartFailed(Exception):
    def __init__(self, report: SpawnFailed) -> None:
        super().__init__(report.message)
        self.report = report


@dataclass
class Machine:
    """A zygote with layers, cgroups, and us as its agent."""

    directory: Path
    cgroups: Path
    process: subprocess.Popen[str]
    rendezvous: socket.socket
    zygote: Zygote
    agent_pid: int
    inbox: list[Message] = field(default_factory=list)
    count: int = 0

    def spec(self, *args: str, **process: Any) -> dict[str, Any]:
        """A spec that runs `args`, with fields of `process` changed."""
        spec = copy.deepcopy(SPEC)
        spec["process"] |= {"args": list(args), **process}
        return spec

    def rootfs(self, key: str, *layers: str) -> Rootfs:
        upper, work = (self.directory / f"{key}-{name}" for name in ("upper", "work"))
        for path in (upper, work):
            path.mkdir(exist_ok=True)
        return Rootfs(layers or ("busybox",), str(upper), str(work))

    def start(
        self,
        spec: dict[str, Any],
        *,
        tty: bool = False,
        key: str = "",
        rootfs: Rootfs | None = None,
    ) -> Running:
        """Start a container; StartFailed."""
        key = key or self.new_key()
        rootfs = rootfs or self.rootfs(key)
        with self._stdio(tty) as (ours, theirs):
            self.zygote.spawn(key, spec, rootfs, theirs, tty, key)
            return self._started(key, ours, tty)

    def exec(
        self, container: Running, process: dict[str, Any], *, tty: bool = False, cgroup: str = ""
    ) -> Running:
        """Start one more process in a container; StartFailed."""
        key = self.new_key()
        with self._stdio(tty) as (ours, theirs):
            cgroup = cgroup or container.key
            self.zygote.exec(key, container.pid, process, cgroup, theirs, tty)
            return self._started(key, ours, tty)

    def run(self, *args: str, stdin: str = "", **process: Any) -> Result:
        """Run a command in a fresh container to its end."""
        return self.finish(self.start(self.spec(*args, **process)), stdin)

    def run_spec(self, spec: dict[str, Any]) -> Result:
        return self.finish(self.start(spec))

    def finish(self, running: Running, stdin: str = "") -> Result:
        """Feed stdin, read all output, await the exit, forget it and remove the cgroup."""
        os.write(running.stdin, stdin.encode())
        os.close(running.stdin)
        texts = [read_all(fd) for fd in (running.stdout, running.stderr)]
        exited = self.exited(running.key)
        self.zygote.forget(running.key)
        with contextlib.suppress(FileNotFoundError):
            (self.cgroups / running.key).rmdir()
        return Result(os.waitstatus_to_exitcode(exited.status), *texts)

    def exited(self, key: str) -> Exited:
        return self.wait(f"{key} to exit", lambda message: message.key == key, Exited)

    def wait(self, what: str, matches: Any, *kinds: type) -> Any:
        """The first message of these kinds that matches; others wait for their turn."""
        deadline = time.monotonic() + DEADLINE
        while True:
            for message in self.inbox:
                if isinstance(message, kinds) and matches(message):
                    self.inbox.remove(message)
                    return message
            poller = select.poll()
            poller.register(self.zygote.fileno(), select.POLLIN)
            if not poller.poll(max(0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"waited {DEADLINE} s for {what}")
            self.inbox += self.zygote.receive()

    def settle(self) -> None:
        """Until the mounts of all that have ended are gone, for who counts what is left."""
        eventually("no more than one cradle", lambda: len(self.cradles()) <= 1)

    def holds_no_more(self, before: list[str]) -> None:
        """Until PID 1 has closed all that it opened since: it reads of the last end in its turn."""
        eventually(
            "as many are open as before",
            lambda: len(held_open(self.process.pid)) <= len(before),
        )

    def cradles(self) -> list[int]:
        """The cradle, and the processes that mounts end with."""
        return [pid for pid in self.children() if _command_line(pid) in _CRADLES]

    def others(self) -> list[int]:
        """PID 1's children besides cradles, of which `settle` waits for all but one to end."""
        self.settle()
        return [pid for pid in self.children() if _command_line(pid) not in (*_CRADLES, None)]

    def children(self) -> list[int]:
        """PID 1's."""
        pid = self.process.pid
        return [int(it) for it in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kept(self) -> Kept:
        self.zygote.fetch()
        kept: Kept = self.wait("what is kept", lambda message: True, Kept)
        return kept

    def next_agent(self) -> dict[str, Any]:
        """Take over as the agent that PID 1 has just started; what it was started with."""
        self.zygote.close()
        self.inbox.clear()
        words, self.zygote = accept_agent(self.rendezvous)
        self.agent_pid = words["pid"]
        return words

    def new_key(self) -> str:
        self.count += 1
        return f"c{self.count}"

    def close(self) -> None:
        self.zygote.poweroff()
        self.process.wait(DEADLINE)
        os.kill(self.agent_pid, 9)
        self.zygote.close()
        self.rendezvous.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        remove_cgroups(self.cgroups)

    @contextlib.contextmanager
    def _stdio(self, tty: bool) -> Iterator[tuple[Any, Any]]:
        if tty:
            yield None, None
            return
        pipes = [os.pipe() for _ in range(3)]
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        try:
            yield (pipes[0][1], pipes[1][0], pipes[2][0]), theirs
        finally:
            for fd in theirs:
                os.close(fd)

    def _started(self, key: str, ours: Any, tty: bool) -> Running:
        answer = self.wait(f"{key} to start", lambda m: m.key == key, Started, SpawnFailed)
        if isinstance(answer, SpawnFailed):
            for fd in ours or ():
                os.close(fd)
            raise StartFailed(answer)
        if tty:
            assert answer.terminal is not None
            ours = tuple(os.dup(answer.terminal) for _ in range(3))
            os.close(answer.terminal)
        return Running(key, answer, *ours)


_CRADLES = (b"wherry-cradle\0", b"")
"""Command lines; a process that is not reaped yet has none."""


def _command_line(pid: int) -> bytes | None:
    """None: it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None


def open_machine(directory: Path, **environment: str) -> Machine:
    """Start a zygote with a busybox layer below `directory`; `environment`: see `pid1_process`."""
    directory.chmod(0o755)
    layers = directory / "l"
    make_busybox(layers / "busybox")
    (directory / "root").mkdir()
    cgroups = cgroup_root() / f"wherry-test-{os.getpid()}-{time.monotonic_ns()}"
    cgroups.mkdir()
    layout = Layout(str(layers), str(directory / "root"), str(cgroups))
    ours, theirs = socket.socketpair()
    script = Path(__file__).with_name("pid1_process.py")
    process = subprocess.Popen(
        [sys.executable, "-B", str(script), str(theirs.fileno()), json.dumps(asdict(layout))],
        pass_fds=[theirs.fileno()],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    ours.settimeout(DEADLINE)
    words, zygote = accept_agent(ours)
    return Machine(directory, cgroups, process, ours, zygote, words["pid"])


def accept_agent(rendezvous: socket.socket) -> tuple[dict[str, Any], Zygote]:
    words, fds, _, _ = socket.recv_fds(rendezvous, 4096, 1)
    return json.loads(words), Zygote(fds[0])


def make_busybox(rootfs: Path) -> None:
    """A root file system of Debian's static busybox."""
    busybox = needs.require("busybox-static", "busybox")
    for name in ("bin", "etc", "tmp", "root", "home/web"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "tmp").chmod(0o1777)
    shutil.copy(busybox, rootfs / "bin/busybox")
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in listing.stdout.split():
        if applet != "busybox":
            (rootfs / "bin" / applet).symlink_to("busybox")
    (rootfs / "etc/passwd").write_text(PASSWD)
    (rootfs / "etc/group").write_text(GROUP)


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted (it may have no controllers)."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise pytest.skip.Exception("no cgroup v2 is mounted")


def remove_cgroups(root: Path) -> None:
    for path in [*root.glob("*/"), root]:
        deadline = time.monotonic() + DEADLINE
        while path.exists():
            try:
                path.rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited for {path} to become empty") from error


def read_all(fd: int) -> str:
    """Everything until the end (of a pipe, or EIO: of a terminal); closes it."""
    chunks = []
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while True:
        if not poller.poll(DEADLINE * 1000):
            raise TimeoutError(f"waited {DEADLINE} s for output")
        try:
            chunk = os.read(fd, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            break
        chunks.append(chunk)
    os.close(fd)
    return b"".join(chunks).decode()


def read_until(fd: int, text: str) -> str:
    """Read until `text` has come."""
    seen = ""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while text not in seen:
        if not poller.poll(DEADLINE * 1000):
            raise TimeoutError(f"waited {DEADLINE} s for {text!r}, got {seen!r}")
        data = os.read(fd, 65536)
        if not data:
            raise AssertionError(f"the end came before {text!r}: {seen!r}")
        seen += data.decode()
    return seen
