"""One archive with what somebody needs who helps: versions, findings, timelines, ends of logs.

Everything in it goes through `redact`. Never in it: registry logins, containers' configurations and
output, image contents, databases.
"""

from __future__ import annotations

import getpass
import gzip
import io
import json
import os
import platform
import sqlite3
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry import __version__
from wherry.doctor.finding import Context, Finding
from wherry.doctor.processes import ask_engine
from wherry.doctor.redact import Person, redact, redact_environment
from wherry.errors import StorageError
from wherry.paths import MachinePaths
from wherry.units import human_size

LOG_BYTES = 256 * 1024
"""Of each log its last bytes: some thousand lines."""

_MOST_LISTED = 2000


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive; `about` says what it is, for the table of contents."""

    name: str
    about: str
    text: str


def collect(context: Context, findings: Sequence[Finding], person: Person) -> Iterator[Member]:
    """The files of the archive, redacted."""
    for member in _members(context, findings, person):
        yield Member(member.name, member.about, redact(member.text, person))


def write_bundle(file: Path, members: Sequence[Member]) -> int:
    """Write the archive, readable by nobody else; its size in bytes.

    Raises:
        StorageError: it exists, or cannot be written.
    """
    contents = "".join(f"{it.name:<32} {it.about}\n" for it in members)
    head = Member("CONTENTS", "", "What is in this archive. Secrets and names were removed.\n\n")
    everything = [Member(head.name, "", head.text + contents), *members]
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            _write_tar(raw, everything)
        return file.stat().st_size
    except FileExistsError:
        raise StorageError(f"{file} exists", hint="give another name") from None
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error


def _write_tar(raw: io.BufferedWriter, members: Sequence[Member]) -> None:
    now = int(time.time())
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=now) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in members:
            data = member.text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"wherry-support/{member.name}")
            entry.size, entry.mtime, entry.mode = len(data), now, 0o600
            tar.addfile(entry, io.BytesIO(data))


def this_person() -> Person:
    """Whose computer this is."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a process without an account
        user = ""
    try:
        home = os.fspath(Path.home())
    except RuntimeError:
        home = ""
    homes = tuple(dict.fromkeys(it for it in (home, os.path.realpath(home) if home else "") if it))
    return Person(user=user, homes=homes, host=platform.node())


def _members(context: Context, findings: Sequence[Finding], person: Person) -> Iterator[Member]:
    home = context.home
    yield Member("versions.json", "versions of Wherry, Python and the system", _json(_versions()))
    doctor = [finding.as_json() for finding in findings]
    yield Member("doctor.json", "what wherry doctor found", _json(doctor))
    environment = redact_environment(context.environ, person)
    yield Member("environment.json", "variables that Wherry looks at", _json(environment))
    if home.settings_file.exists():
        yield Member("config.yml", "the settings", _end_of(home.settings_file))
    yield Member("files.txt", "names and sizes below the state directory", _listing(home.root))
    for name in context.machines:
        yield from _machine(f"machines/{name}", home.machine(name))


def _machine(place: str, paths: MachinePaths) -> Iterator[Member]:
    for file, about in (
        (paths.config, "the machine's configuration"),
        (paths.qemu_record, "the running QEMU: command line, accelerator"),
        (paths.engine_record, "the engine: process and version"),
        (paths.timeline, "the machine's last starts"),
        (paths.engine_log, "the end of the engine's log"),
        (paths.qemu_log, "what QEMU printed"),
        (paths.console_log, "the end of the guest's console"),
    ):
        if file.exists():
            yield Member(f"{place}/{file.name}", about, _end_of(file))
    inspect = ask_engine(paths, "/wherry/v1/machine")
    if inspect is not None:
        yield Member(f"{place}/inspect.json", "wherry machine inspect", inspect)


def _versions() -> dict[str, str]:
    return {
        "wherry": __version__,
        "python": sys.version,
        "executable": sys.executable,
        "system": platform.platform(),
        "machine": platform.machine(),
        "sqlite": sqlite3.sqlite_version,
    }


def _listing(root: Path) -> str:
    """Blobs and packages are counted, not named."""
    lines = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        sizes = [_size(Path(directory, name)) for name in files]
        lines.append(f"{directory}/  {len(files)} files, {human_size(sum(sizes))}")
        if len(files) <= 50:
            lines += [f"  {size:>14} {name}" for name, size in zip(files, sizes, strict=True)]
        if len(lines) > _MOST_LISTED:
            return "\n".join([*lines, "…", ""])
    return "\n".join([*lines, ""])


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # it went meanwhile


def _end_of(file: Path) -> str:
    try:
        with file.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(max(0, size - LOG_BYTES))
            data = source.read()
    except OSError as error:
        return f"(not read: {error.strerror})\n"
    if size > LOG_BYTES:
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", "replace")


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
