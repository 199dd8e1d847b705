"""The flags of `run` and `create`, and their translation into the body of a create request."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

import click

from wherry.cli import isolation, limits, mounts, policies
from wherry.cli.isolation import IsolationFlags
from wherry.cli.limits import LimitFlags
from wherry.cli.mounts import MountFlags
from wherry.cli.policies import PolicyFlags
from wherry.errors import InvalidInput
from wherry.units import parse_size

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """The flags as they were given."""

    image: str
    command: tuple[str, ...]
    interactive: bool = False
    tty: bool = False
    rm: bool = False
    name: str | None = None
    env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: str | None = None
    hostname: str | None = None
    label: tuple[str, ...] = ()
    label_file: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    cidfile: str | None = None
    attach: tuple[str, ...] = ()
    memory: str | None = None
    memory_swap: str | None = None
    cpus: str | None = None
    cpu_shares: int = 0
    cpuset_cpus: str | None = None
    pids_limit: int | None = None
    shm_size: str | None = None
    network: str | None = None
    read_only: bool = False
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    stop_signal: str | None = None
    stop_timeout: int | None = None
    platform: str | None = None
    pull: str = "missing"
    quiet: bool = False
    mounts: MountFlags = field(default_factory=MountFlags)
    isolation: IsolationFlags = field(default_factory=IsolationFlags)
    policies: PolicyFlags = field(default_factory=PolicyFlags)
    limits: LimitFlags = field(default_factory=LimitFlags)

    @classmethod
    def read(cls, flags: dict[str, Any]) -> ContainerOptions:
        """Of a command's keyword arguments: flags of a kind are kept together."""
        mounts, isolation = _taken(MountFlags, flags), _taken(IsolationFlags, flags)
        policies, limits = _taken(PolicyFlags, flags), _taken(LimitFlags, flags)
        return cls(**flags, mounts=mounts, isolation=isolation, policies=policies, limits=limits)

    def body(self, *, attach: bool) -> dict[str, Any]:
        """The body of `POST /containers/create`. Raises InvalidInput for a value that is none."""
        if self.rm and self.policies.restart != "no":
            raise InvalidInput("conflicting options: cannot specify both --restart and --rm")
        return {
            "Image": self.image,
            "Cmd": list(self.command) or None,
            "Entrypoint": shlex.split(self.entrypoint) or [""]
            if self.entrypoint is not None
            else None,
            "Env": [*_file_environment(self.env_file), *map(_environment, self.env)],
            "WorkingDir": self.workdir or "",
            "User": self.user or "",
            "Hostname": self.hostname or "",
            "Labels": dict(_pair(label) for label in [*_lines(self.label_file), *self.label]),
            "ExposedPorts": {exposed_port(text): {} for text in self.expose} or None,
            "Tty": self.tty,
            "OpenStdin": self.interactive,
            "StdinOnce": self.interactive and attach and self.attaches("stdin"),
            "AttachStdin": self.interactive and attach and self.attaches("stdin"),
            "AttachStdout": attach and self.attaches("stdout"),
            "AttachStderr": attach and self.attaches("stderr"),
            "StopSignal": self.stop_signal or "",
            "StopTimeout": self.stop_timeout,
            **self.mounts.config(),
            **self.isolation.config(),
            **self.policies.config(),
            "HostConfig": {
                **self._host_config(),
                **self.mounts.host_config(),
                **self.isolation.host_config(),
                **self.policies.host_config(),
                **self.limits.host_config(),
            },
        }

    def attaches(self, stream: str) -> bool:
        """Whether this stream is asked for: all are, unless some are named."""
        return not self.attach or stream in self.attach

    def _host_config(self) -> dict[str, Any]:
        memory = parse_size(self.memory) if self.memory else 0
        return {
            "AutoRemove": self.rm,
            "NetworkMode": self.network or "default",
            "Memory": memory,
            "MemorySwap": _memory_swap(self.memory_swap),
            "NanoCpus": nano_cpus(self.cpus),
            "CpuShares": self.cpu_shares,
            "CpusetCpus": self.cpuset_cpus or "",
            "PidsLimit": self.pids_limit,
            "ShmSize": parse_size(self.shm_size) if self.shm_size else 0,
            "ReadonlyRootfs": self.read_only,
            "Privileged": self.privileged,
            "CapAdd": list(self.cap_add) or None,
            "CapDrop": list(self.cap_drop) or None,
        }


def container_options(function: _F) -> _F:
    """Decorator: adds the flags that `run` and `create` share; they arrive as keyword arguments."""
    flags = [
        click.option("-i", "--interactive", is_flag=True, help="Keep standard input open."),
        click.option("-t", "--tty", is_flag=True, help="Give the container a terminal."),
        click.option("--rm", is_flag=True, help="Remove the container when it exits."),
        click.option("--name", help="The container's name."),
        click.option("-e", "--env", multiple=True, metavar="K=V", help="Set a variable."),
        click.option("--env-file", multiple=True, metavar="FILE", help="Read variables."),
        click.option("-w", "--workdir", help="The working directory."),
        click.option("-u", "--user", help="NAME, UID, NAME:GROUP or UID:GID."),
        click.option("--entrypoint", help="Replace the image's entrypoint."),
        click.option("-h", "--hostname", help="The container's host name."),
        click.option("-l", "--label", multiple=True, metavar="K=V", help="Set a label."),
        click.option("--label-file", multiple=True, metavar="FILE", help="Read labels."),
        click.option("--expose", multiple=True, metavar="PORT[/tcp]", help="Note a port."),
        click.option("--cidfile", metavar="FILE", help="Write the container's id to a new file."),
        click.option(
            "-a",
            "--attach",
            multiple=True,
            type=click.Choice(["stdin", "stdout", "stderr"], case_sensitive=False),
            help="Attach to this stream only.",
        ),
        click.option("-m", "--memory", metavar="SIZE", help="Memory limit, as in 512m."),
        click.option("--memory-swap", metavar="SIZE", help="Memory and swap; -1: no limit."),
        click.option("--cpus", metavar="N", help="Number of CPUs, as in 1.5."),
        click.option("-c", "--cpu-shares", type=int, default=0, help="Relative CPU weight."),
        click.option("--cpuset-cpus", metavar="LIST", help="CPUs to run on, as in 0-1."),
        click.option("--pids-limit", type=int, help="Number of processes; -1: no limit."),
        click.option("--shm-size", metavar="SIZE", help="Size of /dev/shm."),
        click.option("--network", "--net", metavar="MODE", help="none (the default), host, …"),
        click.option("--read-only", is_flag=True, help="Mount the root file system read-only."),
        click.option("--privileged", is_flag=True, help="All capabilities and devices."),
        click.option("--cap-add", multiple=True, metavar="CAP", help="Add a capability."),
        click.option("--cap-drop", multiple=True, metavar="CAP", help="Drop a capability."),
        click.option("--stop-signal", metavar="SIGNAL", help="The signal that stops it."),
        click.option("--stop-timeout", type=int, metavar="SECONDS", help="Grace before a kill."),
        click.option("--platform", metavar="OS/ARCH", help="The image's platform."),
        click.option(
            "--pull",
            type=click.Choice(["missing", "always", "never"]),
            default="missing",
            show_default=True,
            help="When to fetch the image.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="No progress of fetching."),
        *mounts.FLAGS,
        *isolation.FLAGS,
        *policies.FLAGS,
        *limits.FLAGS,
    ]
    for flag in reversed(flags):
        function = flag(function)
    return function


def _taken(kind: type[_T], flags: dict[str, Any]) -> _T:
    """The flags of one kind, out of all of them."""
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: flags.pop(name) for name in names})


def process_environment(values: Sequence[str], files: Sequence[str] = ()) -> list[str]:
    """`K=V` entries from flags and files; a bare `K` takes our own environment's value."""
    return [*_file_environment(files), *map(_environment, values)]


def _environment(entry: str) -> str:
    if "=" in entry or entry not in os.environ:
        return entry
    return f"{entry}={os.environ[entry]}"


def _file_environment(files: Sequence[str]) -> list[str]:
    return [_environment(line) for line in _lines(files)]


def _lines(files: Sequence[str]) -> list[str]:
    """Of all files, without comments and empty ones."""
    entries = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"cannot read {file}: {error.strerror}") from error
        lines = [line.lstrip() for line in text.splitlines()]
        entries += [line for line in lines if line and not line.startswith("#")]
    return entries


def exposed_port(text: str) -> str:
    """`80` or `80/udp`, as the API has it. Raises InvalidInput."""
    match = re.fullmatch(r"(\d{1,5})(/(?:tcp|udp|sctp))?", text)
    if match is None or not 0 < int(match[1]) <= 65535:
        raise InvalidInput(f"invalid port: {text}", hint="as in --expose 80 or --expose 53/udp")
    return match[1] + (match[2] or "/tcp")


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _memory_swap(text: str | None) -> int:
    if text is None:
        return 0
    return -1 if text == "-1" else parse_size(text)


def nano_cpus(text: str | None) -> int:
    """`--cpus` in billionths of a CPU. Raises InvalidInput."""
    if not text:
        return 0
    try:
        count = Decimal(text)
    except InvalidOperation:
        raise InvalidInput(f"{text!r} is not a number of CPUs", hint="as in --cpus 1.5") from None
    return int(count * 1_000_000_000)
