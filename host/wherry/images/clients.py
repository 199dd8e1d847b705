"""From a domain to clients of its registry and its mirrors, as the settings have them."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wherry.errors import InvalidInput
from wherry.images.auth import Credentials, credentials_from_fields
from wherry.images.registry import RegistryClient
from wherry.images.retry import RetryPolicy
from wherry.images.transport import Transport, is_loopback
from wherry.logins import Logins
from wherry.settings import Settings

Auth = Credentials | Mapping[str, Any] | None
"""Credentials; or the fields of Docker's X-Registry-Auth; None: those in Docker's config.json."""

_MIRROR_ATTEMPTS = 2
"""A mirror that does not answer is passed over soon: there is another place to ask."""


@dataclass(frozen=True, slots=True)
class Registries:
    """Makes clients. `retry`: None: the usual patience."""

    settings: Settings
    transport: Transport
    retry: RetryPolicy | None = None

    def client(
        self, domain: str, auth: Auth = None, stop: threading.Event | None = None
    ) -> RegistryClient:
        """A client of the registry itself.

        Raises:
            InvalidInput: config.json is malformed, a credential helper fails, `auth` is none.
        """
        return self._client(domain, credentials_for(domain, auth), stop, self.retry)

    def mirrors(self, domain: str, stop: threading.Event | None = None) -> list[RegistryClient]:
        """Clients of the mirrors of a registry, in the order in which they are to be asked.

        A mirror gets the credentials that config.json has for the mirror, never the registry's. One
        over plain HTTP must be on loopback or among the insecure registries.

        Raises:
            InvalidInput: one is not; or as `client`.
        """
        policy = self.retry or RetryPolicy(attempts=_MIRROR_ATTEMPTS)
        found = []
        for url in dict(self.settings.registry_mirrors).get(domain, ()):
            parts = urllib.parse.urlsplit(url)
            host = parts.hostname or ""
            if parts.scheme == "http" and not self._is_insecure(parts.netloc, host):
                raise InvalidInput(
                    f"the mirror {url} of {domain} is not encrypted",
                    hint=f"add {parts.netloc} to insecure_registries in config.yml, or use https",
                )
            found.append(self._client(parts.netloc, Logins().find(parts.netloc), stop, policy))
        return found

    def _is_insecure(self, netloc: str, host: str) -> bool:
        insecure = self.settings.insecure_registries
        return is_loopback(host) or netloc in insecure or host in insecure

    def _client(
        self,
        domain: str,
        credentials: Credentials,
        stop: threading.Event | None,
        policy: RetryPolicy | None,
    ) -> RegistryClient:
        return RegistryClient(
            domain,
            credentials,
            transport=self.transport,
            insecure=self.settings.insecure_registries,
            policy=policy,
            stop=stop,
        )


def credentials_for(domain: str, auth: Auth) -> Credentials:
    """What `auth` stands for."""
    if auth is None:
        return Logins().find(domain)
    if isinstance(auth, Credentials):
        return auth
    return credentials_from_fields(auth, "X-Registry-Auth")
