"""How a registry asks who we are, and how we answer: challenges, tokens, Docker's config.json.

Sans-I/O: header values, JSON and clock readings in; requests and headers out. `registry.py` sends
them, `credentials.py` reads files and runs helpers.

Sources: RFC 9110 section 11 (challenges), distribution's token specification
(docs/spec/auth/token.md and oauth.md), Docker's config.json and docker-credential-helpers.
A secret goes only to the registry it belongs to and to the token service which that registry
names, and never over plain HTTP when the registry itself was reached by HTTPS.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wherry.errors import InvalidInput, RegistryError
from wherry.images.reference import DEFAULT_DOMAIN

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The name under which Docker keeps the credentials of docker.io."""

TOKEN_USER = "<token>"
"""docker-credential-helpers: with this user name the secret is an identity token."""

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
class Credentials:
    """What a user has for one registry; empty is anonymous.

    Attributes:
        username, password: for basic authentication and for token services.
        identity_token: an OAuth2 refresh token; wins over the password.
        registry_token: a bearer token that is sent as it is.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def is_anonymous(self) -> bool:
        return not (self.username or self.identity_token or self.registry_token)

    def basic_header(self) -> str:
        """The value of an Authorization header."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


ANONYMOUS = Credentials()


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


@dataclass(frozen=True, slots=True)
class HelperCall:
    """Ask `docker-credential-<name> get` with `server` on its standard input."""

    name: str
    server: str


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
    challenge: Challenge, credentials: Credentials, scope: str, *, registry_is_https: bool
) -> TokenRequest:
    """The request that turns a Bearer challenge into a token for `scope`.

    With an identity token a POST as oauth.md describes, else a GET, with basic authentication when
    there is a password.

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
    query.append(("scope", scope))
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


def credentials_from_fields(fields: Mapping[str, Any], where: str) -> Credentials:
    """Credentials as Docker writes them in JSON: `username`, `password`, `auth`, `identitytoken`,
    `registrytoken` (an entry of config.json's auths, the Engine API's X-Registry-Auth).

    Raises:
        InvalidInput: a field is not a string, or `auth` is not base64; the message names `where`.
    """

    def text(name: str) -> str:
        value = fields.get(name) or ""
        if not isinstance(value, str):
            raise InvalidInput(f"{where}: {name} must be a string")
        return value

    username, password = text("username"), text("password")
    if auth := text("auth"):
        try:
            pair = base64.b64decode(auth, validate=False).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidInput(f"{where}: auth is not base64") from error
        username, _, password = pair.rstrip("\0").partition(":")
    return Credentials(username, password, text("identitytoken"), text("registrytoken"))


def find_credentials(config: bytes, registry: str) -> HelperCall | Credentials | None:
    """Where Docker's config.json has the credentials of `registry` (`docker.io`, `host:port`).

    A helper for this registry wins over the store, the store over `auths` (Docker's order); an
    `auths` entry with contents is still used when the store is not set.

    Raises:
        InvalidInput: the file is not such JSON.
    """
    try:
        fields = msgspec.json.decode(config or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"Docker's config.json is malformed: {error}") from error
    names = _config_keys(registry)
    helpers = _mapping(fields, "credHelpers")
    for name in names:
        if isinstance(helper := helpers.get(name), str) and helper:
            return HelperCall(helper, names[0])
    if isinstance(store := fields.get("credsStore"), str) and store:
        return HelperCall(store, names[0])
    auths = _mapping(fields, "auths")
    for key, entry in auths.items():
        if isinstance(entry, dict) and _host_of(key) in {_host_of(name) for name in names}:
            found = credentials_from_fields(entry, f"Docker's config.json, auths of {key}")
            if not found.is_anonymous:
                return found
    return None


def parse_helper_answer(output: bytes) -> Credentials:
    """What a credential helper printed.

    Raises:
        InvalidInput: it is not the JSON of docker-credential-helpers.
    """
    try:
        fields = msgspec.json.decode(output, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput("the credential helper did not answer with JSON") from error
    username, secret = fields.get("Username"), fields.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise InvalidInput("the credential helper's answer lacks Username or Secret")
    if username == TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


def _config_keys(registry: str) -> list[str]:
    if registry == DEFAULT_DOMAIN:
        return [DOCKER_HUB_KEY, "index.docker.io", "docker.io", "registry-1.docker.io"]
    return [registry]


def _host_of(key: str) -> str:
    return key.removeprefix("https://").removeprefix("http://").split("/", 1)[0]


def _mapping(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
