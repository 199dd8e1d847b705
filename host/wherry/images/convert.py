"""One layer's compressed blob to an EROFS file, here or in a process of its own.

Making an EROFS file is CPU-bound Python, so big layers get a process each: they then use several
cores, and run while the next bytes arrive. It is a fresh interpreter (never a fork: the engine has
threads) that reads the blob on its standard input and answers with one line of JSON. A small layer
is done in this process: an interpreter's start would cost more. Nothing here renames or commits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, cast

import wherry
from wherry.errors import ContentMismatch, StorageError, WherryError
from wherry.images.compress import DiffReader
from wherry.images.erofs import layer_uuid, write_erofs
from wherry.images.tar import LayerError
from wherry.osutil import sync_descriptor
from wherry.osutil.sparse import mark_sparse

OWN_PROCESS_BYTES = 4 << 20
"""Blobs from this size on get a process: it costs about 60 ms, such a blob takes over 100 ms."""

READ_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """What became of a layer.

    Attributes:
        size: bytes of the EROFS file.
        data_bytes: contents of the layer's files, which is what Docker shows as a layer's size.
        entries: names in the layer.
        tar_bytes: the layer's uncompressed size.
        opaque_root: it hides all layers below.
        diff_id: the digest of the uncompressed layer.
    """

    size: int
    data_bytes: int
    entries: int
    tar_bytes: int
    opaque_root: bool
    diff_id: str


def convert(
    chunks: Iterator[bytes], target: Path, diff_id: str | None, max_bytes: int
) -> ConvertedLayer:
    """Write the blob that `chunks` yields as an EROFS file at `target`, synced.

    Args:
        diff_id: what it must be; None: it is new, and what it turns out to be is told.

    Raises:
        LayerError: the layer is damaged, hostile or too large.
        ContentMismatch: its content is not `diff_id`. OSError of the target passes through.
    """
    reader = DiffReader(chunks, max_bytes)
    with target.open("wb+") as out:
        mark_sparse(out.fileno())

        def uuid() -> bytes:
            return layer_uuid(reader.diff_id).bytes

        info = write_erofs(cast(BinaryIO, reader), out, uuid=uuid)
        if diff_id is not None and reader.diff_id != diff_id:
            raise ContentMismatch(f"the layer unpacks to {reader.diff_id}, not to {diff_id}")
        out.flush()
        sync_descriptor(out.fileno())
    return ConvertedLayer(
        size=info.size,
        data_bytes=info.data_bytes,
        entries=info.entries,
        tar_bytes=reader.count,
        opaque_root=info.opaque_root,
        diff_id=reader.diff_id,
    )


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """A file's contents, chunk by chunk."""
    while chunk := file.read(READ_BYTES):
        yield chunk


class Converter:
    """A conversion in a process of its own: `write` the blob, then `finish`. A context manager.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(self, target: Path, diff_id: str | None, max_bytes: int) -> None:
        source_root = os.fspath(Path(wherry.__file__).parent.parent)
        order = json.dumps({"target": os.fspath(target), "diff_id": diff_id, "max": max_bytes})
        self._broken = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, source_root, order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=_creation_flags(),
        )

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    @property
    def gave_up(self) -> bool:
        """Whether the process takes no more."""
        return self._broken

    def write(self, chunk: bytes) -> None:
        """Hand on the next bytes. A process that has given up takes no more; `finish` says why."""
        assert self._process.stdin is not None
        if self._broken:
            return
        try:
            self._process.stdin.write(chunk)
        except OSError:  # Windows says EINVAL for a broken pipe
            self._broken = True

    def finish(self) -> ConvertedLayer:
        """Wait for the result; errors as `convert`'s."""
        answer, _ = self._process.communicate()
        try:
            fields = json.loads(answer)
        except ValueError:
            status = self._process.returncode
            raise StorageError(
                f"the process that unpacks a layer died (status {status})",
                hint="is there enough memory?",
            ) from None
        if "error" not in fields:
            return ConvertedLayer(**fields)
        kind, text, hint, number = (fields[key] for key in ("error", "text", "hint", "errno"))
        if kind == "OSError":
            raise OSError(number, text, fields["file"])
        classes: dict[str, type[WherryError]] = {
            "LayerError": LayerError,
            "ContentMismatch": ContentMismatch,
        }
        raise classes.get(kind, StorageError)(text, hint=hint)


def _creation_flags() -> int:
    if sys.platform == "win32":
        return subprocess.CREATE_NO_WINDOW
    return 0


_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from wherry.images.convert import main; main(sys.argv[2])"
)


def main(order: str) -> None:
    """The process's whole life; `order` is JSON from `Converter`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; our input then ends
    fields = json.loads(order)
    target = Path(fields["target"])
    try:
        chunks = read_chunks(sys.stdin.buffer)
        answer = asdict(convert(chunks, target, fields["diff_id"], fields["max"]))
    except BaseException as error:  # noqa: BLE001 everything is told to the parent, which raises it
        target.unlink(missing_ok=True)  # the parent may be gone
        answer = _told(error)
    sys.stdout.write(json.dumps(answer))


def _told(error: BaseException) -> dict[str, object]:
    known = {"LayerError", "ContentMismatch"}
    kind = type(error).__name__
    answer: dict[str, object] = {"error": kind, "text": str(error), "hint": None, "errno": 0}
    if isinstance(error, OSError):
        answer |= {"error": "OSError", "errno": error.errno or 0, "text": error.strerror or kind}
        answer["file"] = os.fspath(error.filename) if error.filename else None
    elif isinstance(error, WherryError):
        answer["hint"] = error.hint
    elif kind not in known:
        answer["text"] = f"unpacking a layer failed: {kind}: {error}"
    return answer
