"""The groups, in the order of the page. Each module: `TITLE`, and `rows(bench)`."""

from __future__ import annotations

from types import ModuleType

from . import boot, commands, core, image, layers, pull, streams

GROUPS: dict[str, ModuleType] = {
    "image": image,
    "boot": boot,
    "layers": layers,
    "pull": pull,
    "core": core,
    "commands": commands,
    "streams": streams,
}
