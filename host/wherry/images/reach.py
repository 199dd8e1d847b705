"""How a registry is reached: HTTPS, or plain HTTP where that is allowed; found out once.

Rule: HTTPS with a certificate that somebody vouches for. Only a registry on loopback, or one that
the settings call insecure, may be plain HTTP or have a certificate that nobody trusts; and not when
a CA was configured for it (`trust.py`): then that CA decides.
"""

from __future__ import annotations

import threading
import urllib.parse
from dataclasses import dataclass

import urllib3

from wherry.errors import RegistryError
from wherry.images.reference import DEFAULT_DOMAIN
from wherry.images.transport import Transport, is_loopback

DOCKER_HUB_HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Base:
    """`https://host[:port]`, certificates checked or not."""

    url: str
    verify: bool

    @property
    def is_https(self) -> bool:
        return self.url.startswith("https:")

    @property
    def netloc(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def is_origin_of(self, url: str) -> bool:
        """Whether a URL leads to this very scheme, host and port: where credentials may go."""
        return _origin(url) == _origin(self.url)


class Reach:
    """The way to the registry of one domain. Thread-safe. Arguments as `RegistryClient`'s."""

    def __init__(self, domain: str, insecure: tuple[str, ...], transport: Transport) -> None:
        self._host = DOCKER_HUB_HOST if domain == DEFAULT_DOMAIN else domain
        self._insecure = insecure
        self._transport = transport
        self._lock = threading.Lock()
        self._base: Base | None = None

    def base(self) -> Base:
        """The base URL. The first call may ask the registry."""
        with self._lock:
            if self._base is None:
                base, certain = self._probe()
                if not certain:
                    return base
                self._base = base
            return self._base

    def follow(self, base: Base, url: str, location: str) -> str:
        """Where `url`'s answer sends us.

        A registry behind a proxy that ends TLS may name itself with http: that is read as https.

        Raises:
            RegistryError: no web address, or one that would be reached without encryption.
        """
        target = urllib.parse.urljoin(url, location)
        parts = urllib.parse.urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"{_shown(url)} redirects to no web address")
        if parts.scheme == "http" and base.is_https and parts.netloc == base.netloc:
            return urllib.parse.urlunsplit(parts._replace(scheme="https"))
        if parts.scheme == "http" and (base.is_https or not self._may_be_plain(parts.netloc)):
            host = parts.netloc.rpartition("@")[2]
            raise RegistryError(f"{_shown(url)} redirects to {host} without encryption")
        return target

    def verifies(self, base: Base, url: str) -> bool:
        """Whether the certificate of `url` is checked: always, unless the registry's own is not and
        this is the registry, or may be plain too."""
        netloc = urllib.parse.urlsplit(url).netloc
        return base.verify or not (base.is_origin_of(url) or self._may_be_plain(netloc))

    def _may_be_plain(self, netloc: str) -> bool:
        host = urllib.parse.urlsplit(f"//{netloc}").hostname or ""
        return is_loopback(host) or netloc in self._insecure or host in self._insecure

    def _probe(self) -> tuple[Base, bool]:
        """The base, and whether that is certain: nothing is when nobody listens."""
        secure = Base(f"https://{self._host}", verify=True)
        if not self._may_be_plain(self._host) or self._transport.trust.authorities(self._host):
            return secure, True
        host = urllib.parse.urlsplit(f"//{self._host}").hostname or ""
        plain = Base(f"http://{self._host}", verify=True)
        unverified = Base(f"https://{self._host}", verify=False)
        # Loopback cannot be overheard and is mostly plain; elsewhere encryption is tried first.
        first, second = (plain, unverified) if is_loopback(host) else (unverified, plain)
        try:
            status = self._ask(first)
        except urllib3.exceptions.NewConnectionError:
            try:  # without a port in the name the two have different ones, and perhaps proxies
                self._ask(second)
            except (urllib3.exceptions.HTTPError, OSError):
                return first, False
            return second, True
        except (urllib3.exceptions.HTTPError, OSError):
            return second, True
        # A TLS server answers a plain request with 400 (Go, nginx).
        return (second if first is plain and status == 400 else first), True

    def _ask(self, base: Base) -> int:
        """The status of an answer."""
        response = self._transport.request("GET", f"{base.url}/v2/", {}, verify=False)
        response.close()
        return response.status


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return "", "", None
    return parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme)


def _shown(url: str) -> str:
    """A URL for a message: without its query, which may be signed."""
    return url.partition("?")[0]
