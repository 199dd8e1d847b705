"""OCI runtimes behind one interface, for black-box tests: ours, crun and runc.

They run in a mount namespace of the test's own whose /sys/fs/cgroup is the cgroup v2 tree, as on a
host that has nothing else: the references refuse a host with both versions.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import needs
from cgroup_host import open_cgroup_host
from containers_harness import make_busybox
from oci_server import COMMAND_SECONDS, Ended, OciServer
from waiting import PATIENCE

GUEST_AGENT = Path(__file__).resolve().parents[2] / "guest-agent"
DEADLINE = 20.0 * PATIENCE
CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT",
]  # fmt: skip

SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
    },
    "root": {"path": "rootfs"},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
    ],
    "linux": {
        "namespaces": [
            {"type": kind} for kind in ("pid", "mount", "network", "uts", "ipc", "cgroup")
        ],
    },
}  # fmt: skip
"""What every runtime here can run on a host whose root lacks rights (CAP_SYS_RESOURCE)."""


@dataclass
class Host:
    """A mount namespace with a plain cgroup v2 host in it, and a busybox root file system."""

    directory: Path
    rootfs: Path
    keeper: subprocess.Popen[bytes]
    enter: list[str]
    cgroups: str
    server: OciServer

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace, to its end."""
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if "input" not in options:
            given["stdin"] = subprocess.DEVNULL
        return subprocess.run(
            [*self.enter, *command],
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            **(given | options),
        )

    def residue(self) -> dict[str, Any]:
        """What a container could leave behind, of what is ours."""
        tree = Path(f"/proc/{self.keeper.pid}/root/sys/fs/cgroup") / self.cgroups
        mounts = Path(f"/proc/{self.keeper.pid}/mounts").read_text()
        return {
            "mounts": mounts.splitlines(),
            "cgroups": sorted(path.name for path in tree.rglob("*") if path.is_dir()),
            "states": sorted(str(path) for path in self.directory.glob("state-*/*")),
            "processes": sorted(_processes_with(str(self.directory), self.server.pid)),
        }

    def tidy(self) -> None:
        """Remove the cgroups that a reference has left."""
        tree = Path(f"/proc/{self.keeper.pid}/root/sys/fs/cgroup") / self.cgroups
        for path in sorted((path for path in tree.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        if tree.exists():
            tree.rmdir()

    def close(self) -> None:
        self.server.close()
        self.tidy()
        self.keeper.terminate()
        self.keeper.wait(DEADLINE)


def open_host(directory: Path) -> Host:
    """Skips the test where there is no cgroup v2 at all."""
    directory.chmod(0o755)
    rootfs = directory / "rootfs"
    make_busybox(rootfs)
    for name in ("proc", "sys", "dev", "mnt", "srv", "run"):
        (rootfs / name).mkdir()
    keeper = open_cgroup_host()
    enter = ["nsenter", "--mount", f"--target={keeper.pid}", f"--wd={directory}"]
    server = OciServer(enter, directory / "commands", f"--root={directory}", GUEST_AGENT)
    cgroups = f"wherry-oci-test-{os.getpid()}-{time.monotonic_ns()}"
    return Host(directory, rootfs, keeper, enter, cgroups, server)


def _processes_with(text: str, server: int) -> Iterator[str]:
    """Pid and command line of processes of ours that name `text`: forks of the server too."""
    for path in Path("/proc").iterdir():  # what is globbed may not end meanwhile
        if not path.name.isdigit() or int(path.name) == server:
            continue
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"--root={text}" in line:
                yield f"{path.name} {line}"


@dataclass
class Runtime:
    """One OCI runtime's command line."""

    name: str
    argv: list[str]
    host: Host
    count: int = 0
    ids: list[str] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        return self.name == "wherry"

    @property
    def root(self) -> Path:
        return self.host.directory / f"state-{self.name}"

    def __call__(self, *arguments: str, **options: Any) -> Ended:
        """Run one of its commands, to its end.

        Options are `input`, files for `stdout` and `stderr`, and those of subprocess: with such a
        one it is a process of its own.
        """
        if self.ours and options.keys() <= {"input", "stdout", "stderr", "failing"}:
            return self.host.server.run([f"--root={self.root}", *arguments], **options)
        done = self.host.run(*self.command(*arguments), **options)
        return Ended(done.returncode, done.stdout or "", done.stderr or "")

    def command(self, *arguments: str) -> list[str]:
        """The command line, to be run by `host.run` or after `host.enter`."""
        return [*self.argv, f"--root={self.root}", *arguments]

    def ok(self, *arguments: str, **options: Any) -> str:
        """The output of a command that succeeds."""
        result = self(*arguments, **options)
        assert result.returncode == 0, (self.name, arguments, result)
        return str(result.stdout)

    def new_id(self) -> str:
        self.count += 1
        self.ids.append(f"{self.name}-{self.count}")
        return self.ids[-1]

    def spec(self, *args: str, **process: Any) -> dict[str, Any]:
        spec = copy.deepcopy(SPEC)
        spec["process"] |= {**({"args": list(args)} if args else {}), **process}
        spec["root"]["path"] = os.fspath(self.host.rootfs)
        return spec

    def bundle(self, spec: dict[str, Any] | str, id: str) -> str:
        """A bundle directory; the container gets a cgroup below the test's own."""
        directory = self.host.directory / f"bundle-{id}"
        directory.mkdir(exist_ok=True)
        if isinstance(spec, dict):
            path = f"/{self.host.cgroups}/{id}"
            spec.setdefault("linux", {}).setdefault("cgroupsPath", path)
            spec = json.dumps(spec)
        (directory / "config.json").write_text(spec)
        return os.fspath(directory)

    def run(self, spec: Any, *flags: str, **options: Any) -> Ended:
        """`run` in the foreground."""
        id = self.new_id()
        return self("run", "--bundle", self.bundle(spec, id), *flags, id, **options)

    def lines(self, spec: Any, *flags: str, **options: Any) -> list[str]:
        """What a container's command prints; it must succeed."""
        result = self.run(spec, *flags, **options)
        assert result.returncode == 0, (self.name, result)
        return str(result.stdout).splitlines()

    def create(self, spec: Any, *flags: str, **options: Any) -> str:
        """A created container's id."""
        id = self.new_id()
        self.detached("create", "--bundle", self.bundle(spec, id), *flags, id, **options)
        return id

    def detached(self, *arguments: str, **options: Any) -> None:
        """A command that leaves a process with its stdio behind: no pipe could see the end.

        The output goes nowhere, unless `stdout` says where to.
        """
        with tempfile.TemporaryFile("w+") as errors, Path(os.devnull).open("w") as nowhere:
            result = self(*arguments, **({"stdout": nowhere, "stderr": errors} | options))
            errors.seek(0)
            assert result.returncode == 0, (self.name, arguments, errors.read())

    def start(self, spec: Any, *flags: str, **options: Any) -> str:
        """A running container's id."""
        id = self.create(spec, *flags, **options)
        self.ok("start", id)
        return id

    def state(self, id: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.ok("state", id))
        return state

    def pid(self, id: str) -> int:
        return int(self.state(id)["pid"])

    def await_status(self, id: str, status: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.state(id)["status"] != status:
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {DEADLINE} s for {id} to be {status}")

    def clean(self) -> None:
        for id in self.ids:
            self("delete", "--force", id)
        self.ids.clear()


def find_runtime(name: str, host: Host) -> Runtime:
    """Installs the reference when it is missing; skips the test where that cannot be."""
    if name == "wherry":
        environment = ["env", f"PYTHONPATH={GUEST_AGENT}"]
        return Runtime(name, [*environment, sys.executable, "-B", "-m", "wherry_guest.oci"], host)
    return Runtime(name, [needs.require(name, name)], host)


def remove_bundles(host: Host) -> None:
    for path in host.directory.glob("bundle-*"):
        shutil.rmtree(path)


def change(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`spec` with the field at `path` (`process.cwd`) set; None removes it."""
    *parents, last = path.split(".")
    target = spec
    for name in parents:
        target = target.setdefault(name, {})
    if value is None:
        target.pop(last, None)
    else:
        target[last] = value
    return spec


def namespace(spec: dict[str, Any], kind: str, path: str | None = None) -> dict[str, Any]:
    """`spec` with a namespace of this kind, new or at `path`."""
    items = [item for item in spec["linux"]["namespaces"] if item["type"] != kind]
    spec["linux"]["namespaces"] = [*items, {"type": kind, **({"path": path} if path else {})}]
    return spec


def without_namespace(spec: dict[str, Any], kind: str) -> dict[str, Any]:
    items = [item for item in spec["linux"]["namespaces"] if item["type"] != kind]
    spec["linux"]["namespaces"] = items
    return spec
