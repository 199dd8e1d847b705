"""cp: files between a container and this computer."""

from __future__ import annotations

import base64
import json
import os
import posixpath
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from wherry.cli import files, packing, progress
from wherry.cli.app import App, pass_app
from wherry.cli.copyplan import CONTENTS, CopyPlan, Place, plan_copy, split_argument
from wherry.cli.output import write_all
from wherry.client import Client, EngineError
from wherry.errors import InvalidInput, NotFound
from wherry.osutil.longpaths import extended
from wherry.paths import container_path_hint
from wherry.units import human_size

STANDARD_STREAM = "-"
_HEADER = "x-docker-container-path-stat"

# Go's os.FileMode: io/fs, "FileMode".
_GO_DIRECTORY = 1 << 31
_GO_LINK = 1 << 27
_GO_ODD = (1 << 26) | (1 << 24)
"""A device, a socket."""


@dataclass(frozen=True, slots=True)
class _Status:
    """What the engine says of a path: `mode` is Go's, `target` a link's absolute target."""

    mode: int
    target: str

    @property
    def is_directory(self) -> bool:
        return bool(self.mode & _GO_DIRECTORY)

    @property
    def is_link(self) -> bool:
        return bool(self.mode & _GO_LINK)


@click.command("cp")
@click.option("-a", "--archive", "as_user", is_flag=True, help="Give files the container's user.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Follow links in SOURCE.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say how much was copied.")
@click.argument("source")
@click.argument("target")
@pass_app
def cp_command(
    app: App, as_user: bool, follow: bool, quiet: bool, source: str, target: str
) -> None:
    """Copy files: CONTAINER:PATH to PATH, or PATH to CONTAINER:PATH.

    `-` is a tar on standard input or output. SOURCE/. means what is in a directory.
    """
    container, path = split_argument(source)
    other, place = split_argument(target)
    if bool(container) == bool(other):
        words = "copying between containers is not supported" if container else "no container named"
        raise InvalidInput(words, hint="wherry cp CONTAINER:PATH PATH, or the other way round")
    if not path or not place:
        raise InvalidInput("source and target can not be empty")
    progress.ensure_machine(app.client, quiet=quiet)
    if container:
        size = _from_container(app.client, container, path, place, follow)
    else:
        size = _to_container(app.client, path, other, place, follow, as_user)
    if not quiet and sys.stderr.isatty() and STANDARD_STREAM not in (source, target):
        print(f"Successfully copied {human_size(size)} to {target}", file=sys.stderr)


def _from_container(client: Client, container: str, path: str, place: str, follow: bool) -> int:
    path = posixpath.join("/", path)
    status = _status(client, container, path)
    if status is None:
        words = f"Could not find the file {path} in container {container}"
        raise NotFound(words, hint=container_path_hint(path.lstrip("/")))
    name = ""
    if follow and status.is_link:
        name, path = posixpath.basename(posixpath.normpath(path)), status.target
        status = _status(client, container, path) or status
    source = Place(path, is_directory=status.is_directory, name=name)
    if place == STANDARD_STREAM:
        with files.target(None) as descriptor:
            for chunk in _archive(client, container, path):
                write_all(descriptor, chunk)
        return 0
    plan = plan_copy(source, _local_target(place))
    top = CONTENTS if source.is_contents else posixpath.basename(posixpath.normpath(path))
    directory = Path(plan.directory)
    return packing.unpack(_archive(client, container, path), directory, top, plan.name)


def _to_container(
    client: Client, source: str, container: str, path: str, follow: bool, as_user: bool
) -> int:
    target = _container_target(client, container, posixpath.join("/", path))
    if source == STANDARD_STREAM:
        if not target.is_directory:
            raise InvalidInput(f'destination "{container}:{path}" must be a directory')
        chunks = files.pieces(None, "a tar")
        plan, size = CopyPlan(target.path, CONTENTS), 0
    else:
        local, place = _local_source(source, follow)
        plan = plan_copy(place, target)
        chunks, size = packing.pack(local, plan.name), _size(local)
    query = {"path": plan.directory, "noOverwriteDirNonDir": True, "copyUIDGID": as_user}
    endpoint = f"/containers/{container}/archive"
    for _ in client.upload(endpoint, chunks, query=query, method="PUT"):
        pass  # it says nothing when all went well
    return size


def _archive(client: Client, container: str, path: str) -> Iterator[bytes]:
    return client.stream("GET", f"/containers/{container}/archive", query={"path": path})


def _status(client: Client, container: str, path: str) -> _Status | None:
    """None when there is no such path; raises EngineError when there is no such container."""
    endpoint, query = f"/containers/{container}/archive", {"path": path}
    try:
        reply = client.request("HEAD", endpoint, query=query)
    except EngineError as error:
        if error.http_status == 404:
            client.request("GET", f"/containers/{container}/json")  # says so, if that is missing
            return None
        for _ in _archive(client, container, path):  # the answer to HEAD has no words, this has
            break
        reply = client.request("HEAD", endpoint, query=query)  # what was wrong is over
    fields = json.loads(base64.b64decode(reply.headers[_HEADER]))
    return _Status(int(fields["mode"]), str(fields["linkTarget"]))


def _container_target(client: Client, container: str, path: str) -> Place:
    status = _status(client, container, path)
    if status is not None and status.is_link:
        path = status.target
        status = _status(client, container, path)
    if status is None:
        return Place(path, exists=False)
    if status.mode & _GO_ODD:
        words = f'destination "{container}:{path}" must be a directory or a regular file'
        raise InvalidInput(words)
    return Place(path, is_directory=status.is_directory)


def _local_target(text: str) -> Place:
    path = Path(text)
    absolute = path.absolute().as_posix()
    wants_directory = text.endswith(("/", os.sep, "/.", f"{os.sep}."))
    shown = f"{absolute}/" if wants_directory and not absolute.endswith("/") else absolute
    if path.exists():
        path = path.resolve()
        return Place(path.as_posix(), is_directory=path.is_dir())
    if path.is_symlink():
        raise InvalidInput(f"{text} is a link that leads nowhere")
    parent = Path(absolute).parent
    if not parent.is_dir():
        raise NotFound(f"no such directory: {parent}", hint=files.place_hint(text))
    return Place(shown, exists=False)


def _local_source(text: str, follow: bool) -> tuple[Path, Place]:
    path = Path(text)
    contents = text in (".", f".{os.sep}") or text.endswith(("/.", f"{os.sep}."))
    through = follow or contents or text.endswith(("/", os.sep))
    try:
        real = path.resolve(strict=True) if through else path.absolute()
        is_directory = real.is_dir() and not real.is_symlink()
        real.lstat()
    except OSError as error:
        words = f"{text}: {(error.strerror or 'error').lower()}"
        raise NotFound(words, hint=files.place_hint(text)) from error
    if text.endswith(("/", os.sep)) and not is_directory:
        raise InvalidInput(f"{text} is not a directory")
    name = path.absolute().name or real.name
    shown = f"{real.as_posix()}/." if contents else real.as_posix()
    return real, Place(shown, is_directory=is_directory, name="" if contents else name)


def _size(path: Path) -> int:
    """Bytes of all files, for the words at the end."""
    path = extended(path)
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())
