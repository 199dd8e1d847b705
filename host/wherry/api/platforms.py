"""The query's `platform`: Docker's clients send JSON for some routes and plain text for others."""

from __future__ import annotations

import json

from wherry.api.http import Request
from wherry.errors import InvalidInput


def asked_platform(request: Request, name: str = "platform") -> str | None:
    """`os/architecture/variant`; None: not asked for. Both {os, architecture, variant} and text.

    Raises:
        InvalidInput: it is neither.
    """
    text = request.text(name)
    if not text.startswith("{"):
        return text or None
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{name} is no JSON object") from error
    parts = [str(fields.get(part) or "") for part in ("os", "architecture", "variant")]
    return "/".join(part for part in parts if part)
