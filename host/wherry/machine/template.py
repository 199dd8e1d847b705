"""Templates on disk: saved machines that a start restores. Keys, files, good and bad, collection.

    templates/KEY/          ram, state: the machine; console: what it printed when it booted;
                            template.json: what it is; used: when last; users/: the processes
                            that map it
    templates/KEY.draft/    one that is being made
    templates/lock          held while something is looked up, added or removed
    templates/bake.lock     held by whoever makes one

Rules: a template is a cache. What is damaged, foreign or of no use goes, and costs a cold boot,
never a failure; nothing that a running machine maps is removed or changed. Blocking.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wherry.errors import WherryError
from wherry.machine.argv import VmSpec, qemu_argv
from wherry.machine.endpoints import CHARDEVS
from wherry.machine.find import Qemu
from wherry.machine.memoryfile import memory_digest
from wherry.osutil import (
    ProcessIdentity,
    atomic_write,
    fsync_directory,
    identify,
    is_alive,
    lock_file,
    private_directory,
)

FORMAT = 1
"""Part of every key: another number when what is saved, or how it is used, has changed."""

KEPT = 4
LIMIT = 2 << 30
"""Templates, and bytes on disk, that stay; the least recently used go."""

BAD_FOR_NS = 7 * 24 * 3600 * 10**9
"""After a week a key that failed is tried again: the cause may have been the host's bad day."""

_KEY = re.compile(r"[0-9a-f]{24}")
_CPUINFO = Path("/proc/cpuinfo")


class TemplateDamaged(WherryError):
    """The files are not what was saved."""


@dataclass(frozen=True, slots=True)
class Template:
    key: str
    directory: Path

    @property
    def ram(self) -> Path:
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def console(self) -> Path:
        return self.directory / "console"

    def boot_messages(self) -> bytes:
        """What its guest printed until it was saved; nothing when that is not known."""
        try:
            return self.console.read_bytes()
        except OSError:
            return b""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a template was made of, where it must still be for the key to occur again.

    Attributes:
        qemu: the binary's path, size and mtime.
        image: the VM image's directory.
    """

    qemu: tuple[str, int, int]
    image: str

    @classmethod
    def of(cls, qemu: Qemu, image: Path) -> Origin:
        return cls(_file_facts(qemu.binary), os.fspath(image.resolve()))

    def exists(self) -> bool:
        try:
            return _file_facts(Path(self.qemu[0])) == self.qemu and Path(self.image).is_dir()
        except OSError:
            return False


def template_key(spec: VmSpec, image_key: str) -> str:
    """Everything that a saved state depends on: kernel, initrd (its name is a hash of agent and
    byte code), QEMU binary, the machine's shape, and with hardware virtualization the host.

    Raises:
        OSError: the binary is not there.
    """
    shape = replace(
        spec,
        name="",
        data_disk=None,
        memory_file=None,
        incoming=False,
        kernel=Path(spec.kernel.name),
        initrd=Path(spec.initrd.name),
    )
    facts = [
        FORMAT,
        image_key,
        [file.stat().st_size for file in (spec.kernel, spec.initrd) if file.exists()],
        _file_facts(spec.qemu.binary),
        spec.qemu.version,
        qemu_argv(shape, dict.fromkeys(CHARDEVS, "")),
        [] if spec.accel == "tcg" else host_facts(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


class Templates:
    """The templates of one home."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def known(self, key: str) -> bool:
        """Whether there is one, or it is known to be of no use."""
        return self._manifest(key) is not None

    def claim(self, key: str) -> Template | None:
        """The template, if it is good; from now on in use by this process.

        Raises:
            TemplateDamaged: it was; it is gone now.
            StorageError, OSError: from the file system.
        """
        if not self._directory.is_dir():
            return None
        with self._locked():
            manifest = self._manifest(key)
            if manifest is None or manifest.get("status") != "good":
                return None
            template = self._template(key)
            trouble = _trouble(template, manifest)
            if trouble is not None:
                self._drop(key)
                raise TemplateDamaged(trouble)
            (template.directory / "used").touch(0o600)
            ourselves = identify(os.getpid())
            if ourselves is not None:
                _write_user(template, ourselves)
        return template

    def pass_on(self, template: Template, user: ProcessIdentity) -> None:
        """This process's claim goes to `user`, a QEMU that has opened the files."""
        _write_user(template, user)
        self.release(template)

    def release(self, template: Template) -> None:
        """Give up this process's claim."""
        _user_file(template, os.getpid()).unlink(missing_ok=True)

    def add(self, key: str, files: Path, ram_digest: str, origin: Origin) -> Template:
        """Make the directory `files` (ram and state, synced) the template of `key`.

        Raises:
            OSError: from the file system.
        """
        draft = Template(key, files)
        manifest = {
            "format": FORMAT,
            "status": "good",
            "made_ns": time.time_ns(),
            "ram": {"digest": ram_digest, "stat": _stat_facts(draft.ram)},
            "state": {"digest": _digest(draft.state)},
            "origin": asdict(origin),
        }
        (files / "users").mkdir(mode=0o700)
        (files / "used").touch(0o600)
        _write_manifest(files, manifest)
        with self._locked():
            self._drop(key)
            template = self._template(key)
            files.rename(template.directory)
            fsync_directory(self._directory)
        return template

    def mark_bad(self, key: str, reason: str, origin: Origin) -> None:
        """`key` is not tried again for a while. Raises OSError."""
        manifest = {
            "format": FORMAT,
            "status": "bad",
            "made_ns": time.time_ns(),
            "reason": reason,
            "origin": asdict(origin),
        }
        with self._locked():
            self._drop(key)
            directory = private_directory(self._template(key).directory)
            _write_manifest(directory, manifest)

    def collect(self, *, kept: int = KEPT, limit: int = LIMIT) -> list[str]:
        """Remove what is of no more use; returns the keys that went. Raises OSError."""
        with self._locked():
            gone = [key for key in self._keys() if self._is_useless(key)]
            size = 0
            rest = [key for key in self._keys() if key not in gone and self._is_good(key)]
            for place, key in enumerate(sorted(rest, key=self._last_use, reverse=True)):
                size += self._size(key)
                if place >= kept or size > limit:
                    gone.append(key)
            gone = [key for key in gone if not _in_use(self._template(key))]
            for key in gone:
                self._drop(key)
        return gone

    def all(self) -> list[dict[str, Any]]:
        """{key, status, reason, made_ns, bytes, in_use} of each."""
        found = []
        for key in self._keys():
            manifest = self._manifest(key) or {"status": "damaged"}
            found.append(
                {
                    "key": key,
                    "status": manifest.get("status"),
                    "reason": manifest.get("reason"),
                    "made_ns": manifest.get("made_ns"),
                    "bytes": self._size(key),
                    "in_use": _in_use(self._template(key)),
                }
            )
        return found

    def _template(self, key: str) -> Template:
        return Template(key, self._directory / key)

    def _keys(self) -> list[str]:
        try:
            entries = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        return sorted(it.name for it in entries if _KEY.fullmatch(it.name))

    def _manifest(self, key: str) -> dict[str, Any] | None:
        """None: there is none, or none that this version can use."""
        try:
            data = json.loads((self._template(key).directory / "template.json").read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) and data.get("format") == FORMAT else None

    def _is_good(self, key: str) -> bool:
        return (self._manifest(key) or {}).get("status") == "good"

    def _is_useless(self, key: str) -> bool:
        """Whether its key cannot occur any more, or its mark is old."""
        manifest = self._manifest(key)
        if manifest is None:
            return True
        try:
            values = manifest["origin"]
            origin = Origin(tuple(values["qemu"]), str(values["image"]))
            too_old = manifest["status"] == "bad" and (
                time.time_ns() - int(manifest["made_ns"]) > BAD_FOR_NS
            )
        except (KeyError, TypeError, ValueError):
            return True
        return too_old or not origin.exists()

    def _last_use(self, key: str) -> int:
        try:
            return (self._template(key).directory / "used").stat().st_mtime_ns
        except OSError:
            return 0

    def _size(self, key: str) -> int:
        """Bytes on disk: holes do not count."""
        template = self._template(key)
        return sum(_allocated(file) for file in (template.ram, template.state))

    def _drop(self, key: str) -> None:
        """Out of the way at once, then removed."""
        directory = self._template(key).directory
        if not directory.exists():
            return
        aside = directory.with_name(f"{key}.gone-{os.getpid()}")
        directory.rename(aside)
        shutil.rmtree(aside)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        private_directory(self._directory)
        with lock_file(self._directory / "lock"):
            yield


def _trouble(template: Template, manifest: dict[str, Any]) -> str | None:
    """What is wrong with the files; None: nothing.

    The memory is only read when its file was touched since: size, times and inode say so.
    """
    try:
        if _digest(template.state) != manifest["state"]["digest"]:
            return "its device state is damaged"
        ram = manifest["ram"]
        facts = _stat_facts(template.ram)
        if facts == ram["stat"]:
            return None
        if facts[0] != ram["stat"][0] or memory_digest(template.ram) != ram["digest"]:
            return "its memory is damaged"
        ram["stat"] = facts  # copied or restored from a backup: as good as before
        _write_manifest(template.directory, manifest)
    except (OSError, KeyError, TypeError, IndexError) as error:
        return f"its files are incomplete ({error})"
    return None


def _write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    atomic_write(directory / "template.json", json.dumps(manifest, indent=1).encode() + b"\n")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _stat_facts(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _file_facts(file: Path) -> tuple[str, int, int]:
    real = file.resolve()
    status = real.stat()
    return os.fspath(real), status.st_size, status.st_mtime_ns


def host_facts() -> Sequence[str]:
    """The processor that `-cpu host` shows the guest, and the kernel that runs it."""
    host = platform.uname()
    try:
        text = _CPUINFO.read_text(encoding="ascii", errors="replace").partition("\n\n")[0]
    except OSError:
        text = ""
    names = ("model name", "microcode", "flags", "Features", "CPU part")
    lines = [line for line in text.splitlines() if line.startswith(names)]
    return [host.node, host.system, host.release, host.machine, *lines]


def _allocated(file: Path) -> int:
    try:
        status = file.stat()
    except OSError:
        return 0
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else int(blocks) * 512


def _user_file(template: Template, pid: int) -> Path:
    return template.directory / "users" / str(pid)


def _write_user(template: Template, user: ProcessIdentity) -> None:
    _user_file(template, user.pid).write_text(json.dumps(asdict(user)), encoding="ascii")


def _in_use(template: Template) -> bool:
    """Whether a process that has claimed it lives; the marks of the others go."""
    alive = False
    for file in sorted((template.directory / "users").glob("*")):
        try:
            user = ProcessIdentity(**json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError):
            continue
        if is_alive(user):
            alive = True
        else:
            file.unlink(missing_ok=True)
    return alive
