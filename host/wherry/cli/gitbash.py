"""Git Bash and MSYS2 make Windows paths of arguments that look like Linux ones: what to say of it.

Source: MSYS2, Filesystem Paths, "Automatic Unix to Windows path conversion". Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_ITS_ROOT = re.compile(r"[A-Za-z]:[\\/](?:Program Files[\\/])?(?:Git|msys64|msys2)[\\/][^;]*")
"""Where they are installed: `/data` becomes `C:/Program Files/Git/data`."""


def rewritten_hint(arguments: Iterable[str], environ: Mapping[str, str]) -> str | None:
    """The next step for who typed `/data` in such a shell; None: nothing was rewritten."""
    if "MSYSTEM" not in environ:
        return None
    found = next(filter(None, map(_ITS_ROOT.search, arguments)), None)
    if found is None:
        return None
    return (
        f"this shell has made {found[0]!r} of a path: set MSYS_NO_PATHCONV=1,"
        " or begin the path with // (as in //data)"
    )
