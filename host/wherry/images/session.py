"""Requests to one registry: how it is reached, who we are, where it redirects to.

Rules: HTTPS, except that a registry on loopback or one that the settings call insecure may be
plain HTTP. Credentials go to the registry itself and to the token service that it names, never to
where it redirects.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import urllib3

from wherry.errors import RegistryError, Unauthorized
from wherry.images.auth import (
    Challenge,
    Credentials,
    Token,
    parse_challenges,
    parse_token,
    token_request,
)
from wherry.images.reference import DEFAULT_DOMAIN
from wherry.images.retry import parse_retry_after
from wherry.images.transport import Transport, is_loopback

DOCKER_HUB_HOST = "registry-1.docker.io"
CHUNK_BYTES = 64 << 10
"""A connection that breaks loses what it has of one chunk."""

_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = 64 << 10
_MAX_TOKEN_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})


class RetryLater(Exception):
    """A fault that may pass. `after`: the server's Retry-After in seconds."""

    def __init__(self, cause: str, after: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.after = after


@dataclass(frozen=True, slots=True)
class _Base:
    """How a registry is reached: `https://host[:port]`, certificates checked or not."""

    url: str
    verify: bool

    @property
    def is_https(self) -> bool:
        return self.url.startswith("https:")


class Session:
    """The way to one registry. Thread-safe. Arguments as `registry.RegistryClient`'s."""

    def __init__(
        self,
        domain: str,
        credentials: Credentials,
        insecure: tuple[str, ...],
        transport: Transport,
        clock: Callable[[], float],
    ) -> None:
        self.reached = False
        self._domain = domain
        self._host = DOCKER_HUB_HOST if domain == DEFAULT_DOMAIN else domain
        self._credentials = credentials
        self._insecure = insecure
        self._transport = transport
        self._clock = clock
        self._lock = threading.Lock()
        self._base: _Base | None = None
        self._challenge: Challenge | None = None
        self._tokens: dict[str, Token] = {}

    @contextmanager
    def get(
        self, path: str, headers: dict[str, str], repository: str | None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """GET a path of the registry: authenticated, redirects followed, temporary faults raised.

        Raises:
            RetryLater: the answer is one that a later try may not get.
        """
        base = self._reach()
        response = self._authenticated(base, path, headers, repository)
        self.reached = True
        try:
            response = self._follow(base, base.url + path, response, headers)
            if response.status in _RETRIED:
                after = parse_retry_after(response.headers.get("Retry-After"), time.time())
                raise RetryLater(said(response), after)
            yield response
        finally:
            # A body that was not read to its end cannot share its connection with a next request.
            response.close()

    def _authenticated(
        self, base: _Base, path: str, headers: dict[str, str], repository: str | None
    ) -> urllib3.BaseHTTPResponse:
        scope = f"repository:{repository}:pull" if repository else ""
        authorization = self._authorization(base, scope, fresh=False)
        response = self._send(base, path, headers, authorization)
        if response.status != 401:
            return response
        challenges = parse_challenges(response.headers.getlist("WWW-Authenticate"))
        challenge = _usable(challenges, self._credentials)
        if challenge is None:
            return response
        read_limited(response, _MAX_ERROR_BYTES)
        response.close()
        self._challenge = challenge
        return self._send(base, path, headers, self._authorization(base, scope, fresh=True))

    def _send(
        self, base: _Base, path: str, headers: dict[str, str], authorization: str | None
    ) -> urllib3.BaseHTTPResponse:
        sent = {**headers, "Authorization": authorization} if authorization else headers
        return self._transport.request("GET", base.url + path, sent, verify=base.verify)

    def _follow(
        self,
        base: _Base,
        url: str,
        response: urllib3.BaseHTTPResponse,
        headers: dict[str, str],
    ) -> urllib3.BaseHTTPResponse:
        """Follow redirects without credentials: what a registry points at is signed by itself."""
        for _ in range(_MAX_REDIRECTS):
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = urllib.parse.urljoin(url, location)
            parts = urllib.parse.urlsplit(target)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise RegistryError(f"{url} redirects to no web address")
            if parts.scheme == "http" and (base.is_https or not self._may_be_plain(parts.netloc)):
                raise RegistryError(f"{url} redirects to {parts.netloc} without encryption")
            verify = base.verify or parts.netloc != urllib.parse.urlsplit(base.url).netloc
            response = self._transport.request("GET", target, headers, verify=verify)
            url = target
        raise RegistryError(f"{url} redirects in circles")

    # Who we are.

    def _authorization(self, base: _Base, scope: str, *, fresh: bool) -> str | None:
        if self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        challenge = self._challenge
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            return self._credentials.basic_header()
        wanted = challenge.parameters.get("scope") or scope if fresh else scope
        with self._lock:  # one thread asks, the others wait for its token
            token = self._tokens.get(scope)
            if token is None or token.expires_at <= self._clock() or fresh:
                token = self._fetch_token(base, challenge, wanted)
                self._tokens[scope] = token
        return f"Bearer {token.value}"

    def _fetch_token(self, base: _Base, challenge: Challenge, scope: str) -> Token:
        request = token_request(
            challenge, self._credentials, scope, registry_is_https=base.is_https
        )
        response = self._transport.request(
            request.method, request.url, request.headers, form=request.form, verify=base.verify
        )
        try:
            if response.status in _RETRIED:
                after = parse_retry_after(response.headers.get("Retry-After"), time.time())
                raise RetryLater(f"its token service: {said(response)}", after)
            if response.status in (400, 401, 403):
                raise Unauthorized(
                    f"registry {self._domain}: its token service refused the login: "
                    f"{said(response)}",
                    hint=f"check the login: docker login {self._domain}",
                )
            body = read_limited(response, _MAX_TOKEN_BYTES)
            if response.status != 200 or body is None:
                raise RegistryError(
                    f"registry {self._domain}: its token service failed: {said(response)}"
                )
            return parse_token(body, self._clock())
        finally:
            response.close()

    # How it is reached.

    def _may_be_plain(self, netloc: str) -> bool:
        host = urllib.parse.urlsplit(f"//{netloc}").hostname or ""
        return is_loopback(host) or netloc in self._insecure or host in self._insecure

    def _reach(self) -> _Base:
        """The base URL; for a registry that may be plain HTTP, found out once."""
        with self._lock:
            if self._base is None:
                self._base = self._probe()
            return self._base

    def _probe(self) -> _Base:
        secure = _Base(f"https://{self._host}", verify=True)
        if not self._may_be_plain(self._host):
            return secure
        host = urllib.parse.urlsplit(f"//{self._host}").hostname or ""
        plain = _Base(f"http://{self._host}", verify=True)
        unverified = _Base(f"https://{self._host}", verify=False)
        # Loopback cannot be overheard and is mostly plain; elsewhere encryption is tried first.
        order = [plain, unverified] if is_loopback(host) else [unverified, plain]
        try:
            response = self._transport.request("GET", f"{order[0].url}/v2/", {}, verify=False)
        except urllib3.exceptions.NewConnectionError:
            return order[0]
        except (urllib3.exceptions.HTTPError, OSError):
            return order[1]
        response.close()
        # A TLS server answers a plain request with 400 (Go, nginx).
        return order[1] if order[0] is plain and response.status == 400 else order[0]


class _ErrorItem(msgspec.Struct, frozen=True):
    code: Any = None
    message: Any = None


class _ErrorBody(msgspec.Struct, frozen=True):
    """distribution-spec 1.1, error codes."""

    errors: list[_ErrorItem] = []


def said(response: urllib3.BaseHTTPResponse) -> str:
    """Status and the server's own words, in one short line."""
    status = f"HTTP {response.status}"
    body = read_limited(response, _MAX_ERROR_BYTES) or b""
    try:
        items = msgspec.json.decode(body, type=_ErrorBody).errors
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return status
    words = [str(item.message or item.code) for item in items if item.message or item.code]
    printable = "".join(sign if sign.isprintable() else " " for sign in "; ".join(words))
    return f"{printable[:200]} ({status})" if printable else status


def read_limited(response: urllib3.BaseHTTPResponse, limit: int) -> bytes | None:
    """The body, or None when it is longer than `limit`."""
    parts: list[bytes] = []
    size = 0
    for chunk in response.stream(CHUNK_BYTES, decode_content=False):
        size += len(chunk)
        if size > limit:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _usable(challenges: list[Challenge], credentials: Credentials) -> Challenge | None:
    """The challenge that we can answer: a token service first, else a password."""
    bearer = next((c for c in challenges if c.scheme == "bearer"), None)
    if bearer is not None:
        return bearer
    basic = next((c for c in challenges if c.scheme == "basic"), None)
    return basic if basic is not None and credentials.username else None
