"""The groups, in the order of the page. Each module: `TITLE`, and `rows(bench)`."""

from __future__ import annotations

from types import ModuleType

from . import (
    arm64,
    boot,
    commands,
    core,
    image,
    images,
    layers,
    links,
    machine,
    pull,
    store,
    streams,
)

GROUPS: dict[str, ModuleType] = {
    "image": image,
    "boot": boot,
    "machine": machine,
    "arm64": arm64,
    "layers": layers,
    "links": links,
    "pull": pull,
    "images": images,
    "store": store,
    "core": core,
    "commands": commands,
    "streams": streams,
}
