"""Manifest lists that are being put together: `manifest create`, `annotate`, `push`.

A list is a file of JSON below the state directory until it is pushed, as with Docker's `manifest`
command. It names manifests that are in registries; a push copies those that are in another
repository (blobs are mounted where the registry can do that) and puts the index last.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import Conflict, InvalidInput, NotFound, StorageError
from wherry.images.clients import Auth, Registries
from wherry.images.documents import distinct
from wherry.images.media import (
    CONFIG_TYPES,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
    digest_of,
)
from wherry.images.reference import Reference, parse_reference, parse_tagged
from wherry.images.registry import RegistryClient
from wherry.images.remote import config_platform, fetch_document
from wherry.images.upload import RegistryWriter
from wherry.osutil import atomic_write, private_directory

AuthOf = Callable[[str], Auth]
"""What is known of a registry's login, by its domain."""

_PLATFORM_FIELDS = ("architecture", "os", "variant", "os.version", "os.features")


class Entry(msgspec.Struct):
    """A manifest in a list: where it is (full name), and how the index names it."""

    source: str
    descriptor: dict[str, Any]


class _Stored(msgspec.Struct):
    name: str
    entries: list[Entry]


class ManifestLists:
    """The lists in `directory`. All names are as people write them."""

    def __init__(self, directory: Path, registries: Registries) -> None:
        self._directory = directory
        self._registries = registries

    def create(self, name: str, sources: Sequence[str], auth: AuthOf, *, amend: bool) -> str:
        """Begin a list, or add to it; its full name. An index among the sources adds its entries.

        Raises:
            Conflict: there is such a list, and `amend` is not given. ImageNotFound and other errors
            of the registries.
        """
        target = str(parse_tagged(name))
        stored = self._load(target)
        if stored is not None and not amend:
            raise Conflict(
                f"there is a manifest list {name} already",
                hint="add to it with --amend, or remove it: wherry manifest rm",
            )
        if not sources:
            raise InvalidInput("a manifest list needs at least one manifest")
        known = stored.entries if stored else []
        entries = {(it.source, it.descriptor["digest"]): it for it in known}
        for source in sources:
            reference = parse_reference(source).with_default_tag()
            entries = {key: it for key, it in entries.items() if key[0] != str(reference)}
            for entry in self._entries_of(reference, auth):
                entries[entry.source, entry.descriptor["digest"]] = entry
        self._save(_Stored(target, list(entries.values())))
        return target

    def annotate(self, name: str, source: str, platform: dict[str, Any]) -> None:
        """Change the platform of a list's manifest: `architecture`, `os`, `variant`, `os.version`
        (texts) and `os.features` (a list); what is empty stays.

        Raises:
            NotFound: no such list, or the manifest is not in it. InvalidInput.
        """
        unknown = set(platform) - set(_PLATFORM_FIELDS)
        if unknown:
            raise InvalidInput(f"{sorted(unknown)[0]} is no field of a platform")
        stored = self._required(name)
        entry = _entry_of(stored, source, name)
        changes = {key: value for key, value in platform.items() if value}
        entry.descriptor["platform"] = entry.descriptor.get("platform", {}) | changes
        self._save(stored)

    def index(self, name: str) -> dict[str, Any] | None:
        """The index that a push would put; None when there is no such list."""
        stored = self._load(str(parse_tagged(name)))
        return _index(stored) if stored else None

    def sources(self, name: str) -> list[str]:
        """The full names of a list's manifests. Raises NotFound."""
        return [entry.source for entry in self._required(name).entries]

    def entry(self, name: str, source: str) -> Entry:
        """One manifest of a list. Raises NotFound."""
        return _entry_of(self._required(name), source, name)

    def push(self, name: str, auth: AuthOf, *, purge: bool) -> str:
        """Copy what is missing, put the index; its digest.

        Raises:
            NotFound: no such list. RegistryError, Unauthorized.
        """
        stored = self._required(name)
        target = parse_reference(stored.name)
        client = self._registries.client(target.domain, auth(target.domain))
        writer = RegistryWriter(client)
        for entry in stored.entries:
            self._copy(entry, target, client, writer, auth)
        fields = _index(stored)
        body = msgspec.json.format(msgspec.json.encode(fields), indent=3)
        writer.put_manifest(target.path, target.tag or "", fields["mediaType"], body)
        if purge:
            self.remove(name)
        return digest_of(body)

    def remove(self, name: str) -> None:
        """Raises NotFound."""
        self._path(self._required(name).name).unlink(missing_ok=True)

    def _entries_of(self, reference: Reference, auth: AuthOf) -> Iterator[Entry]:
        client = self._registries.client(reference.domain, auth(reference.domain))
        document = fetch_document(client, reference)
        if document.is_index:
            for child in msgspec.json.decode(document.body)["manifests"]:
                yield Entry(str(reference), child)
            return
        descriptor = document.descriptor()
        config = document.blobs[0] if document.blobs else None
        if config is not None and config.media_type in CONFIG_TYPES:
            descriptor["platform"] = config_platform(client, reference.path, config)
        elif document.artifact_type:
            descriptor["artifactType"] = document.artifact_type
        yield Entry(str(reference), descriptor)

    def _copy(
        self,
        entry: Entry,
        target: Reference,
        client: RegistryClient,
        writer: RegistryWriter,
        auth: AuthOf,
    ) -> None:
        """See to it that a manifest is in the list's repository."""
        source = parse_reference(entry.source)
        if source.name == target.name:
            return
        same_registry = source.domain == target.domain
        reader = client
        if not same_registry:
            reader = self._registries.client(source.domain, auth(source.domain))
        digest = entry.descriptor["digest"]
        document = fetch_document(reader, source.with_digest(digest))
        for blob in distinct(document.blobs):
            writer.put_blob(
                target.path,
                blob,
                _content(reader, source.path, blob),
                [source.path] if same_registry else [],
            )
        writer.put_manifest(target.path, digest, document.media_type, document.body)

    def _required(self, name: str) -> _Stored:
        stored = self._load(str(parse_tagged(name)))
        if stored is None:
            raise NotFound(
                f"there is no manifest list {name}", hint="begin one: wherry manifest create"
            )
        return stored

    def _load(self, name: str) -> _Stored | None:
        path = self._path(name)
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Stored)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise StorageError(f"{path} is damaged: {error}", hint="remove it") from error

    def _save(self, stored: _Stored) -> None:
        private_directory(self._directory)
        atomic_write(self._path(stored.name), msgspec.json.encode(stored))

    def _path(self, name: str) -> Path:
        return self._directory / f"{urllib.parse.quote(name, safe='')}.json"


def _index(stored: _Stored) -> dict[str, Any]:
    descriptors = [entry.descriptor for entry in stored.entries]
    docker = all(it["mediaType"] == DOCKER_MANIFEST for it in descriptors)
    kind = DOCKER_INDEX if docker else OCI_INDEX
    return {"schemaVersion": 2, "mediaType": kind, "manifests": descriptors}


def _entry_of(stored: _Stored, source: str, name: str) -> Entry:
    wanted = parse_reference(source).with_default_tag()
    found = [it for it in stored.entries if it.source == str(wanted)]
    found = found or [it for it in stored.entries if it.descriptor["digest"] == wanted.digest]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFound(f"{source} is not in manifest list {name}")
    raise InvalidInput(
        f"{source} has several manifests in {name}", hint="name one of them: NAME@sha256:…"
    )


def _content(
    reader: RegistryClient, repository: str, blob: Descriptor
) -> Callable[[int, int], Iterator[bytes]]:
    """A blob of another repository, from there."""

    def pieces(start: int, end: int) -> Iterator[bytes]:
        for piece in reader.blob(repository, blob, start):
            yield piece[: end - start]
            start += len(piece)
            if start >= end:
                return

    return pieces
