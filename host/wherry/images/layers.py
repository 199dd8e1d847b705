"""Layers as EROFS files: fetched, unpacked, checked and kept, once per diffID and writer format.

A layer streams once: source -> digest -> blob file, and for big ones at the same time -> process
that decompresses, checks the diffID and writes the EROFS file. Both files get their names only when
both checks have passed. A layer counts as present when its row, its file and its size are there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry.errors import ContentMismatch, StorageError
from wherry.images.convert import (
    OWN_PROCESS_BYTES,
    ConvertedLayer,
    Converter,
    convert,
    read_chunks,
)
from wherry.images.erofs import FORMAT, LayerError, layer_uuid
from wherry.images.ingest import Ingest, move_into_place, remove_file
from wherry.images.layout import BlobFile, Layout
from wherry.images.media import Descriptor
from wherry.images.parallel import for_each
from wherry.images.partial import StalePartial, may_fetch_elsewhere, partial_blob, rest_of
from wherry.images.progress import Reporter
from wherry.images.registry import Stopped
from wherry.images.store_db import LayerRow, StoreDb
from wherry.osutil import private_directory

PARALLEL_LAYERS = 3
"""Layers in work at a time; Docker's max-concurrent-downloads."""

EROFS_OBJECT = "erofs:"
"""Prefix of a layer file among the database's objects, before the diffID."""


class Source(Protocol):
    """Where an image comes from: a registry or a directory."""

    def describe(self, descriptor: Descriptor) -> str:
        """The place and the blob, for messages."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes, exactly `descriptor.size` of them; errors as `RegistryClient.blob`."""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer ready to be plugged in.

    Attributes:
        diff_id: digest of the layer's uncompressed tar.
        path: its EROFS image.
        uuid: the image's UUID, in the usual text form.
    """

    diff_id: str
    path: Path
    uuid: str


class LayerStore:
    """The directory of EROFS files, and how they get there.

    Args:
        max_bytes: limit of a layer's uncompressed size.
        own_process_bytes: blobs from this size on are unpacked in a process of their own.
    """

    def __init__(
        self,
        root: Path,
        db: StoreDb,
        layout: Layout,
        ingest: Ingest,
        *,
        max_bytes: int,
        own_process_bytes: int = OWN_PROCESS_BYTES,
    ) -> None:
        self._root = private_directory(root)
        self._db = db
        self._layout = layout
        self._ingest = ingest
        self._max_bytes = max_bytes
        self._own_process_bytes = own_process_bytes

    def path(self, diff_id: str) -> Path:
        return self._root / f"{diff_id.removeprefix('sha256:')}-{FORMAT}.erofs"

    def find(self, diff_id: str) -> ConvertedLayer | None:
        """What is known of a layer whose file is there, else None."""
        known = self._db.layer(diff_id, FORMAT)
        try:
            whole = known is not None and self.path(diff_id).stat().st_size == known.size
        except FileNotFoundError:
            return None
        return known if whole else None

    def stored_bytes(self, diff_id: str) -> int:
        """What a layer's files take on disk, holes left out where the system tells."""
        return sum(disk_bytes(path.stat()) for path in self._files_of(diff_id))

    def remove(self, diff_id: str) -> bool:
        """Remove all files of a layer; False when one has to stay for now."""
        return not [path for path in self._files_of(diff_id) if not remove_file(path)]

    def diff_ids(self) -> Iterator[str]:
        """Of all layers that there are files of, in whichever format."""
        for path in self._root.glob("*-*.erofs"):
            yield f"sha256:{path.name.partition('-')[0]}"

    def _files_of(self, diff_id: str) -> Iterator[Path]:
        """One for each format in which somebody wrote it."""
        return self._root.glob(f"{diff_id.removeprefix('sha256:')}-*.erofs")

    def ensure(
        self,
        layers: Sequence[LayerRow],
        source: Source | None,
        reporter: Reporter,
        *,
        blobs: bool = False,
    ) -> None:
        """Make blobs and EROFS files of all these layers present; several at a time.

        Args:
            source: where missing blobs come from; None: they must be there.
            blobs: also those that were given up (`is_present`).

        Raises:
            The first error of any layer; the others are stopped. What was complete by then stays.
        """
        distinct = {layer.blob: layer for layer in layers}
        missing = [layer for layer in distinct.values() if not self.is_present(layer, blob=blobs)]
        for layer in distinct.values():
            reporter.layer(layer.blob, "Pulling fs layer" if layer in missing else "Already exists")
        if not missing:
            return
        missing.sort(key=lambda layer: -layer.blob_size)  # the longest work first
        for_each(
            missing,
            lambda layer: self._ensure(layer, source, reporter, blobs),
            at_once=PARALLEL_LAYERS,
            name="layer",
            reporter=reporter,
        )

    def is_present(self, layer: LayerRow, *, blob: bool = False) -> bool:
        """Whether the EROFS file is there, and the blob, which may have been given up on purpose
        (`image prune --blobs`) unless it is needed: `blob`."""
        return self.find(layer.diff_id) is not None and (
            self._layout.has(layer.blob, layer.blob_size)
            or (not blob and self._db.is_dropped(layer.blob))
        )

    def _ensure(
        self, layer: LayerRow, source: Source | None, reporter: Reporter, blobs: bool
    ) -> None:
        def waiting() -> None:
            reporter.layer(layer.blob, "Waiting")

        if reporter.stop.is_set():
            raise Stopped
        with self._ingest.working_on(layer.blob, stop=reporter.stop, on_wait=waiting):
            if self.is_present(layer, blob=blobs):  # another process was quicker
                reporter.layer(layer.blob, "Already exists")
                return
            if self._layout.has(layer.blob, layer.blob_size):
                self._unpack_stored(layer, reporter)
            elif source is None:
                raise StorageError(
                    f"blob {layer.blob} of a layer is missing", hint="pull the image again"
                )
            else:
                self._fetch(layer, source, reporter)
            reporter.layer(layer.blob, "Pull complete")

    def _unpack_stored(self, layer: LayerRow, reporter: Reporter) -> None:
        reporter.layer(layer.blob, "Extracting", 0, layer.blob_size)
        whose = f"blob {layer.blob}"
        blob = self._layout.blob_path(layer.blob)
        with self._ingest.new_file(layer.blob, "erofs") as target, blob.open("rb") as file:
            with ExitStack() as stack:
                converter = self._converter(layer, target, stack)
                if converter is not None:
                    for chunk in read_chunks(file):
                        _check_stop(reporter.stop)
                        converter.write(chunk)
                    done = _blamed(whose, converter.finish)
                else:
                    done = self._convert_here(whose, read_chunks(file), target, layer, reporter)
            self.keep(target, done)

    def _fetch(self, layer: LayerRow, source: Source, reporter: Reporter) -> None:
        while True:
            try:
                self._fetch_once(layer, source, reporter)
                return
            except StalePartial:
                continue  # the fault may be in what an earlier download left: that is gone now
            except ContentMismatch:
                if not may_fetch_elsewhere(source, Descriptor("", layer.blob, layer.blob_size)):
                    raise

    def _fetch_once(self, layer: LayerRow, source: Source, reporter: Reporter) -> None:
        descriptor = Descriptor("", layer.blob, layer.blob_size)
        whose = source.describe(descriptor)
        unpacked = self.find(layer.diff_id) is not None
        with (
            self._ingest.new_file(layer.blob, "erofs") as target,
            partial_blob(self._ingest, self._layout, layer.blob) as blob,
            ExitStack() as stack,
        ):
            converter = None if unpacked else self._converter(layer, target, stack)
            for chunk in blob.replay(layer.blob_size):
                _check_stop(reporter.stop)
                if converter is not None:
                    converter.write(chunk)
            chunks = rest_of(source, descriptor, blob.size, source.blob(descriptor))
            self._download(chunks, blob, converter, layer, reporter)
            blob.check(whose)
            reporter.layer(layer.blob, "Download complete")
            if not unpacked:
                reporter.layer(layer.blob, "Extracting", layer.blob_size, layer.blob_size)
                if converter is not None:
                    done = _blamed(whose, converter.finish)
                else:
                    with blob.path.open("rb") as file:
                        chunks = read_chunks(file)
                        done = self._convert_here(whose, chunks, target, layer, reporter)
            blob.commit()
            if not unpacked:
                self.keep(target, done)

    def _download(
        self,
        chunks: Iterator[bytes],
        blob: BlobFile,
        converter: Converter | None,
        layer: LayerRow,
        reporter: Reporter,
    ) -> None:
        reporter.layer(layer.blob, "Downloading", blob.size, layer.blob_size)
        for chunk in chunks:
            _check_stop(reporter.stop)
            blob.write(chunk)
            if converter is not None:
                converter.write(chunk)
            reporter.layer(layer.blob, "Downloading", blob.size, layer.blob_size)

    def _converter(self, layer: LayerRow, target: Path, stack: ExitStack) -> Converter | None:
        """A process for a big layer; None: unpack here, also when no process can be started."""
        if layer.blob_size < self._own_process_bytes:
            return None
        try:
            return stack.enter_context(Converter(target, layer.diff_id, self._max_bytes))
        except OSError:
            return None

    def _convert_here(
        self,
        whose: str,
        chunks: Iterator[bytes],
        target: Path,
        layer: LayerRow,
        reporter: Reporter,
    ) -> ConvertedLayer:
        watched = _stoppable(chunks, reporter.stop)
        return _blamed(whose, lambda: convert(watched, target, layer.diff_id, self._max_bytes))

    def keep(self, target: Path, done: ConvertedLayer) -> None:
        """Give a finished file its name, unless another blob of the same content was quicker: a
        file that may be plugged in is not replaced."""
        if self.find(done.diff_id) is None:
            move_into_place(target, self.path(done.diff_id))
            self._db.add_layer(done.diff_id, FORMAT, done)

    def replace(self, target: Path, done: ConvertedLayer) -> None:
        """Put a finished file in the place of a damaged one. A machine that has that open keeps it
        until it lets go of the layer."""
        move_into_place(target, self.path(done.diff_id))
        self._db.add_layer(done.diff_id, FORMAT, done)

    def files(self, diff_ids: Sequence[str]) -> list[LayerFile]:
        """The layers to stack, lowest first, for layers that are present.

        A diffID that stands twice keeps its topmost place only; what lies below a layer that hides
        everything (an opaque root) is left out: overlayfs would show it.
        """
        stack: list[str] = []
        for diff_id in reversed(diff_ids):
            if diff_id not in stack:
                stack.append(diff_id)
            known = self.find(diff_id)
            if known is not None and known.opaque_root:
                break
        return [LayerFile(it, self.path(it), str(layer_uuid(it))) for it in reversed(stack)]


def disk_bytes(status: os.stat_result) -> int:
    """What a file takes on disk: without its holes where the system counts blocks."""
    blocks: int | None = getattr(status, "st_blocks", None)  # Windows has none
    return status.st_size if blocks is None else blocks * 512


def _blamed(whose: str, action: Callable[[], ConvertedLayer]) -> ConvertedLayer:
    """Run a conversion; what is wrong with the layer is said with its place in front."""
    try:
        return action()
    except (LayerError, ContentMismatch) as error:
        raise ContentMismatch(f"{whose}: {error.message}", hint=error.hint) from error


def _stoppable(chunks: Iterator[bytes], stop: threading.Event) -> Iterator[bytes]:
    for chunk in chunks:
        _check_stop(stop)
        yield chunk


def _check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped
