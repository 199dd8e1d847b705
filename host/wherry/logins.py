"""The user's registry logins, shared with Docker: its config.json and its credential helpers.

Formats: Docker's config.json (docker/cli, cli/config/configfile) and docker-credential-helpers
(store, get, erase). For a registry its own helper (`credHelpers`) wins over the common one
(`credsStore`), that over `auths`. Fields of config.json that are not about logins are kept as they
are. A secret is never in a message or a repr, and reaches a helper by its standard input only.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wherry.errors import InvalidInput
from wherry.osutil.jobs import no_window
from wherry.osutil.programs import find_program

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The name under which Docker keeps the credentials of docker.io."""

TOKEN_USER = "<token>"
"""docker-credential-helpers: with this user name the secret is an identity token."""

HELPER_SECONDS = 30.0
_NOT_FOUND = b"credentials not found"
"""docker-credential-helpers, credentials/error.go: said on standard output, with exit code 1."""

_LOCKED = ("User interaction is not allowed", "keychain cannot be accessed", "keychain is locked")
"""docker-credential-osxkeychain, by its versions: errSecInteractionNotAllowed, as over SSH."""

_UNLOCK = "unlock the keychain: security unlock-keychain ~/Library/Keychains/login.keychain-db"

Json = dict[str, Any]


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
        return "Basic " + self._basic()

    def as_fields(self) -> dict[str, str]:
        """As the Engine API's X-Registry-Auth has them; `credentials_from_fields` reads it."""
        names = ("username", "password", "identitytoken", "registrytoken")
        values = (self.username, self.password, self.identity_token, self.registry_token)
        return {name: value for name, value in zip(names, values, strict=True) if value}

    def redacted(self, text: str) -> str:
        """`text` without our secrets, should a server have told us what we told it."""
        basic = self._basic() if self.password else ""
        for secret in (basic, self.password, self.identity_token, self.registry_token):
            if secret:
                text = text.replace(secret, "***")
        return text

    def _basic(self) -> str:
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


ANONYMOUS = Credentials()


@dataclass(frozen=True, slots=True)
class HelperCall:
    """What `docker-credential-<name>` is asked about `server`."""

    name: str
    server: str


class Logins:
    """The logins of the user whose environment this is.

    Args:
        environ: DOCKER_CONFIG says where config.json is (else `~/.docker`); helpers are found on
            PATH (or where macOS has such programs) and get all of it.

    All methods raise InvalidInput when config.json is malformed, or a helper that it names is
    missing or fails.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        try:
            home = Path.home()
        except RuntimeError:  # a service without a home directory
            home = Path("/")
        self.file = Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"

    def find(self, registry: str) -> Credentials:
        """The credentials of `registry` (`docker.io`, `host:port`); anonymous ones when none."""
        found = find_credentials(self._read(), registry)
        if isinstance(found, HelperCall):
            return self._from_helper(found)
        return found or ANONYMOUS

    def store(self, registry: str, credentials: Credentials) -> HelperCall | None:
        """Keep credentials; the helper that has them now, None: config.json itself.

        Raises:
            InvalidInput: as all, or config.json cannot be written.
        """
        fields = _parse(self._read())
        call = _helper_of(fields, registry)
        key = config_keys(registry)[0]
        auths = dict(_mapping(fields, "auths"))
        if call is None:
            auths[key] = _auths_entry(credentials)
        else:
            self._ask(call, "store", json.dumps(_helper_entry(call, credentials)).encode())
            auths[key] = {}  # Docker's mark that there is a login
        self._write(fields | {"auths": auths})
        return call

    def erase(self, registry: str) -> bool:
        """Forget the credentials of a registry; False when there are none."""
        fields = _parse(self._read())
        call = _helper_of(fields, registry)
        auths = dict(_mapping(fields, "auths"))
        names = {host_of(name) for name in config_keys(registry)}
        gone = [key for key in auths if host_of(key) in names]
        known = bool(gone)
        if call is not None:
            known = not self._from_helper(call).is_anonymous or known
            if known:
                self._ask(call, "erase", call.server.encode())
        if gone:
            self._write(fields | {"auths": {k: v for k, v in auths.items() if k not in gone}})
        return known

    def _read(self) -> bytes:
        try:
            return self.file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return b""

    def _write(self, fields: Json) -> None:
        from wherry.osutil import atomic_write  # here: reading is common and must be quick

        file = self.file.resolve()  # it may be a link into a directory of dot files
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(file, json.dumps(fields, indent="\t").encode() + b"\n")
        except OSError as error:
            raise InvalidInput(f"{file} cannot be written: {error.strerror}") from error

    def _from_helper(self, call: HelperCall) -> Credentials:
        output = self._ask(call, "get", call.server.encode())
        return ANONYMOUS if output is None else parse_helper_answer(output)

    def _ask(self, call: HelperCall, verb: str, order: bytes) -> bytes | None:
        """What the helper answers; None when it knows nothing of the server."""
        program = f"docker-credential-{call.name}"
        path = find_program(program, self._environ.get("PATH"))
        if path is None:
            raise InvalidInput(
                f"Docker's config.json names the credential helper {program}, which is not on PATH",
                hint="install it, or remove credsStore/credHelpers from config.json",
            )
        try:
            result = subprocess.run(
                [path, verb],
                input=order,
                capture_output=True,
                timeout=HELPER_SECONDS,
                creationflags=no_window(),
                env=dict(self._environ),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            cause = "no answer in time" if isinstance(error, subprocess.TimeoutExpired) else error
            raise InvalidInput(f"the credential helper {program} failed: {cause}") from error
        if result.returncode == 0:
            return result.stdout
        if _NOT_FOUND in result.stdout:
            return None
        said = (result.stdout or result.stderr).decode(errors="replace").strip().splitlines()
        raise InvalidInput(
            f"the credential helper {program} failed: {said[-1] if said else 'silent'}",
            hint=_UNLOCK if any(it in line for it in _LOCKED for line in said) else None,
        )


def registry_of(name: str) -> str:
    """The registry of an image's name: its first part, when that looks like a host; Docker's rule
    (distribution/reference, normalize.go)."""
    first, slash, _ = name.partition("/")
    is_host = any(sign in first for sign in ".:") or first == "localhost" or first != first.lower()
    domain = first if slash and is_host else DOCKER_HUB
    return DOCKER_HUB if domain == "index.docker.io" else domain


def server_of(text: str) -> str:
    """The registry that a user means by `SERVER`: a host, a URL, or nothing for Docker Hub."""
    host = host_of(text.strip())
    hub = ("", DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
    return DOCKER_HUB if host in hub else host


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

    Raises:
        InvalidInput: the file is not such JSON.
    """
    fields = _parse(config)
    if (call := _helper_of(fields, registry)) is not None:
        return call
    names = {host_of(name) for name in config_keys(registry)}
    for key, entry in _mapping(fields, "auths").items():
        if isinstance(entry, dict) and host_of(key) in names:
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
        fields = json.loads(output)
    except ValueError as error:
        raise InvalidInput("the credential helper did not answer with JSON") from error
    username = fields.get("Username") if isinstance(fields, dict) else None
    secret = fields.get("Secret") if isinstance(fields, dict) else None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise InvalidInput("the credential helper's answer lacks Username or Secret")
    if username == TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


def config_keys(registry: str) -> list[str]:
    """The names under which config.json may have a registry; the first is for writing."""
    if registry == DOCKER_HUB:
        return [DOCKER_HUB_KEY, "index.docker.io", "docker.io", "registry-1.docker.io"]
    return [registry]


def host_of(key: str) -> str:
    """`host[:port]` of a key, which may be a URL."""
    return key.removeprefix("https://").removeprefix("http://").split("/", 1)[0]


def _helper_of(fields: Json, registry: str) -> HelperCall | None:
    names = config_keys(registry)
    helpers = _mapping(fields, "credHelpers")
    for name in names:
        if isinstance(helper := helpers.get(name), str) and helper:
            return HelperCall(helper, names[0])
    if isinstance(store := fields.get("credsStore"), str) and store:
        return HelperCall(store, names[0])
    return None


def _auths_entry(credentials: Credentials) -> Json:
    pair = f"{credentials.username}:{credentials.password}".encode()
    entry: Json = {"auth": base64.b64encode(pair).decode("ascii")}
    if credentials.identity_token:
        entry["identitytoken"] = credentials.identity_token
    return entry


def _helper_entry(call: HelperCall, credentials: Credentials) -> Json:
    if credentials.identity_token:
        user, secret = TOKEN_USER, credentials.identity_token
    else:
        user, secret = credentials.username, credentials.password
    return {"ServerURL": call.server, "Username": user, "Secret": secret}


def _parse(config: bytes) -> Json:
    try:
        fields = json.loads(config or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"Docker's config.json is malformed: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidInput("Docker's config.json is malformed: it is no JSON object")
    return fields


def _mapping(fields: Json, name: str) -> Json:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
