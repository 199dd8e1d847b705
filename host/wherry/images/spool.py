"""An image archive on its way in: a tar stream, unpacked to files, hashed as they are written.

Rules: nothing of an archive becomes a path on disk (files are numbered); names that lead out of it,
devices, and more entries or bytes than the limits allow end the reading with one error; the stream
is read once, forward, and nothing is believed of the order in which things come.
"""

from __future__ import annotations

import hashlib
import posixpath
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InvalidInput, StorageError
from wherry.images.compress import decompress
from wherry.images.pieces import Pieces
from wherry.images.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, TarEntry, TarReader, shown
from wherry.osutil import sync_descriptor

WHAT = "the archive"
DOCUMENT_BYTES = 4 << 20
"""The most that a JSON document may have; more than any registry takes for a manifest."""
_COPY_BYTES = 1 << 20
_RESERVE_BYTES = 256 << 20
"""What an archive leaves free on the disk."""
_LINKS_MAX = 10


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may ask of us: entries, and bytes of all its files together."""

    entries: int = 20_000
    total_bytes: int = 64 << 30


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """A file of an archive; `digest` is `sha256:…` of its contents."""

    path: Path
    size: int
    digest: str

    def chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(_COPY_BYTES):
                yield chunk


class Archive:
    """What an archive holds: files by their normalised name (`blobs/sha256/…`), links followed."""

    def __init__(self, files: dict[str, SpooledFile], links: dict[str, str]) -> None:
        self._files = files
        self._links = links
        self._by_digest = {file.digest: file for file in files.values()}

    def by_digest(self, digest: str) -> SpooledFile | None:
        """A file with this content, whatever its name."""
        return self._by_digest.get(digest)

    def file(self, name: str) -> SpooledFile | None:
        name = posixpath.normpath(name)
        for _ in range(_LINKS_MAX):
            if name not in self._links:
                return self._files.get(name)
            name = self._links[name]
        raise InvalidInput(f"{WHAT}: {name[:200]!r} is a loop of links")

    def blob(self, digest: str) -> SpooledFile | None:
        """A blob of an image layout. Raises InvalidInput when its content is another."""
        found = self.file(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        if found is not None and found.digest != digest:
            raise InvalidInput(f"{WHAT}: blob {digest} has the content of {found.digest}")
        return found

    def document(self, name: str) -> bytes | None:
        """A small file's contents."""
        found = self.file(name)
        if found is None:
            return None
        if found.size > DOCUMENT_BYTES:
            raise InvalidInput(f"{WHAT}: {name[:200]} has {found.size} bytes, too many for JSON")
        return found.path.read_bytes()


def read_archive(
    chunks: Iterator[bytes], directory: Path, limits: ArchiveLimits | None = None
) -> Archive:
    """Unpack a tar, plain or compressed with gzip or zstd, into `directory`.

    Raises:
        InvalidInput: not such an archive, damaged, hostile, or beyond `limits`.
        StorageError: it needs more than the free space. OSError of the files passes through.
    """
    reader = _Reader(directory, limits or ArchiveLimits())
    pieces = decompress(chunks, WHAT)
    tar = TarReader(Pieces(pieces), what=WHAT)
    while (entry := tar.next()) is not None:
        reader.take(entry, tar)
    for _ in pieces:  # to its end: the archive may have been cut behind the last entry
        pass
    return Archive(reader.files, reader.links)


class _Reader:
    def __init__(self, directory: Path, limits: ArchiveLimits) -> None:
        self.files: dict[str, SpooledFile] = {}
        self.links: dict[str, str] = {}
        self._directory = directory
        self._limits = limits
        self._entries = 0
        self._bytes = 0
        self._room = shutil.disk_usage(directory).free - _RESERVE_BYTES

    def take(self, entry: TarEntry, tar: TarReader) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise InvalidInput(f"{WHAT} has more than {self._limits.entries} entries")
        name = _inside(entry.name, entry.name)
        if entry.kind == DIRECTORY:
            return
        self.links.pop(name, None)
        self.files.pop(name, None)  # the last of several with one name counts
        if entry.kind == REGULAR and entry.segments is None:
            self.files[name] = self._copy(entry, tar)
        elif entry.kind == SYMLINK:
            target = posixpath.join(posixpath.dirname(name).encode(), entry.link)
            self.links[name] = _inside(target, entry.name)
        elif entry.kind == HARD_LINK:
            self.links[name] = _inside(entry.link, entry.name)
        else:
            raise InvalidInput(f"{WHAT}: {shown(entry.name)} is no file that an image archive has")

    def _copy(self, entry: TarEntry, tar: TarReader) -> SpooledFile:
        self._charge(entry.size, entry)
        path = self._directory / str(self._entries)
        content = hashlib.sha256()
        with path.open("xb") as out:
            while data := tar.read(_COPY_BYTES):
                content.update(data)
                out.write(data)
            out.flush()
            sync_descriptor(out.fileno())
        return SpooledFile(path, entry.size, f"sha256:{content.hexdigest()}")

    def _charge(self, size: int, entry: TarEntry) -> None:
        self._bytes += size
        if self._bytes > self._limits.total_bytes:
            raise InvalidInput(
                f"{WHAT} unpacks to more than {self._limits.total_bytes >> 20} MiB "
                f"(at {shown(entry.name)})",
                hint="if it is known to be good, raise `image_limit_gib` in config.yml",
            )
        if self._bytes > self._room:
            raise StorageError(
                f"{WHAT} needs more than the {max(0, self._room) >> 20} MiB that are free",
                hint="free some space, or set WHERRY_HOME to a directory on another disk",
            )


def _inside(path: bytes, name: bytes) -> str:
    """A path relative to the archive's root, normalised; that of the entry `name` or its target."""
    if b"\0" in path or not path:
        raise InvalidInput(f"{WHAT}: {shown(name)} has an impossible name or target")
    normal = posixpath.normpath(path)
    if normal == b".." or normal.startswith((b"/", b"../")):
        raise InvalidInput(f"{WHAT}: {shown(name)} leads out of it")
    try:
        return normal.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{WHAT}: {shown(name)} has a name that is not UTF-8") from None
