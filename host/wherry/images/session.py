"""Requests to one registry: who we are, where it redirects to, which answers may pass.

Rule: credentials go to the registry itself (scheme, host and port) and to the token service that it
names, never to where it redirects or where it wants an upload sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import urllib3

from wherry.errors import RegistryError, Unauthorized
from wherry.images.answers import MAX_ERROR_BYTES, read_limited, said
from wherry.images.auth import (
    Challenge,
    Credentials,
    Token,
    TokenRequest,
    parse_challenges,
    parse_refresh_token,
    parse_token,
    token_request,
)
from wherry.images.reach import Base, Reach
from wherry.images.retry import parse_retry_after
from wherry.images.transport import Body, Transport

_MAX_REDIRECTS = 5
_MAX_TOKEN_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
"""RFC 9110 section 15.4: the others may turn a POST into a GET."""
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})


class RetryLater(Exception):
    """A fault that may pass. `after`: the server's Retry-After in seconds."""

    def __init__(self, cause: str, after: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.after = after


def pull_scope(repository: str) -> str:
    """distribution's token scopes (docs/spec/auth/scope.md)."""
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    return f"repository:{repository}:pull,push"


@dataclass(frozen=True, slots=True)
class _Call:
    """What is sent, wherever it goes."""

    method: str
    headers: Mapping[str, str]
    scope: str = ""
    body: Body | None = None
    patient: bool = False


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
        self._reach = Reach(domain, insecure, transport)
        self._credentials = credentials
        self._transport = transport
        self._clock = clock
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._tokens: dict[str, Token] = {}

    @contextmanager
    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        scope: str,
        *,
        body: Body | None = None,
        patient: bool = False,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """One request: authenticated, redirects followed, temporary faults raised.

        Args:
            target: a path of the registry, or a URL that it gave us (`location`).
            scope: what for, as `pull_scope` says it; several with spaces between; "": nothing yet.
            body, patient: as `Transport.request`'s.

        Raises:
            RetryLater: the answer is one that a later try may not get.
        """
        call = _Call(method, headers, scope, body, patient)
        base = self._reach.base()
        url = base.url + target if target.startswith("/") else target
        response = self._authenticated(base, url, call)
        self.reached = True
        try:
            response = self._follow(base, url, response, call)
            if response.status in _RETRIED:
                after = parse_retry_after(response.headers.get("Retry-After"), time.time())
                raise RetryLater(said(response), after)
            yield response
        finally:
            # A body that was not read to its end cannot share its connection with a next request.
            response.close()

    def location(self, target: str, response: urllib3.BaseHTTPResponse) -> str | None:
        """The URL in the Location header of the answer to a request for `target`; None: no header.

        Raises:
            RegistryError: it is no web address, or leads where there is no encryption.
        """
        base = self._reach.base()
        url = base.url + target if target.startswith("/") else target
        place = response.headers.get("Location")
        return self._reach.follow(base, url, place) if place else None

    def log_in(self) -> str | None:
        """Show our credentials to the registry; an identity token, when its token service has any.

        Raises:
            Unauthorized: they are refused. RetryLater, RegistryError: something else is wrong.
        """
        base = self._reach.base()
        response = self._send(base, f"{base.url}/v2/", _Call("GET", {}), None)
        try:
            self.reached = True
            challenge = self._challenge_of(response)
            if challenge is not None and challenge.scheme == "bearer":
                self._challenge = challenge
                request = token_request(
                    challenge,
                    self._credentials,
                    "",
                    registry_is_https=base.is_https,
                    offline=True,
                )
                answer = self._ask_token_service(base, request)
                self._tokens[""] = parse_token(answer, self._clock())
                return parse_refresh_token(answer)
        finally:
            response.close()
        with self.request("GET", "/v2/", {}, "") as checked:
            if checked.status == 200:
                return None
            if checked.status in (401, 403):
                raise Unauthorized(f"registry {self._domain} refused the login: {said(checked)}")
            raise RegistryError(f"{self._domain} does not answer as a registry: {said(checked)}")

    def _authenticated(self, base: Base, url: str, call: _Call) -> urllib3.BaseHTTPResponse:
        if not base.is_origin_of(url):
            return self._send(base, url, call, None)
        authorization = self._authorization(base, call.scope, fresh=False)
        response = self._send(base, url, call, authorization)
        challenge = self._challenge_of(response)
        if challenge is None:
            return response
        read_limited(response, MAX_ERROR_BYTES)
        response.close()
        self._challenge = challenge
        return self._send(base, url, call, self._authorization(base, call.scope, fresh=True))

    def _challenge_of(self, response: urllib3.BaseHTTPResponse) -> Challenge | None:
        if response.status != 401:
            return None
        challenges = parse_challenges(response.headers.getlist("WWW-Authenticate"))
        return _usable(challenges, self._credentials)

    def _send(
        self, base: Base, url: str, call: _Call, authorization: str | None
    ) -> urllib3.BaseHTTPResponse:
        headers = dict(call.headers)
        if authorization:
            headers["Authorization"] = authorization
        return self._transport.request(
            call.method,
            url,
            headers,
            body=call.body,
            verify=self._reach.verifies(base, url),
            patient=call.patient,
        )

    def _follow(
        self, base: Base, url: str, response: urllib3.BaseHTTPResponse, call: _Call
    ) -> urllib3.BaseHTTPResponse:
        """Follow redirects, elsewhere without credentials: what a registry points at is signed by
        itself."""
        for _ in range(_MAX_REDIRECTS):
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            if call.method not in ("GET", "HEAD") and response.status not in _SAME_METHOD:
                return response
            response.close()
            url = self._reach.follow(base, url, location)
            response = self._authenticated(base, url, call)
        raise RegistryError(f"{url.partition('?')[0]} redirects in circles")

    # Who we are.

    def _authorization(self, base: Base, scope: str, *, fresh: bool) -> str | None:
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

    def _fetch_token(self, base: Base, challenge: Challenge, scope: str) -> Token:
        request = token_request(
            challenge, self._credentials, scope, registry_is_https=base.is_https
        )
        return parse_token(self._ask_token_service(base, request), self._clock())

    def _ask_token_service(self, base: Base, request: TokenRequest) -> bytes:
        response = self._transport.request(
            request.method,
            request.url,
            request.headers,
            form=request.form,
            verify=self._reach.verifies(base, request.url),
        )
        try:
            if response.status in _RETRIED:
                after = parse_retry_after(response.headers.get("Retry-After"), time.time())
                raise RetryLater(f"its token service: {said(response)}", after)
            if response.status in (400, 401, 403):
                raise Unauthorized(
                    f"registry {self._domain}: its token service refused the login: "
                    f"{said(response)}",
                    hint=f"check the login: wherry login {self._domain}",
                )
            body = read_limited(response, _MAX_TOKEN_BYTES)
            if response.status != 200 or body is None:
                raise RegistryError(
                    f"registry {self._domain}: its token service failed: {said(response)}"
                )
            return body
        finally:
            response.close()


def _usable(challenges: list[Challenge], credentials: Credentials) -> Challenge | None:
    """The challenge that we can answer: a token service first, else a password."""
    bearer = next((c for c in challenges if c.scheme == "bearer"), None)
    if bearer is not None:
        return bearer
    basic = next((c for c in challenges if c.scheme == "basic"), None)
    return basic if basic is not None and credentials.username else None
