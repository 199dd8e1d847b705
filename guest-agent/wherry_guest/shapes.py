"""A runtime spec in two parts: its *shape*, which many containers share, and the *values* in it.

Between the agent and PID 1 (`wherry_guest.zygote`) a shape goes once, and then by a number: most of
a spec is the same each time, and what PID 1 has made of a shape it can use again. Pure; whatever is
not as expected stays in the shape, for the spec's parser to complain about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SHAPES: Final = 8
"""So many shapes PID 1 remembers, by numbers from 0; its first message says so."""

_BINDS: Final = ("bind", "rbind")


@dataclass(frozen=True, slots=True)
class Values:
    """What differs between processes of one shape; empty where the shape has it, or nobody.

    Args:
        sources: of the bind mounts, in their order.
    """

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    hostname: str = ""
    sources: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def split_spec(spec: Mapping[str, Any]) -> tuple[dict[str, Any], Values]:
    """A spec as its shape and its values. `spec` is not changed."""
    shape, process = dict(spec), spec.get("process")
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    if isinstance(process, dict):
        shape["process"], values = split_process(process)
        args, env = values.args, values.env
    hostname = spec.get("hostname")
    if isinstance(hostname, str):
        shape["hostname"] = None
    else:
        hostname = ""
    mounts, sources = spec.get("mounts"), []
    if isinstance(mounts, list):
        shape["mounts"] = mounts = list(mounts)
        for index, mount in enumerate(mounts):
            if _is_bind(mount):
                sources.append(mount["source"])
                mounts[index] = {**mount, "source": None}
    return shape, Values(args, env, hostname, tuple(sources))


def join_spec(shape: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """The spec that was split. `shape` is not changed."""
    spec, process = dict(shape), shape.get("process")
    if isinstance(process, dict):
        spec["process"] = join_process(process, values)
    if values.hostname:
        spec["hostname"] = values.hostname
    mounts, sources = shape.get("mounts"), iter(values.sources)
    if isinstance(mounts, list) and values.sources:
        spec["mounts"] = [
            {**mount, "source": next(sources)} if _was_bind(mount) else mount for mount in mounts
        ]
    return spec


def split_process(process: Mapping[str, Any]) -> tuple[dict[str, Any], Values]:
    """The same for a process object."""
    shape = dict(process)
    args, env = _strings(process.get("args")), _strings(process.get("env"))
    if args:
        shape["args"] = None
    if env:
        shape["env"] = None
    return shape, Values(args, env)


def join_process(shape: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """The process object that was split."""
    process = dict(shape)
    for name, value in (("args", values.args), ("env", values.env)):
        if value:
            process[name] = list(value)
    return process


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return ()


def _is_bind(mount: object) -> bool:
    return _names_bind(mount) and isinstance(mount["source"], str)  # type: ignore[index]  # a dict


def _was_bind(mount: object) -> bool:
    return _names_bind(mount) and mount["source"] is None  # type: ignore[index]  # a dict


def _names_bind(mount: object) -> bool:
    if not isinstance(mount, dict) or "source" not in mount:
        return False
    options = mount.get("options")
    return mount.get("type") == "bind" or (
        isinstance(options, list) and any(word in options for word in _BINDS)
    )
