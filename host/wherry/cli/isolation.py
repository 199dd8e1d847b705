"""The flags of `run` and `create` about what a container sees of the machine: devices, limits of
processes, kernel parameters, namespaces, names and name servers, security options. Text in,
HostConfig out; the one file that is read is a seccomp profile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from wherry.errors import InvalidInput

_PERMISSIONS = re.compile(r"[rwm]{1,3}")

_ALL_SYSTEM_PATHS = ("systempaths=unconfined", "systempaths:unconfined")

FLAGS = [
    click.option("--device", multiple=True, metavar="PATH[:PATH][:rwm]", help="Add a device."),
    click.option("--device-cgroup-rule", multiple=True, metavar="RULE", help="As in 'c 42:* rmw'."),
    click.option("--sysctl", multiple=True, metavar="K=V", help="Set a kernel parameter."),
    click.option("--ulimit", multiple=True, metavar="NAME=SOFT[:HARD]", help="Limit a process."),
    click.option("--group-add", multiple=True, metavar="GROUP", help="Join one more group."),
    click.option("--oom-score-adj", type=int, default=0, help="-1000 (kill it last) to 1000."),
    click.option("--init", is_flag=True, help="Run a process that forwards signals and reaps."),
    click.option("--ipc", metavar="MODE", help="private, shareable, host, none, container:NAME."),
    click.option("--pid", metavar="MODE", help="host, or container:NAME."),
    click.option("--uts", metavar="MODE", help="host."),
    click.option("--cgroupns", metavar="MODE", help="private (the default) or host."),
    click.option("--userns", metavar="MODE", help="host, private, auto[:size=N]."),
    click.option("--domainname", help="The container's domain name."),
    click.option("--dns", multiple=True, metavar="IP", help="A name server."),
    click.option("--dns-search", multiple=True, metavar="DOMAIN", help="A search domain."),
    click.option("--dns-opt", "--dns-option", multiple=True, help="An option of resolv.conf."),
    click.option("--add-host", multiple=True, metavar="NAME:IP", help="A line of /etc/hosts."),
    click.option("--security-opt", multiple=True, metavar="OPT", help="seccomp=FILE, …"),
    click.option("--annotation", multiple=True, metavar="K=V", help="An annotation of the spec."),
]


@dataclass(frozen=True, slots=True)
class IsolationFlags:
    """The flags as they were given."""

    device: tuple[str, ...] = ()
    device_cgroup_rule: tuple[str, ...] = ()
    sysctl: tuple[str, ...] = ()
    ulimit: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    oom_score_adj: int = 0
    init: bool = False
    ipc: str | None = None
    pid: str | None = None
    uts: str | None = None
    cgroupns: str | None = None
    userns: str | None = None
    domainname: str | None = None
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    annotation: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        return {"Domainname": self.domainname or ""}

    def host_config(self) -> dict[str, Any]:
        """Raises InvalidInput for what cannot be read."""
        return {
            "Devices": [parse_device(text) for text in self.device],
            "DeviceCgroupRules": list(self.device_cgroup_rule) or None,
            "Sysctls": _pairs(self.sysctl) or None,
            "Ulimits": [parse_ulimit(text) for text in self.ulimit] or None,
            "GroupAdd": list(self.group_add) or None,
            "OomScoreAdj": self.oom_score_adj,
            "Init": True if self.init else None,
            "IpcMode": self.ipc or "",
            "PidMode": self.pid or "",
            "UTSMode": self.uts or "",
            "CgroupnsMode": self.cgroupns or "",
            "UsernsMode": self.userns or "",
            "Dns": list(self.dns),
            "DnsSearch": list(self.dns_search),
            "DnsOptions": list(self.dns_opt),
            "ExtraHosts": [parse_host(text) for text in self.add_host] or None,
            **_security(self.security_opt),
            "Annotations": _pairs(self.annotation) or None,
        }


def parse_device(text: str) -> dict[str, str]:
    """`/dev/x`, `/dev/x:/dev/y`, `/dev/x:rw` or `/dev/x:/dev/y:rw`. Raises InvalidInput."""
    source, *rest = text.split(":")
    permissions = rest.pop() if rest and _PERMISSIONS.fullmatch(rest[-1]) else "rwm"
    if not source.startswith("/") or len(rest) > 1 or (rest and not rest[0].startswith("/")):
        raise InvalidInput(f"invalid device specification: {text}", hint="as in /dev/fuse:rw")
    return {
        "PathOnHost": source,
        "PathInContainer": rest[0] if rest else source,
        "CgroupPermissions": permissions,
    }


def parse_ulimit(text: str) -> dict[str, Any]:
    """`nofile=1024:2048`; one number is both; -1 is no limit. Raises InvalidInput."""
    name, equals, value = text.partition("=")
    try:
        numbers = [int(part) for part in value.split(":")]
    except ValueError:
        numbers = []
    if not (name and equals and 1 <= len(numbers) <= 2):
        raise InvalidInput(f"invalid ulimit argument: {text}", hint="as in nofile=1024:2048")
    return {"Name": name, "Soft": numbers[0], "Hard": numbers[-1]}


def parse_host(text: str) -> str:
    """`NAME:IP` or `NAME=IP`, as the API wants it: with a colon. Raises InvalidInput."""
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    if not (name and separator and address):
        raise InvalidInput(f'bad format for add-host: "{text}"', hint="as in db:192.0.2.1")
    return f"{name}:{address.removeprefix('[').removesuffix(']')}"


def _security(options: Sequence[str]) -> dict[str, Any]:
    """`systempaths=unconfined` is a matter of the client's, as with Docker's."""
    others = [_with_profile(text) for text in options if text not in _ALL_SYSTEM_PATHS]
    fields: dict[str, Any] = {"SecurityOpt": others or None}
    if len(others) < len(options):
        fields |= {"MaskedPaths": [], "ReadonlyPaths": []}
    return fields


def _with_profile(text: str) -> str:
    """The engine has other files than we: it is sent the text of a seccomp profile."""
    name, separator, value = text.partition("=") if "=" in text else text.partition(":")
    if name != "seccomp" or not separator or value in ("unconfined", "builtin"):
        return text
    try:
        profile = json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"opening seccomp profile ({value}) failed: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"seccomp profile ({value}) is not JSON: {error}") from error
    return f"seccomp={json.dumps(profile, separators=(',', ':'))}"


def _pairs(entries: Sequence[str]) -> dict[str, str]:
    return {key: value for key, _, value in (entry.partition("=") for entry in entries)}
