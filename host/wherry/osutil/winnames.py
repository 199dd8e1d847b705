"""Names that Linux can have and Windows cannot. Pure.

Windows would not refuse all of them: `con` is the console wherever it stands, `a.` becomes `a`,
`a:b` is a stream of the file `a`. Source: Microsoft, Naming Files, Paths, and Namespaces.
"""

from __future__ import annotations

_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"}
)
_FORBIDDEN = frozenset('<>:"/\\|?*')


def trouble(name: str) -> str | None:
    """Why a file cannot have this name (one part of a path) on Windows; None when it can."""
    for char in name:
        if char in _FORBIDDEN or char < " ":
            return f"a name cannot have {char!r}"
    if name.endswith((".", " ")):
        return f"a name cannot end with {name[-1]!r}"
    if (stem := name.partition(".")[0].rstrip(" ")).lower() in _DEVICES:
        return f"{stem!r} is a device"
    return None
