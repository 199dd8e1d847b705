"""What registries answer: bodies of bounded length, errors in their own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import urllib3

CHUNK_BYTES = 64 << 10
"""A connection that breaks loses what it has of one chunk."""

MAX_ERROR_BYTES = 64 << 10


class _ErrorItem(msgspec.Struct, frozen=True):
    code: Any = None
    message: Any = None


class _ErrorBody(msgspec.Struct, frozen=True):
    """distribution-spec 1.1, error codes; and how token services say it (Docker Hub's, OAuth 2's:
    RFC 6749 section 5.2)."""

    errors: list[_ErrorItem] = []
    details: Any = None
    error_description: Any = None
    message: Any = None


@dataclass(frozen=True, slots=True)
class Complaint:
    """An answer that is an error.

    Attributes:
        codes: the specification's (`MANIFEST_INVALID`), or what the server uses.
        words: its own words, printable, in one short line; "" when it has none.
    """

    status: int
    codes: frozenset[str]
    words: str

    def __str__(self) -> str:
        status = f"HTTP {self.status}"
        return f"{self.words} ({status})" if self.words else status


def complaint(response: urllib3.BaseHTTPResponse) -> Complaint:
    """Read the answer's body."""
    body = read_limited(response, MAX_ERROR_BYTES) or b""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Complaint(response.status, frozenset(), "")
    words = [str(it.message or it.code) for it in said.errors if it.message or it.code]
    others = (said.details, said.error_description, said.message)
    words = words or [text for text in others if isinstance(text, str)][:1]
    printable = "".join(sign if sign.isprintable() else " " for sign in "; ".join(words))
    codes = frozenset(str(item.code) for item in said.errors if item.code)
    return Complaint(response.status, codes, printable[:200])


def said(response: urllib3.BaseHTTPResponse) -> str:
    """Status and the server's own words, in one short line."""
    return str(complaint(response))


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
