"""Engine values to the JSON that Docker's clients read. Pure; field names are the API's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wherry.api.fields import CONFIG, HOST_CONFIG, with_defaults
from wherry.api.timefmt import ZERO_TIME, rfc3339
from wherry.engine.mounts import LOCAL
from wherry.engine.volumes import mount_point
from wherry.units import human_duration

if TYPE_CHECKING:
    from wherry.engine.model import Container, Exec, MountPoint, Volume
    from wherry.engine.sizes import Size
    from wherry.images.store import Image


def container_inspect(
    container: Container, source: Callable[[str], str], size: Size | None = None
) -> dict[str, Any]:
    """The answer of `GET /containers/{id}/json`. `source`: a volume's directory by its name."""
    command = _command(container)
    host_config = with_defaults(HOST_CONFIG, container.host_config)
    return {
        "Id": container.id,
        "Created": rfc3339(container.created_ns),
        "Path": command[0] if command else "",
        "Args": command[1:],
        "State": _state(container),
        "Image": container.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": host_config,
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "Mounts": [_mount(mount, source) for mount in container.mounts],
        "Config": with_defaults(CONFIG, container.config),
        "NetworkSettings": _network_settings(host_config["NetworkMode"]),
        **_sizes(size),
    }


def _sizes(size: Size | None) -> dict[str, int]:
    """Only where somebody asked; what is not known is left out."""
    if size is None:
        return {}
    written = {} if size.written is None else {"SizeRw": size.written}
    return {**written, "SizeRootFs": size.root}


def _state(container: Container) -> dict[str, Any]:
    status = str(container.status.value)
    return {
        "Status": status,
        "Running": container.running,
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "OOMKilled": container.oom_killed,
        "Dead": status == "dead",
        "Pid": container.pid or 0,
        "ExitCode": container.exit_code or 0,
        "Error": container.error or "",
        "StartedAt": rfc3339(container.started_ns),
        "FinishedAt": rfc3339(container.finished_ns),
        **({"Health": _health(container.health)} if container.health else {}),
    }


def _health(health: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Status": health["status"],
        "FailingStreak": health["failing_streak"],
        "Log": [
            {
                "Start": rfc3339(result["start_ns"]),
                "End": rfc3339(result["end_ns"]),
                "ExitCode": result["exit_code"],
                "Output": result["output"],
            }
            for result in health["log"]
        ],
    }


def _network_settings(mode: str) -> dict[str, Any]:
    network = "none" if mode == "default" else mode
    endpoint = {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": None,
        "MacAddress": "",
        "DriverOpts": None,
        "GwPriority": 0,
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }
    return {
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": {},
        "EndpointID": "",
        "Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "MacAddress": "",
        "Networks": {network: endpoint},
    }


def _mount(mount: MountPoint, source: Callable[[str], str]) -> dict[str, Any]:
    """A MountPoint of the API. A volume's name and driver stand for volumes only."""
    volume = {"Name": mount.volume, "Driver": LOCAL} if mount.type == "volume" else {}
    return {
        "Type": mount.type,
        **volume,
        "Source": source(mount.volume) if volume else "",
        "Destination": mount.destination,
        "Mode": mount.mode,
        "RW": mount.writable,
        "Propagation": "",
    }


def container_summary(
    container: Container,
    source: Callable[[str], str],
    now: float | None = None,
    size: Size | None = None,
) -> dict[str, Any]:
    """An element of the answer of `GET /containers/json`. `source`: as in `container_inspect`."""
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": " ".join(_command(container)),
        "Created": container.created_ns // 1_000_000_000,
        "Ports": [],
        "Labels": container.config.get("Labels") or {},
        "State": str(container.status.value),
        "Status": status_text(container, time.time() if now is None else now),
        "HostConfig": {"NetworkMode": container.host_config.get("NetworkMode") or "default"},
        "NetworkSettings": {
            "Networks": _network_settings(container.host_config.get("NetworkMode") or "default")[
                "Networks"
            ]
        },
        "Mounts": [_mount(mount, source) for mount in container.mounts],
        **_sizes(size),
    }


def status_text(container: Container, now: float) -> str:
    """Docker's STATUS column: `Up 5 seconds (healthy)`, `Exited (0) 2 minutes ago`, `Created`."""
    status = str(container.status.value)
    if container.alive:
        up = f"Up {human_duration(now - (container.started_ns or 0) / 1e9)}"
        if status == "paused":
            return f"{up} (Paused)"
        if not container.health:
            return up
        health = container.health_status
        return f"{up} ({'health: starting' if health == 'starting' else health})"
    if status in ("exited", "restarting"):
        since = human_duration(now - (container.finished_ns or 0) / 1e9)
        return f"{status.capitalize()} ({container.exit_code}) {since} ago"
    return {"removing": "Removal In Progress"}.get(status, status.capitalize())


def _command(container: Container) -> list[str]:
    entrypoint = container.config.get("Entrypoint") or []
    return [*entrypoint, *(container.config.get("Cmd") or [])]


def exec_inspect(execution: Exec) -> dict[str, Any]:
    """The answer of `GET /exec/{id}/json`."""
    config = execution.config
    command = config.get("Cmd") or []
    return {
        "ID": execution.id,
        "Running": execution.running,
        "ExitCode": execution.exit_code,
        "ProcessConfig": {
            "tty": bool(config.get("Tty")),
            "entrypoint": command[0] if command else "",
            "arguments": command[1:],
            "privileged": bool(config.get("Privileged")),
            "user": config.get("User") or "",
        },
        "OpenStdin": bool(config.get("AttachStdin")),
        "OpenStderr": bool(config.get("AttachStderr")),
        "OpenStdout": bool(config.get("AttachStdout")),
        "CanRemove": False,
        "ContainerID": execution.container_id,
        "DetachKeys": "",
        "Pid": execution.pid or 0,
    }


def volume_inspect(volume: Volume) -> dict[str, Any]:
    """The answer of `GET /volumes/{name}`."""
    return {
        "CreatedAt": rfc3339(volume.created_ns // 1_000_000_000 * 1_000_000_000),
        "Driver": LOCAL,
        "Labels": dict(volume.labels) or None,
        "Mountpoint": mount_point(volume),
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
    }


def image_summary(image: Image, containers: int, shared: int = -1) -> dict[str, Any]:
    """An element of the answer of `GET /images/json`. `shared`: bytes in layers that other images
    have, too; -1: not asked for."""
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Created": image.created_ns // 1_000_000_000,
        "Size": image.size,
        "SharedSize": shared,
        "Labels": image.config.get("Labels") or {},
        "Containers": containers,
    }


def image_inspect(image: Image) -> dict[str, Any]:
    """The answer of `GET /images/{name}/json`."""
    return {
        "Id": image.id,
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Parent": "",
        "Comment": "",
        "Created": rfc3339(image.created_ns),
        "DockerVersion": "",
        "Author": "",
        "Config": image.config,
        "Architecture": image.architecture,
        **({"Variant": image.variant} if image.variant else {}),
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": ZERO_TIME},
    }
