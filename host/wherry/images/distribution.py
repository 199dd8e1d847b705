"""Registries beside pulling, for the engine: log in, push, look. Synchronous, thread-safe.

From `ImageStore.distribution`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from wherry.errors import ImageNotFound, InvalidInput, Unauthorized
from wherry.images.clients import Auth, Registries, credentials_for
from wherry.images.documents import Document
from wherry.images.manifest_lists import ManifestLists
from wherry.images.parts import Parts, disk_errors
from wherry.images.platform import matches, parse_platform
from wherry.images.progress import PullEvent, Reporter
from wherry.images.push import Pushed, index_of, missing_of, push_image
from wherry.images.reference import LOCAL_DOMAIN, Reference, parse_reference
from wherry.images.refetch import Refetcher
from wherry.images.remote import fetch_document, platforms_of
from wherry.paths import Home

Progress = Callable[[PullEvent], None]


class Distribution:
    """Registries, for the images of one store. Attributes: `lists`, manifest lists."""

    def __init__(
        self, parts: Parts, registries: Registries, refetcher: Refetcher, home: Home
    ) -> None:
        self._parts = parts
        self._refetcher = refetcher
        self._registries = registries
        self.lists = ManifestLists(home.manifests, registries)

    def push(
        self,
        ref: str,
        auth: Auth = None,
        progress: Progress | None = None,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
    ) -> Pushed:
        """Push the image that a name stands for, to where the name says.

        Args:
            ref: a name; `latest` without a tag.
            auth: None: what config.json has.
            progress: as `ImageStore.pull`'s; what it raises ends the push.
            platform: refuse to push an image for another one.
            all_platforms: the whole index that the image was pulled with `all_platforms` from.

        Raises:
            ImageNotFound, InvalidReference, InvalidInput, Unauthorized, RegistryError, StorageError
        """
        target = parse_reference(ref)
        if target.digest is not None:
            raise InvalidInput("cannot push a digest reference", hint="push a tag")
        target = target.with_default_tag()
        if target.is_local:
            raise InvalidInput(
                f"{target.familiar} cannot be pushed: names under {LOCAL_DOMAIN}/ are of this "
                "machine only",
                hint=f"tag it first: wherry tag {target.familiar} REGISTRY/NAME",
            )
        image_id = self._parts.finder.target(target)
        if image_id is None:
            raise ImageNotFound(
                f"An image does not exist locally with the tag: {target.familiar}",
                hint="list them: wherry images",
            )
        image = self._parts.finder.load(image_id)
        if platform is not None and not matches(parse_platform(platform), image.platform):
            raise ImageNotFound(
                f"{target.familiar} is for {image.platform}, not for {parse_platform(platform)}"
            )
        index = self._whole_index(image_id, target) if all_platforms else None
        reporter = Reporter(progress)
        client = self._registries.client(target.domain, auth, reporter.stop)
        with disk_errors():
            return push_image(
                self._parts, client, image_id, target, reporter, self._refetcher, index=index
            )

    def tags_of(self, name: str) -> list[str]:
        """All tags of a repository that are stored, as one writes them."""
        repository = parse_reference(name).name
        tags, _ = self._parts.db.names()
        found = sorted(tag for own in tags.values() for tag in own)
        return [
            parse_reference(tag).familiar for tag in found if tag.rpartition(":")[0] == repository
        ]

    def log_in(self, server: str, auth: Auth) -> str | None:
        """Show credentials to a registry (`docker.io`, `host:port`); an identity token to keep in
        the place of the password, when its token service gives one.

        Raises:
            Unauthorized: they are refused. RegistryError.
        """
        credentials = credentials_for(server, auth)
        if credentials.is_anonymous:
            raise Unauthorized("a login needs a user name and a password")
        return self._registries.client(server, credentials).log_in()

    def describe(self, ref: str, auth: Auth = None) -> dict[str, Any]:
        """What a name stands for in its registry: Docker's DistributionInspect.

        Raises:
            ImageNotFound, Unauthorized, RegistryError, ContentMismatch, InvalidReference.
        """
        reference = parse_reference(ref).with_default_tag()
        client = self._registries.client(reference.domain, auth)
        document = fetch_document(client, reference)
        platforms = platforms_of(client, reference, document)
        return {"Descriptor": document.descriptor(), "Platforms": platforms}

    def inspect(self, ref: str, auth: Auth = None) -> list[dict[str, Any]]:
        """The manifest or index of a name in its registry, and the manifests of an index:
        [{Ref, Descriptor, Manifest (the JSON)}], the first of the name itself.

        Raises:
            as `describe`.
        """
        reference = parse_reference(ref).with_default_tag()
        client = self._registries.client(reference.domain, auth)
        document = fetch_document(client, reference)
        found = [_described(reference, document, {})]
        if document.is_index:
            for entry in msgspec.json.decode(document.body)["manifests"]:
                child = reference.with_digest(entry["digest"])
                found.append(_described(child, fetch_document(client, child), entry))
        return found

    def _whole_index(self, image_id: str, target: Reference) -> str | None:
        index = index_of(self._parts, image_id, str(target))
        if index is None:
            return None  # it was pulled or made for one platform: that is all
        if missing := missing_of(self._parts, index):
            raise InvalidInput(
                f"not all platforms of {target.familiar} are stored: {', '.join(missing)} missing",
                hint="pull it with --all-platforms first, or push without it",
            )
        return index


def _described(
    reference: Reference, document: Document, entry: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "Ref": str(reference),
        "Descriptor": document.descriptor() | dict(entry),
        "Manifest": msgspec.json.decode(document.body),
    }
