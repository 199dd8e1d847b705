"""Routes of the engine itself: ping, version, info, events; and those that answer politely."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from wherry import __version__
from wherry.api.http import (
    API_VERSION,
    MIN_API_VERSION,
    Request,
    Response,
    Route,
    json_lines,
    json_response,
)
from wherry.api.timefmt import parse_time
from wherry.errors import NotImplementedYet, WherryError

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

_API = ".".join(map(str, API_VERSION))
_MIN_API = ".".join(map(str, MIN_API_VERSION))


async def ping(_engine: Engine, _request: Request) -> Response:
    headers = {
        "Builder-Version": "1",
        "Swarm": "inactive",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
    }
    return Response(200, b"OK", "text/plain; charset=utf-8", headers)


async def version(engine: Engine, _request: Request) -> Response:
    facts = engine.version()
    details = {
        "ApiVersion": _API,
        "Arch": facts["Arch"],
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": f"python{platform.python_version()}",
        "KernelVersion": facts["KernelVersion"],
        "MinAPIVersion": _MIN_API,
        "Os": "linux",
    }
    return json_response(
        {
            "Platform": {"Name": "Wherry"},
            "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
            "Version": __version__,
            "ApiVersion": _API,
            "MinAPIVersion": _MIN_API,
            "GitCommit": "",
            "GoVersion": details["GoVersion"],
            "Os": "linux",
            "Arch": facts["Arch"],
            "KernelVersion": facts["KernelVersion"],
            "BuildTime": "",
        }
    )


async def info(engine: Engine, _request: Request) -> Response:
    facts: dict[str, Any] = {
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "erofs"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": [],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "MemoryLimit": True,
        "SwapLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": False,
        "Debug": False,
        "OomKillDisable": False,
        "LoggingDriver": "json-file",
        "CgroupDriver": "none",
        "CgroupVersion": "2",
        "OSType": "linux",
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"]},
        "DefaultRuntime": "wherry",
        "Runtimes": {"wherry": {"path": "wherry"}},
        "Swarm": {"LocalNodeState": "inactive", "ControlAvailable": False, "RemoteManagers": None},
        "LiveRestoreEnabled": True,
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
        "Warnings": None,
        "Labels": [],
        "ExperimentalBuild": False,
    }
    if engine.containers.mapped_by_default:
        facts["SecurityOptions"].append("name=userns")  # Docker's word for a daemon that remaps
    facts.update(await asyncio.to_thread(engine.info))
    return json_response(facts)


async def events(engine: Engine, request: Request) -> Response:
    source = engine.events.subscribe(
        since_ns=parse_time(request.text("since")),
        until_ns=parse_time(request.text("until")),
        filters=request.filters(),
    )

    async def lines() -> AsyncIterator[Mapping[str, object]]:
        async for event in source:
            yield event.as_json()

    return json_lines(lines())


async def not_a_swarm(_engine: Engine, _request: Request) -> Response:
    raise WherryError(
        "This node is not a swarm manager. Wherry has no swarm mode.", http_status=503
    )


async def plugins(_engine: Engine, _request: Request) -> Response:
    return json_response([])


async def not_implemented(_engine: Engine, request: Request) -> Response:
    raise NotImplementedYet(f"{request.method} {request.path} is not implemented")


TABLE: list[Route] = [
    ("GET", "/_ping", ping),
    ("GET", "/version", version),
    ("GET", "/info", info),
    ("GET", "/events", events),
    ("GET", "/plugins", plugins),
]

_SWARM = ("swarm", "services", "tasks", "nodes", "secrets", "configs")
_LATER = (
    "auth", "build", "commit", "containers", "distribution", "exec", "grpc", "images", "networks",
    "plugins", "session", "system", "volumes",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE")

POLITE: list[Route] = [
    *((method, f"/{noun}", not_a_swarm) for noun in _SWARM for method in METHODS),
    *((method, f"/{noun}/{{rest:path}}", not_a_swarm) for noun in _SWARM for method in METHODS),
]
"""Nouns that Docker has and a single node has not."""

REST: list[Route] = [
    *((method, f"/{noun}", not_implemented) for noun in _LATER for method in METHODS),
    *((method, f"/{noun}/{{rest:path}}", not_implemented) for noun in _LATER for method in METHODS),
]
"""What Docker's API has and we do not (yet): these must stand last in the table."""
