"""What `reset` and `uninstall` remove: listed first, with sizes; then stopped, then removed.

A symbolic link is removed, never what it leads to. What nobody of us made is left alone. Machines
are stopped by their engines; an engine that does not answer is ended by its record, a QEMU too.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wherry.cli.app import App
from wherry.client import Client
from wherry.errors import WherryError
from wherry.hung import Guard
from wherry.osutil import disk_hint, reserve
from wherry.paths import Home, MachinePaths, is_machine_name
from wherry.units import human_size

RESET_HOOKS = ("wherry.cli.service:services",)
"""As UNINSTALL_HOOKS, of what makes no sense without its machine: `reset` removes that, too."""

UNINSTALL_HOOKS = ("wherry.cli.uninstalling:docker_contexts",)
"""`module:function` of what was set up outside of the state directory: each takes the App and gives
the Items that `uninstall` removes."""

_ENGINE_END_SECONDS = 15.0
_QEMU_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is removed.

    Attributes:
        what: in words. paths: files and directories, which may be missing.
        remove: instead of removing the paths.
        first: removed before the machines are stopped: it would start them again.
    """

    what: str
    paths: tuple[Path, ...] = ()
    remove: Callable[[], None] | None = field(default=None, compare=False)
    first: bool = False

    @property
    def bytes(self) -> int:
        """What the paths take on disk; holes and what links lead to do not count."""
        return sum(_taken(path) for path in self.paths)

    @property
    def exists(self) -> bool:
        return self.remove is not None or any(os.path.lexists(path) for path in self.paths)

    def describe(self) -> str:
        links = [path for path in self.paths if path.is_symlink()]
        where = ", ".join(str(path) for path in self.paths[:1])
        text = f"{self.what:<44} {human_size(self.bytes):>8}  {where}"
        return f"{text} (only the link)" if links else text


def items_of_reset(home: Home, *, everything: bool) -> list[Item]:
    """Machines, images and caches; with `everything` also the settings."""
    found = list(_machines(home))
    store = home.store_db
    databases = [store.with_name(store.name + suffix) for suffix in ("", "-wal", "-shm")]
    databases.append(home.root / reserve.NAME)
    databases += sorted(home.root.glob(f"{store.name}.damaged*"))
    images = (home.store, home.layers, home.ingest, home.manifests, *databases)
    found.append(Item("images and their layers", images))
    cache = home.packages.parent
    found.append(Item("packages, VM images and other caches", (cache,)))
    if everything:
        found.append(Item("locks of packages", (home.vm_locks,)))
        found.append(Item("settings", (home.settings_file,)))
    return [item for item in found if item.exists]


def hooked_items(app: App, hooks: tuple[str, ...] = UNINSTALL_HOOKS) -> list[Item]:
    """What the hooks know of."""
    found: list[Item] = []
    for place in hooks:
        module, _, name = place.partition(":")
        found += getattr(importlib.import_module(module), name)(app)
    return found


def stop_machines(app: App, say: Callable[[str], None]) -> None:
    """Stop every machine and end its engine, in order when they answer, by force when not."""
    for name in _machine_names(app.home):
        client = app.client_of(name)
        try:
            _stop(client)
        except WherryError as error:
            say(f"machine {name}: {error.message}: it is ended")
        finally:
            client.close()
        _end_recorded(client.paths)


def remove(item: Item) -> None:
    """Raises WherryError when something cannot be removed."""
    if item.remove is not None:
        item.remove()
        return
    for path in item.paths:
        try:
            _remove(path)
        except OSError as error:
            raise WherryError(
                f"cannot remove {error.filename or path}: {error.strerror}",
                hint=disk_hint(error)
                or "a program that still uses it may be the reason; run the command again",
            ) from error


def left_over(home: Home) -> list[str]:
    """Names of what is still in the state directory."""
    try:
        return sorted(entry.name for entry in home.root.iterdir())
    except FileNotFoundError:
        return []


def _machines(home: Home) -> Iterator[Item]:
    names = _machine_names(home)
    for name in names:
        paths = home.machine(name)
        directories = tuple(dict.fromkeys((paths.root, paths.sockets)))
        yield Item(f"machine {name}, its containers and volumes", directories)
    if home.machines.is_dir() and not home.machines.is_symlink():
        others = [entry for entry in sorted(home.machines.iterdir()) if entry.name not in names]
        if others:
            yield Item("what is left of other machines", tuple(others))


def _machine_names(home: Home) -> list[str]:
    try:
        entries = sorted(home.machines.iterdir())
    except FileNotFoundError:
        return []
    return [it.name for it in entries if is_machine_name(it.name) and it.is_dir()]


def _stop(client: Client) -> None:
    from wherry.osutil import lock_file

    guard = Guard(client.paths, client.machine)
    if guard.suspicious():
        guard.settle()
    if not client.running():
        return
    client.request("POST", "/wherry/v1/machine/stop")
    client.request("POST", "/wherry/v1/engine/stop")
    client.close()
    with lock_file(client.paths.engine_lock, timeout=_ENGINE_END_SECONDS):
        pass  # an engine holds its lock until the last moment


def _end_recorded(paths: MachinePaths) -> None:
    """The engine first: it would start another QEMU."""
    from wherry.osutil import kill, terminate, wait_gone
    from wherry.osutil.pulse import read_holder

    if (holder := read_holder(paths.engine_record)) is not None:
        kill(holder.identity)
        wait_gone(holder.identity, _ENGINE_END_SECONDS)
    if (qemu := _recorded_qemu(paths)) is not None:
        terminate(qemu, grace=_QEMU_GRACE_SECONDS)


def _recorded_qemu(paths: MachinePaths) -> Any:
    """The process of `wherry.machine.record`, None when there is none."""
    from wherry.osutil import ProcessIdentity

    try:
        identity = json.loads(paths.qemu_record.read_bytes())["identity"]
        return ProcessIdentity(int(identity["pid"]), str(identity["start_time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _taken(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    own: int = getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    if not stat.S_ISDIR(status.st_mode):
        return own
    return own + sum(_taken(entry) for entry in path.iterdir())
