"""Docker's names for images: parse, complete, shorten. Sans-I/O.

The grammar is the one of github.com/distribution/reference (regexp.go and normalize.go):

    reference       := name [ ":" tag ] [ "@" digest ]
    name            := [ domain "/" ] path-component { "/" path-component }
    domain          := host [ ":" port ]
    path-component  := alphanumeric { separator alphanumeric }

A name without a domain belongs to Docker Hub (`docker.io`), one without a namespace there to
`library/`. The short form that people type and read is the *familiar* one: `debian:13` for
`docker.io/library/debian:13`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from wherry.errors import InvalidReference

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
OFFICIAL_NAMESPACE = "library/"
LOCAL_DOMAIN = "localhost"
"""Names under it, without a port, exist on this machine only: no registry is asked for them."""

MAX_NAME_LENGTH = 255
"""distribution/reference: RepositoryNameTotalLengthMax."""

_LEGACY_DOMAIN = "index.docker.io"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")
_ID_OR_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete image name: domain and path always, a tag or a digest or both or neither.

    Attributes:
        domain: `docker.io`, `localhost:5000`.
        path: `library/debian`.
        tag: `13`, or None.
        digest: `sha256:…`, or None.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Domain and path: `docker.io/library/debian`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as people write it: `debian`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        short = self.path.removeprefix(OFFICIAL_NAMESPACE)
        return self.path if "/" in short else short

    @property
    def familiar(self) -> str:
        """The whole reference as people write it: `debian:13`."""
        return self.familiar_name + self._suffix()

    @property
    def is_local(self) -> bool:
        """True when no registry can have it (`localhost/…` without a port)."""
        return self.domain == LOCAL_DOMAIN

    def with_default_tag(self) -> Reference:
        """`latest` added when there is neither a tag nor a digest."""
        if self.tag is not None or self.digest is not None:
            return self
        return replace(self, tag=DEFAULT_TAG)

    def with_digest(self, digest: str) -> Reference:
        """This repository, at that digest, without a tag."""
        return replace(self, tag=None, digest=digest)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return tag + digest

    def __str__(self) -> str:
        return self.name + self._suffix()


def parse_reference(text: str) -> Reference:
    """Parse a name as a user types it; nothing is added but the domain and `library/`.

    Raises:
        InvalidReference: not in the grammar; the message says which part.
    """
    if _IDENTIFIER.fullmatch(text):
        raise InvalidReference(
            f"invalid reference {text!r}: 64 hexadecimal digits are an image id, not a name"
        )
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _invalid(text, "what follows @ must be sha256: and 64 hexadecimal digits")
    name, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _invalid(
            text, "a tag is up to 128 letters, digits, '_', '.', '-', not starting with '.' or '-'"
        )
    domain, path = _split_domain(name)
    _check_name(text, domain, path)
    return Reference(domain, path, tag, digest if at else None)


def parse_tagged(text: str) -> Reference:
    """Parse a name that can be a tag's: `latest` when it has no tag.

    Raises:
        InvalidReference: not in the grammar, or it has a digest.
    """
    reference = parse_reference(text)
    if reference.digest is not None:
        raise InvalidReference(
            f"invalid reference {text!r}: an image cannot be tagged with a digest"
        )
    return reference.with_default_tag()


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 digest, `sha256:` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def id_prefix(text: str) -> str | None:
    """`sha256:` and the digits when `text` can be an image id or the start of one, else None."""
    match = _ID_OR_PREFIX.fullmatch(text)
    return f"sha256:{match[1]}" if match else None


def _split_tag(rest: str) -> tuple[str, str | None]:
    colon = rest.rfind(":")
    if colon < 0 or "/" in rest[colon:]:  # a colon before a slash is a port's
        return rest, None
    return rest[:colon], rest[colon + 1 :]


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    looks_like_host = (
        any(sign in first for sign in ".:") or first == LOCAL_DOMAIN or first != first.lower()
    )
    domain, path = (first, rest) if slash and looks_like_host else (DEFAULT_DOMAIN, name)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_NAMESPACE + path
    return domain, path


def _check_name(text: str, domain: str, path: str) -> None:
    if not text:
        raise InvalidReference("an image name must not be empty")
    if path != path.lower():
        raise _invalid(text, "a repository name must be lower case")
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{domain!r} is not a registry's host[:port]")
    if not _PATH.fullmatch(path):
        raise _invalid(
            text, "a repository name is lower-case letters and digits, single '.', '_', '-' between"
        )
    if len(domain) + 1 + len(path) > MAX_NAME_LENGTH:
        raise _invalid(text, f"a repository name has at most {MAX_NAME_LENGTH} characters")


def _invalid(text: str, why: str) -> InvalidReference:
    return InvalidReference(f"invalid reference {text!r}: {why}")
