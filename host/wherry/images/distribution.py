"""Registries beside pulling, for the engine: log in, push, look. Synchronous, thread-safe.

From `ImageStore.distribution`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from wherry.errors import ImageNotFound, InvalidInput, RegistryError, Unauthorized
from wherry.images.clients import Auth, Registries, credentials_for
from wherry.images.documents import Document, parse_document
from wherry.images.media import CONFIG_TYPES, Descriptor, MediaError, digest_of
from wherry.images.parts import Parts, disk_errors
from wherry.images.platform import matches, parse_platform
from wherry.images.progress import PullEvent, Reporter
from wherry.images.push import Pushed, index_of, missing_of, push_image
from wherry.images.reference import LOCAL_DOMAIN, Reference, parse_reference
from wherry.images.registry import RegistryClient

Progress = Callable[[PullEvent], None]

_MAX_CONFIG_BYTES = 4 << 20


class Distribution:
    """Registries, for the images of one store."""

    def __init__(self, parts: Parts, registries: Registries) -> None:
        self._parts = parts
        self._registries = registries

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
            return push_image(self._parts, client, image_id, target, reporter, index=index)

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
        document = self.fetch(client, reference)
        if document.children:
            platforms = [_platform_fields(it) for it in document.children if it.platform]
        else:
            platforms = [self._platform_of(client, reference, document)]
        return {"Descriptor": document.descriptor(), "Platforms": platforms}

    def fetch(self, client: RegistryClient, reference: Reference) -> Document:
        """A manifest or index from its registry."""
        wanted = reference.digest or reference.tag or ""
        reply = client.manifest(reference.path, wanted)
        try:
            return parse_document(reply.body, reply.media_type)
        except MediaError as error:
            raise RegistryError(f"{reference.familiar}: {error}") from error

    def _platform_of(
        self, client: RegistryClient, reference: Reference, document: Document
    ) -> dict[str, Any]:
        """A manifest says its platform in its config only."""
        config = document.blobs[0] if document.blobs else None
        if config is None or config.media_type not in CONFIG_TYPES:
            return {"architecture": "", "os": ""}
        return config_platform(client, reference.path, config)

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


def config_platform(client: RegistryClient, repository: str, config: Descriptor) -> dict[str, Any]:
    """The platform in an image config, as an index would say it."""
    if config.size > _MAX_CONFIG_BYTES:
        raise RegistryError(f"{repository}: a config of {config.size} bytes is too large")
    data = b"".join(client.blob(repository, config))
    if digest_of(data) != config.digest:
        raise RegistryError(f"{repository}: blob {config.digest} has another digest")
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RegistryError(f"{repository}: its config is malformed: {error}") from error
    names = ("architecture", "os", "variant", "os.version", "os.features")
    return _present({name: fields.get(name) for name in names})


def _platform_fields(entry: Descriptor) -> dict[str, Any]:
    platform = entry.platform
    assert platform is not None
    return _present(
        {"architecture": platform.architecture, "os": platform.os, "variant": platform.variant}
    )


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not said."""
    return {name: value for name, value in fields.items() if value}
