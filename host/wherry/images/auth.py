"""How a registry asks who we are, and how we answer: challenges and tokens.

Sans-I/O: header values, JSON and clock readings in; requests and headers out. `session.py` sends
them. What the user has for a registry, `Credentials`, is `wherry.logins`'s.

Sources: RFC 9110 section 11 (challenges), distribution's token specification
(docs/spec/auth/token.md and oauth.md). A secret goes only to the registry it belongs to and to the
token service which that registry names, and never over plain HTTP when the registry itself was
reached by HTTPS.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wherry.errors import RegistryError
from wherry.logins import ANONYMOUS, Credentials, credentials_from_fields

__all__ = [
    "ANONYMOUS",
    "Challenge",
    "Credentials",
    "Token",
    "TokenRequest",
    "credentials_from_fields",
    "parse_challenges",
    "parse_refresh_token",
    "parse_token",
    "token_request",
]

DEFAULT_TOKEN_SECONDS = 60
"""token.md: `expires_in` is 60 when it is not given."""

EXPIRY_MARGIN_SECONDS = 5
CLIENT_ID = "wherry"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*(?:,\s*)*({_TOKEN})(?=[\s,]|$)")
_PARAMETER = re.compile(
    rf'\s*(?:,\s*)*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?=,|$)'
)
_TOKEN68 = re.compile(r"\s+([A-Za-z0-9._~+/-]+=*)\s*(?=,|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header. Scheme and parameter names are lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the clock reading after which it is stale."""

    value: str = field(repr=False)
    expires_at: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """An HTTP request to a token service; `form` is None for GET."""

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    form: dict[str, str] | None = field(default=None, repr=False)


def parse_challenges(values: list[str]) -> list[Challenge]:
    """Parse WWW-Authenticate header values; what is not in the grammar ends that value."""
    challenges: list[Challenge] = []
    for value in values:
        position = 0
        while scheme := _SCHEME.match(value, position):
            position = scheme.end()
            parameters: dict[str, str] = {}
            if (token68 := _TOKEN68.match(value, position)) and not _PARAMETER.match(
                value, position
            ):
                position = token68.end()
            while parameter := _PARAMETER.match(value, position):
                name, quoted, plain = parameter.groups()
                text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(name.lower(), text)
                position = parameter.end()
            challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges


def token_request(
    challenge: Challenge,
    credentials: Credentials,
    scope: str,
    *,
    registry_is_https: bool,
    offline: bool = False,
) -> TokenRequest:
    """The request that turns a Bearer challenge into a token for `scope`.

    With an identity token a POST as oauth.md describes, else a GET, with basic authentication when
    there is a password.

    Args:
        scope: several with spaces between; "": only the login.
        offline: ask for an identity token (`parse_refresh_token`), too.

    Raises:
        RegistryError: the challenge has no usable realm, or would have a secret sent in the clear.
    """
    realm = challenge.parameters.get("realm", "")
    parts = urllib.parse.urlsplit(realm)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise RegistryError(f"the registry names an unusable token service {realm!r}")
    if parts.scheme == "http" and registry_is_https and not credentials.is_anonymous:
        raise RegistryError(
            f"the registry wants the password sent to {realm} without encryption; not sent"
        )
    service = challenge.parameters.get("service", "")
    if credentials.identity_token:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "client_id": CLIENT_ID,
            "service": service,
            "scope": scope,
        }
        return TokenRequest("POST", realm, {}, form)
    query = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    query += [("service", service)] if service else []
    query += [("scope", one) for one in scope.split()]
    query += [("offline_token", "true"), ("client_id", CLIENT_ID)] if offline else []
    headers: dict[str, str] = {}
    if credentials.username:
        query.append(("account", credentials.username))
        headers["Authorization"] = credentials.basic_header()
    url = urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(query)))
    return TokenRequest("GET", url, headers)


def parse_token(data: bytes, now: float) -> Token:
    """A token service's answer. `now` is a reading of the clock that `expires_at` is told in.

    Raises:
        RegistryError: it is no such answer.
    """
    try:
        answer = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RegistryError("the token service did not answer with JSON") from error
    value = answer.get("token") or answer.get("access_token")
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise RegistryError("the token service's answer has no token")
    seconds = answer.get("expires_in")
    lifetime = seconds if isinstance(seconds, int) and seconds > 0 else DEFAULT_TOKEN_SECONDS
    return Token(value, now + max(lifetime - EXPIRY_MARGIN_SECONDS, 1))


def parse_refresh_token(data: bytes) -> str | None:
    """The identity token in a token service's (good) answer, if there is one."""
    value = msgspec.json.decode(data, type=dict[str, Any]).get("refresh_token")
    return value if isinstance(value, str) and value else None
