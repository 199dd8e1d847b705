"""Every directory, file and socket name on disk, once. Pure: nothing here touches the disk.

Sockets have a root of their own, since a Unix socket's path must be under 104 bytes (macOS's
`sun_path`, the smallest): it is the machine's directory when that is short enough, else a
directory in the system's temporary folder named after the user and a hash of the state directory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InvalidInput

SOCKET_PATH_LIMIT = 103
"""Bytes that a Unix socket path may have: macOS's sun_path[104] less the NUL."""

_LONGEST_SOCKET_NAME = "rescue.sock"


_ROOM = 160
"""Characters that files below the state directory need: a snapshot's, of the longest names."""

_WINDOWS_PATH_LIMIT = 259
"""Microsoft, Maximum Path Length Limitation: MAX_PATH less the NUL."""

DIRECTORY_NAME = r"(?!(?i:con|prn|aux|nul|(?:com|lpt)[0-9])(?:\.|$))(?!.*\.$)"
"""Begins the pattern of names that become directories: no device of Windows', no dot at the end,
on any system, so that a name that is good here is good everywhere."""

_MACHINE_NAME = re.compile(DIRECTORY_NAME + r"[a-z0-9][a-z0-9_.-]{0,30}")


def is_machine_name(name: str) -> bool:
    return _MACHINE_NAME.fullmatch(name) is not None


def check_machine_name(name: str) -> str:
    """Raises InvalidInput when `name` cannot be a machine's."""
    if not is_machine_name(name):
        raise InvalidInput(
            f"{name!r} cannot be a machine's name",
            hint="up to 31 of a-z, 0-9, '_', '.' and '-', beginning with a letter or digit, not"
            " ending with a dot, and no name that Windows keeps for itself (con, nul, aux)",
        )
    return name


def new_machine_directory(root: Path) -> Path:
    """Where the directory `root` of a machine is made, until it gets its name."""
    return root.with_name(f".{root.name}.new")


def machine_of_directory(directory: Path) -> str | None:
    """The name of the machine whose directory that is, or becomes; None: of none."""
    name = directory.name.removeprefix(".").removesuffix(".new")
    candidates = (directory.name, name if directory.name == f".{name}.new" else "")
    return next((found for found in candidates if is_machine_name(found)), None)


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """All state: `WHERRY_HOME`, else `~/.wherry`, on Windows `%LOCALAPPDATA%\\Wherry`."""
    configured = environ.get("WHERRY_HOME")
    if configured and (other := foreign_path(configured, sys.platform)) is not None:
        raise InvalidInput(
            f"WHERRY_HOME is {configured!r}, {other}",
            hint=f"set it to a directory of this computer, as in {example_path(sys.platform)}",
        )
    if sys.platform == "win32":
        local = environ.get("LOCALAPPDATA")
        usual = Path(local) if local else Path.home() / "AppData" / "Local"
        return _roomy(Path(configured).expanduser().absolute() if configured else usual / "Wherry")
    return Path(configured).expanduser().absolute() if configured else Path.home() / ".wherry"


def foreign_path(text: str, platform: str) -> str | None:
    """What is wrong with a path of another kind of system, in words; None: it may be this one's."""
    if platform == "win32":
        return "a Linux path" if re.match(r"/(?!/)", text) else None
    return "a Windows path" if re.match(r"[A-Za-z]:[\\/]|\\\\", text) else None


def example_path(platform: str) -> str:
    """What an absolute path of a system looks like, for hints."""
    return {"win32": r"C:\Users\me\wherry", "darwin": "/Users/me/wherry"}.get(
        platform, "/home/me/wherry"
    )


def container_path_hint(path: str) -> str | None:
    """What to do about a path in a container that is none, when it is one of Windows."""
    if foreign_path(path, "linux") is None:
        return None
    return "paths in containers are Linux paths, as in /app"


def _roomy(home: Path) -> Path:
    """A directory of Windows below which no file's path is too long to be opened."""
    if len(os.fspath(home)) + _ROOM <= _WINDOWS_PATH_LIMIT:
        return home
    from wherry.osutil.longpaths import extended  # here: hardly anybody needs it

    return extended(home)


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """The files of one machine.

    Attributes:
        pipe: how the names of its pipes begin, on Windows, which has them instead of sockets.
    """

    root: Path
    sockets: Path
    pipe: str | None = None

    @property
    def config(self) -> Path:
        return self.root / "machine.json"

    @property
    def state_db(self) -> Path:
        return self.root / "state.db"

    @property
    def machine_id(self) -> Path:
        """What tells the guest from its twins (machine-id(5)); a copy must not have it."""
        return self.root / "machine-id"

    @property
    def data_disk(self) -> Path:
        return self.root / "data.qcow2"

    @property
    def snapshots(self) -> Path:
        """Saved states of the whole machine, a directory each."""
        return self.root / "snapshots"

    @property
    def rewind(self) -> Path:
        """The files of a snapshot that the next engine puts in place of the machine's own."""
        return self.root / "rewind"

    @property
    def suspended(self) -> Path:
        """Says which memory goes with the data disk as it is."""
        return self.root / "suspended.json"

    @property
    def suspended_memory(self) -> Path:
        """The memory of a machine that was idle."""
        return self.root / "suspended"

    @property
    def resumed(self) -> Path:
        """Kernel and initial RAM disk of the command line of a machine that was taken up."""
        return self.root / "resumed"

    @property
    def qemu_record(self) -> Path:
        """Pid, start time and command line of the running QEMU."""
        return self.root / "qemu.json"

    @property
    def keeper_plan(self) -> Path:
        """What the process that holds QEMU's connections was told, where there is one."""
        return self.root / "keeper.json"

    @property
    def qemu_log(self) -> Path:
        return self.root / "qemu.log"

    @property
    def console_log(self) -> Path:
        return self.root / "console.log"

    @property
    def engine_log(self) -> Path:
        return self.root / "engine.log"

    @property
    def engine_lock(self) -> Path:
        return self.root / "engine.lock"

    @property
    def engine_record(self) -> Path:
        """Who the engine is; its modification time is the engine's heartbeat."""
        return self.root / "engine.json"

    @property
    def ssh_key(self) -> Path:
        """Logs in to this machine, and to no other."""
        return self.root / "ssh" / "id_ed25519"

    @property
    def ssh_known_hosts(self) -> Path:
        """The key that the machine's SSH server has since the last boot, for OpenSSH."""
        return self.root / "ssh" / "known_hosts"

    @property
    def vsock_record(self) -> Path:
        """The machine's vsock: its number and, where there is one, the daemon."""
        return self.root / "vsock.json"

    @property
    def vsock_socket(self) -> Path:
        """The vsock daemon's, for connections to the guest."""
        return self.sockets / "vsock.sock"

    @property
    def vhost_socket(self) -> Path:
        """The vsock daemon's, for QEMU."""
        return self.sockets / "vhost.sock"

    @property
    def timeline(self) -> Path:
        """How the last starts went."""
        return self.root / "timeline.json"

    @property
    def start_lock(self) -> Path:
        """Held by a client while it starts an engine, so that two clients start one."""
        return self.root / "start.lock"

    @property
    def api_socket(self) -> Path:
        """The Docker Engine API: a socket, or a pipe."""
        return Path(self.pipe) if self.pipe else self.sockets / "api.sock"

    def chardev(self, name: str) -> Path:
        """Where QEMU's chardev `name` (qmp, rescue, agent or serial) answers."""
        return Path(f"{self.pipe}-{name}") if self.pipe else self.sockets / f"{name}.sock"

    @property
    def qmp_socket(self) -> Path:
        return self.chardev("qmp")

    @property
    def rescue_socket(self) -> Path:
        """A second QMP socket, for people and `doctor`."""
        return self.chardev("rescue")

    @property
    def agent_socket(self) -> Path:
        return self.chardev("agent")

    @property
    def serial_socket(self) -> Path:
        """The guest's serial console."""
        return self.chardev("serial")


@dataclass(frozen=True, slots=True)
class Home:
    """The state directory of one user."""

    root: Path

    @classmethod
    def default(cls, environ: Mapping[str, str] = os.environ) -> Home:
        return cls(default_home(environ))

    @property
    def settings_file(self) -> Path:
        return self.root / "config.yml"

    @property
    def store(self) -> Path:
        """An OCI image layout: `oci-layout`, `index.json`, `blobs/`."""
        return self.root / "store"

    @property
    def store_db(self) -> Path:
        return self.root / "store.db"

    @property
    def layers(self) -> Path:
        """EROFS images, one per (diffID, writer format)."""
        return self.root / "layers"

    @property
    def manifests(self) -> Path:
        """Manifest lists that are not pushed yet."""
        return self.root / "manifests"

    @property
    def ingest(self) -> Path:
        """Downloads that are not complete; on the store's file system, so that rename is atomic."""
        return self.root / "ingest"

    @property
    def packages(self) -> Path:
        """Downloaded distribution packages, by SHA-256."""
        return self.root / "cache" / "packages"

    @property
    def emulators(self) -> Path:
        """Layers with the emulators for programs of other architectures."""
        return self.root / "cache" / "emulators"

    @property
    def ssh_servers(self) -> Path:
        """What machines are given when somebody wants to log in."""
        return self.root / "cache" / "ssh"

    @property
    def vm_images(self) -> Path:
        """Built VM images, a directory each."""
        return self.root / "cache" / "vm"

    @property
    def vm_locks(self) -> Path:
        """Locks that this user refreshed; they win over the ones that Wherry ships."""
        return self.root / "locks"

    @property
    def image_locks(self) -> Path:
        """Which packages bootstrapped images consist of, a file for each set of names."""
        return self.vm_locks / "images"

    @property
    def probes(self) -> Path:
        """What was found out about this host's accelerators, per QEMU binary."""
        return self.root / "cache" / "probes.json"

    @property
    def templates(self) -> Path:
        """Saved machines that a start restores, a directory each."""
        return self.root / "cache" / "templates"

    def template_draft(self, key: str) -> MachinePaths:
        """The files of the machine that becomes the template `key`."""
        return _machine_paths(self.templates / f"{key}.draft")

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    def machine(self, name: str) -> MachinePaths:
        """Raises InvalidInput when `name` cannot be a machine's: it could leave the directory."""
        check_machine_name(name)
        return _machine_paths(self.machines / name)


def _machine_paths(root: Path) -> MachinePaths:
    pipe = pipe_name(root) if sys.platform == "win32" else None
    return MachinePaths(root=root, sockets=_socket_root(root), pipe=pipe)


def pipe_name(machine_root: Path) -> str:
    """The pipe of a machine's API: `\\\\.\\pipe\\wherry-NAME-TAG`.

    All users of a host share the names of pipes, so the directory is in it, as a hash.
    """
    import hashlib  # see below

    place = os.path.normcase(machine_root.parent).removeprefix("\\\\?\\")
    tag = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return rf"\\.\pipe\wherry-{machine_root.name}-{tag}"


def _socket_root(machine_root: Path) -> Path:
    longest = os.fsencode(machine_root / _LONGEST_SOCKET_NAME)
    if sys.platform == "win32" or len(longest) <= SOCKET_PATH_LIMIT:
        return machine_root
    import hashlib  # here: it is slow to import, and short paths do not need it

    tag = hashlib.sha256(os.fsencode(machine_root)).hexdigest()[:12]
    return Path("/tmp", f"wherry-{os.getuid()}-{tag}")
