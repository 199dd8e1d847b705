"""A bundle: config.json as a spec, with the paths in it made absolute.

Rules: what is wrong with it is one line that names the file or the field; the config is kept as it
was read, so that later commands see what the container was made of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry_guest.core.fields import Fields, SpecError
from wherry_guest.core.hooks import Hooks, parse_hooks
from wherry_guest.core.spec import Spec, Warn, parse_spec
from wherry_guest.oci.errors import OciError
from wherry_guest.oci.store import CONFIG


@dataclass(frozen=True, slots=True)
class Bundle:
    """`text` is config.json's, with absolute paths; `rootfs` is absolute."""

    directory: Path
    text: bytes
    spec: Spec
    rootfs: str


def load(directory: Path, warn: Warn) -> Bundle:
    """Read the bundle in `directory`.

    Raises:
        OciError: there is none, or its config is not one, or asks for what cannot be.
    """
    try:
        directory = directory.resolve(strict=True)
    except OSError as error:
        raise OciError(f"bundle {directory}: {error.strerror}") from error
    path = directory / CONFIG
    data = read_json(path)
    if not isinstance(data, dict):
        raise OciError(f"{path} must be a JSON object")
    absolute = _absolute(data, directory)
    try:
        spec = parse_spec(absolute, warn)
    except SpecError as error:
        raise OciError(f"{path}: {error}") from error
    if not spec.root_path:
        raise OciError(f"{path}: root.path is missing")
    if not Path(spec.root_path).is_dir():
        raise OciError(f"{path}: root.path {spec.root_path} is not a directory")
    return Bundle(directory, json.dumps(absolute).encode(), spec, spec.root_path)


def read_json(path: Path) -> Any:
    """The JSON in `path`; OciError names the file and the place."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OciError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise OciError(f"{path} is not JSON: {error}") from error


def _absolute(data: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The config with root.path and the sources of bind mounts made absolute."""
    result = dict(data)
    root = data.get("root")
    if isinstance(root, Mapping) and isinstance(root.get("path"), str) and root["path"]:
        path = os.fspath((directory / root["path"]).resolve())
        result["root"] = {**root, "path": path}
    mounts = data.get("mounts")
    if isinstance(mounts, list):
        result["mounts"] = [_absolute_source(mount, directory) for mount in mounts]
    return result


def _absolute_source(mount: Any, directory: Path) -> Any:
    if not isinstance(mount, Mapping) or not isinstance(mount.get("source"), str):
        return mount
    options = mount.get("options") or []
    bind = isinstance(options, list) and ("bind" in options or "rbind" in options)
    if not (bind or mount.get("type") == "bind"):
        return mount
    return {**mount, "source": os.path.normpath(directory / mount["source"])}


def hooks_of(config: Mapping[str, Any]) -> Hooks:
    """The hooks of a stored config, which was checked at `create`."""
    return parse_hooks(Fields(config.get("hooks") or {}, "hooks"))
