"""Layer tars made of other tars: a root file system cut into layers, moved below a directory, and
small layers that no other run has seen."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath


def cut(source: Path, parts: int, directory: Path) -> list[Path]:
    """The contents of `source` as `parts` layers of about the same size, lowest first.

    Each layer names the directories above its files, as layers of real images do; a hard link goes
    to the layer of its target.
    """
    with tarfile.open(source) as tar:
        members = tar.getmembers()
        directories = {_name(it): it for it in members if it.isdir()}
        share = sum(it.size for it in members) / parts
        layer_of: dict[str, int] = {}
        filled = 0.0
        for member in members:
            if member.islnk():
                layer_of[_name(member)] = layer_of[_path(member.linkname)]
                continue
            layer_of[_name(member)] = min(parts - 1, int(filled / share))
            filled += member.size
        targets = [directory / f"layer{index:02}.tar" for index in range(parts)]
        for index, target in enumerate(targets):
            chosen = [it for it in members if layer_of[_name(it)] == index]
            _write(target, tar, _with_parents(chosen, directories))
    return targets


def below(source: Path, prefix: str, files: Mapping[str, bytes], target: Path) -> Path:
    """The contents of `source` below the directory `prefix`, and further files (full names)."""
    with tarfile.open(source) as tar, tarfile.open(target, "w") as out:
        for member in tar:
            member.name = f"{prefix}/{_name(member)}"
            if member.islnk():
                member.linkname = f"{prefix}/{_path(member.linkname)}"
            out.addfile(member, tar.extractfile(member) if member.isreg() else None)
        for name, content in files.items():
            _add(out, name, content)
    return target


def extended(source: Path, name: str, target: Path) -> Path:
    """`source` and one more file, which makes it a layer of its own."""
    with tarfile.open(source) as tar, tarfile.open(target, "w") as out:
        for member in tar:
            out.addfile(member, tar.extractfile(member) if member.isreg() else None)
        _add(out, name, name.encode())
    return target


def small(name: str, target: Path) -> Path:
    """A layer with one small file."""
    with tarfile.open(target, "w") as out:
        _add(out, name, name.encode())
    return target


def layer_of_layout(layout: Path) -> Path:
    """The one, uncompressed layer of the one image in an OCI layout."""

    def blob(descriptor: Mapping[str, str]) -> Path:
        return layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")

    [manifest] = json.loads((layout / "index.json").read_bytes())["manifests"]
    [layer] = json.loads(blob(manifest).read_bytes())["layers"]
    return blob(layer)


def _with_parents(
    members: Iterable[tarfile.TarInfo], directories: Mapping[str, tarfile.TarInfo]
) -> Iterator[tarfile.TarInfo]:
    seen: set[str] = set()
    for member in members:
        for parent in reversed(PurePosixPath(_name(member)).parents):
            name = str(parent)
            if name not in seen and name in directories:
                seen.add(name)
                yield directories[name]
        if _name(member) not in seen:
            seen.add(_name(member))
            yield member


def _write(target: Path, tar: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> None:
    with tarfile.open(target, "w") as out:
        for member in members:
            out.addfile(member, tar.extractfile(member) if member.isreg() else None)


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o755
    out.addfile(info, io.BytesIO(content))


def _name(member: tarfile.TarInfo) -> str:
    return _path(member.name)


def _path(name: str) -> str:
    return str(PurePosixPath(name))
