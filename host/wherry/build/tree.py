"""A root file system as it will stand in a layer: entries by path, contents in one file on disk.

Nothing is ever extracted: no root, no case-insensitive disk, no link of an archive can get in the
way. Layers are applied by OCI's rules (image-spec, layer.md). The tar that comes out is sorted and
holds no time, owner or order but the entries' own, so the same tree gives the same bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from wherry.errors import InvalidInput
from wherry.images import tar_entry as kinds
from wherry.images.tar import TarReader
from wherry_guest import tarformat

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
COPY_BYTES = 256 << 10
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        kind: a tar type flag; HARD_LINK only in a tar: here names of one file share contents.
        link: a symbolic link's target.
        offset, size: where the contents are, for a regular file.
        inode: the same for all names of one file; 0 where there is one name only.
    """

    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    offset: int = 0
    size: int = 0
    inode: int = 0


class FileTree:
    """A context manager; `directory` is where the file with the contents is."""

    def __init__(self, directory: Path) -> None:
        spool = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed by __exit__
        self._spool = cast(BinaryIO, spool)
        self._end = 0
        self._inodes = 0
        self._entries: dict[bytes, Entry] = {}

    def __enter__(self) -> FileTree:
        return self

    def __exit__(self, *exc: object) -> None:
        self._spool.close()

    # Paths are relative, without a leading slash: b"usr/bin/env"; the root itself is b"".

    def __contains__(self, path: bytes) -> bool:
        return path in self._entries

    def get(self, path: bytes) -> Entry | None:
        return self._entries.get(path)

    def paths(self) -> list[bytes]:
        """All paths, sorted: a directory stands before what is in it."""
        return sorted(self._entries, key=lambda path: path.split(b"/"))

    def put(self, path: bytes, entry: Entry) -> None:
        """Place an entry; what is not a directory replaces a whole tree."""
        old = self._entries.get(path)
        if old is not None and old.kind == kinds.DIRECTORY and entry.kind != kinds.DIRECTORY:
            self.remove(path)
        self._entries[path] = entry

    def put_file(self, path: bytes, entry: Entry, data: bytes) -> None:
        """Place a regular file with these contents."""
        self.put(path, replace(entry, offset=self._append(data), size=len(data)))

    def put_link(self, path: bytes, target: bytes) -> None:
        """Give the file at `target` another name.

        Raises:
            InvalidInput: there is no such file.
        """
        found = self._entries.get(target)
        if found is None or found.kind == kinds.DIRECTORY:
            raise InvalidInput(f"{_shown(path)} is a link to {_shown(target)}, which is no file")
        if not found.inode:
            self._inodes += 1
            found = replace(found, inode=self._inodes)
            self._entries[target] = found
        self.put(path, found)

    def directories(self, path: bytes, mtime: int = 0) -> None:
        """Make the directories above `path` that are missing."""
        parent = path.rpartition(b"/")[0]
        if parent and parent not in self._entries:
            self.directories(parent, mtime)
            self._entries[parent] = Entry(kinds.DIRECTORY, 0o755, mtime=mtime)

    def remove(self, path: bytes) -> None:
        """Remove an entry and all below it; nothing when there is none."""
        self._entries.pop(path, None)
        self.clear(path)

    def clear(self, path: bytes) -> None:
        """Remove all below a directory."""
        prefix = path + b"/" if path else b""
        for other in [it for it in self._entries if it.startswith(prefix) and it != path]:
            del self._entries[other]

    def update(self, path: bytes, **changes: object) -> None:
        """Change fields of an entry that is there."""
        self._entries[path] = replace(self._entries[path], **changes)  # type: ignore[arg-type]  # the fields' own types

    def read(self, path: bytes) -> bytes:
        """A regular file's contents."""
        entry = self._entries[path]
        self._spool.seek(entry.offset)
        return self._spool.read(entry.size)

    def resolved(self, path: bytes) -> bytes:
        """`path` with symbolic links among its parents followed, within this tree.

        Raises:
            InvalidInput: the links lead in a circle.
        """
        for _ in range(_MAX_LINKS):
            parts = path.split(b"/")
            for count in range(1, len(parts)):
                entry = self._entries.get(b"/".join(parts[:count]))
                if entry is not None and entry.kind == kinds.SYMLINK:
                    base = [] if entry.link.startswith(b"/") else parts[: count - 1]
                    path = _joined([*base, *entry.link.split(b"/"), *parts[count:]])
                    break
            else:
                return path
        raise InvalidInput(f"too many symbolic links on the way to {_shown(path)}")

    # Layers.

    def apply(self, layer: BinaryIO) -> list[bytes]:
        """Apply an uncompressed layer's tar on top; the paths that it set.

        Raises:
            InvalidInput: it is damaged or hostile.
        """
        reader = TarReader(layer)
        seen: list[bytes] = []
        while (member := reader.next()) is not None:
            path = _joined(member.name.split(b"/"))
            directory, slash, name = path.rpartition(b"/")
            if name == OPAQUE:
                self._clear_older(directory, seen)
            elif name.startswith(WHITEOUT):
                self.remove(directory + slash + name.removeprefix(WHITEOUT))
            elif path:
                self._apply_one(path, member, reader)
                seen.append(path)
        reader.drain()
        return seen

    def _clear_older(self, directory: bytes, seen: list[bytes]) -> None:
        """What a layer brings itself stays, wherever the marker stands."""
        ours = {path: self._entries[path] for path in seen if path in self._entries}
        self.clear(directory)
        self._entries.update(ours)

    def _apply_one(self, path: bytes, member: kinds.TarEntry, reader: TarReader) -> None:
        if member.kind == kinds.HARD_LINK:
            self.put_link(path, _joined(member.link.split(b"/")))
            return
        entry = Entry(
            kind=member.kind,
            mode=member.mode,
            uid=member.uid,
            gid=member.gid,
            mtime=member.mtime,
            link=member.link,
            device=(member.major, member.minor),
            xattrs=tuple(sorted(member.xattrs or ())),
        )
        if member.kind == kinds.REGULAR:
            offset, size = self._end, 0
            for chunk in _contents(member, reader):
                size += len(chunk)
                self._append(chunk)
            entry = replace(entry, offset=offset, size=size)
        self.put(path, entry)

    # The way out.

    def tar(self) -> Iterator[bytes]:
        """The tree as an uncompressed layer's tar, in pieces."""
        first: dict[int, bytes] = {}
        buffer = bytearray()
        for path in self.paths():
            entry = self._entries[path]
            known = first.setdefault(entry.inode, path) if entry.inode else path
            linked = known != path
            buffer += _header(path, entry, known if linked else None)
            if entry.kind == kinds.REGULAR and not linked:
                yield from self._copied(entry, buffer)
            if len(buffer) >= COPY_BYTES:
                yield bytes(buffer)
                buffer.clear()
        yield bytes(buffer) + tarformat.END

    def _copied(self, entry: Entry, buffer: bytearray) -> Iterator[bytes]:
        self._spool.seek(entry.offset)
        left = entry.size
        while left:
            chunk = self._spool.read(min(left, COPY_BYTES))
            left -= len(chunk)
            buffer += chunk
            if len(buffer) >= COPY_BYTES:
                yield bytes(buffer)
                buffer.clear()
        buffer += tarformat.padding(entry.size)

    def _append(self, data: bytes) -> int:
        offset = self._end
        self._spool.seek(offset)
        self._spool.write(data)
        self._end += len(data)
        return offset


def _header(path: bytes, entry: Entry, link: bytes | None) -> bytes:
    is_directory = entry.kind == kinds.DIRECTORY
    return tarformat.header(
        path + b"/" if is_directory else path,
        entry.kind if link is None else tarformat.HARD_LINK,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size if link is None else 0,
        entry.mtime,
        entry.link if link is None else link,
        entry.device,
        entry.xattrs if link is None else (),
    )


def _contents(member: kinds.TarEntry, reader: TarReader) -> Iterator[bytes]:
    """A member's bytes, the holes of a sparse file as zeros."""
    at = 0
    for offset, length in member.segments or [(0, member.size)]:
        yield from _zeros(offset - at)
        for start in range(0, length, COPY_BYTES):
            yield reader.read_exactly(min(COPY_BYTES, length - start))
        at = offset + length
    yield from _zeros(member.size - at)


def _zeros(count: int) -> Iterator[bytes]:
    for start in range(0, count, COPY_BYTES):
        yield bytes(min(COPY_BYTES, count - start))


def _joined(parts: list[bytes]) -> bytes:
    """A path from its parts; `..` cannot climb above the root."""
    done: list[bytes] = []
    for part in parts:
        if part == b"..":
            del done[-1:]
        elif part not in (b"", b"."):
            done.append(part)
    return b"/".join(done)


def _shown(path: bytes) -> str:
    return kinds.shown(path)
