"""A container as an OCI runtime spec. Pure: values in, a JSON object out.

The defaults are the reference engine's (moby: oci/defaults.go, oci/caps/defaults.go). What only the
guest can know is left to it: `root.path`, the overlay, and what a user's name means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.engine.blockio import block_io, block_io_params, check_block_io
from wherry.engine.config import CPU_PERIOD
from wherry.engine.devices import check_devices, device_params, device_rules
from wherry.engine.etc_files import check_names, hosts, resolv_conf
from wherry.engine.facts import GuestFacts, guest_machine
from wherry.engine.logdrivers import log_params
from wherry.engine.model import SHORT_ID, Container, Json
from wherry.engine.modes import check_modes, namespaces, neighbour
from wherry.engine.policies import health_params, probe_command, restart_params
from wherry.engine.process_limits import check_limits, rlimits
from wherry.engine.seccomp_profile import Kernel, container_seccomp
from wherry.engine.security import (
    check_security,
    masked_paths,
    no_new_privileges,
    readonly_paths,
    seccomp_option,
)
from wherry.engine.spec_mounts import runtime_mounts
from wherry.engine.userns import check_userns, user_namespace
from wherry.errors import InvalidInput

OCI_VERSION = "1.2.0"

INIT_ANNOTATION = "io.wherry.init"
"""docs/containers.md: what the guest's container core understands."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip
"""The 14 that Docker gives."""

_CAPABILITY_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
ALL_CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())
"""In the kernel's order (uapi/linux/capability.h)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a spec needs to know of the machine.

    Attributes:
        hostname: the VM's, for containers in its network namespace.
        dns: name servers to write to resolv.conf.
        guest: what the VM has said of itself so far.
    """

    hostname: str = "wherry"
    dns: tuple[str, ...] = ()
    guest: Callable[[], GuestFacts] = GuestFacts


def check_isolation(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> None:
    """What a create request may be refused for before an image is looked up.

    Raises:
        InvalidInput: a value is wrong, or contradicts another one.
        NotImplementedYet: it is known and not implemented.
    """
    adjusted_capabilities(host_config.get("CapAdd") or (), host_config.get("CapDrop") or ())
    check_modes(config, host_config)
    check_userns(host_config)
    check_devices(host_config)
    check_limits(host_config)
    check_block_io(host_config)
    check_security(host_config)
    check_names(config, host_config)


def start_params(
    container: Container,
    layers: Sequence[str],
    facts: Facts,
    directory: Callable[[str], str] = str,
) -> Json:
    """The parameters of the agent's `container.start` (docs/agent-calls.md).

    Args:
        layers: the diffIDs to stack, lowest first.
        directory: a volume's name to its directory's in the guest.

    Raises:
        InvalidInput: a capability's name is none.
    """
    host_config = container.host_config
    size = console_size(host_config.get("ConsoleSize"))
    other = neighbour(host_config.get("NetworkMode"))
    return {
        "id": container.id,
        "spec": runtime_spec(container, facts, directory),
        "layers": list(layers),
        "tty": container.tty,
        "open_stdin": bool(container.config.get("OpenStdin")),
        "stdin_once": bool(container.config.get("StdinOnce")),
        "files": {} if other else etc_files(container, facts),
        "files_of": other or None,
        "devices": device_params(host_config),
        "all_devices": bool(host_config.get("Privileged")),
        "block_io": block_io_params(host_config),
        "size": size if container.tty else None,
        "restart": restart_params(host_config),
        "health": _health(container, facts),
        "log": log_params(host_config),
    }


def _health(container: Container, facts: Facts) -> Json | None:
    command = probe_command(container.config)
    if command is None:
        return None
    process = exec_process(container, {"Cmd": command}, facts)
    return health_params(container.config, process)


def runtime_spec(container: Container, facts: Facts, directory: Callable[[str], str] = str) -> Json:
    """The OCI runtime spec, version 1.2. Raises InvalidInput for an unknown capability."""
    host_config = container.host_config
    own_name = host_config.get("UTSMode") != "host"
    own_users, mappings = user_namespace(container)
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(container, facts),
        "root": {"path": "rootfs", "readonly": bool(host_config.get("ReadonlyRootfs"))},
        "hostname": hostname(container, facts) if own_name else "",
        "domainname": (container.config.get("Domainname") or "") if own_name else "",
        "annotations": _annotations(host_config),
        "mounts": runtime_mounts(container, directory),
        "linux": {
            "namespaces": namespaces(host_config) + own_users,
            **mappings,
            "resources": resources(host_config) | {"devices": device_rules(host_config)},
            "sysctl": dict(host_config.get("Sysctls") or {}),
            "maskedPaths": masked_paths(host_config),
            "readonlyPaths": readonly_paths(host_config),
            "seccomp": _seccomp(host_config, facts),
        },
    }


def _seccomp(host_config: Mapping[str, Any], facts: Facts) -> Json | None:
    privileged = bool(host_config.get("Privileged"))
    held = _capabilities(host_config, privileged)["bounding"]
    guest = facts.guest()
    kernel = Kernel(guest_machine(guest), guest.kernel)
    return container_seccomp(seccomp_option(host_config), privileged, held, kernel)


def _annotations(host_config: Mapping[str, Any]) -> dict[str, str]:
    """As given; ours asks the guest for a first process that forwards signals and reaps."""
    own = {INIT_ANNOTATION: "true"} if host_config.get("Init") else {}
    return {**(host_config.get("Annotations") or {}), **own}


def exec_process(container: Container, config: Mapping[str, Any], facts: Facts) -> Json:
    """The OCI process object of an exec: the container's environment, directory and rights."""
    host_config = container.host_config
    privileged = bool(config.get("Privileged") or host_config.get("Privileged"))
    tty = bool(config.get("Tty"))
    base = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname(container, facts)}"]
    if tty:
        base.append("TERM=xterm")
    return {
        "terminal": tty,
        "user": _user(config.get("User") or container.config.get("User"), host_config),
        "args": list(config.get("Cmd") or ()),
        "env": overridden(base, container.config.get("Env") or (), config.get("Env") or ()),
        "cwd": config.get("WorkingDir") or container.config.get("WorkingDir") or "/",
        "capabilities": _capabilities(host_config, privileged),
        "rlimits": rlimits(host_config),
        "noNewPrivileges": no_new_privileges(host_config),
        "oomScoreAdj": host_config.get("OomScoreAdj") or 0,
    }


def hostname(container: Container, facts: Facts) -> str:
    """The container's host name: as configured, else the VM's where it shares that, else its id."""
    if configured := container.config.get("Hostname"):
        return str(configured)
    if "host" in (container.host_config.get("NetworkMode"), container.host_config.get("UTSMode")):
        return facts.hostname
    return container.id[:SHORT_ID]


def _process(container: Container, facts: Facts) -> Json:
    host_config = container.host_config
    base = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname(container, facts)}"]
    if container.tty:
        base.append("TERM=xterm")
    return {
        "terminal": container.tty,
        "user": _user(container.config.get("User"), host_config),
        "args": list(container.argv),
        "env": overridden(base, container.config.get("Env") or ()),
        "cwd": container.config.get("WorkingDir") or "/",
        "capabilities": _capabilities(host_config, bool(host_config.get("Privileged"))),
        "rlimits": rlimits(host_config),
        "noNewPrivileges": no_new_privileges(host_config),
        "oomScoreAdj": host_config.get("OomScoreAdj") or 0,
    }


def overridden(base: Sequence[str], *layers: Sequence[str]) -> list[str]:
    """`base` under the variables of each layer; an entry without `=` unsets its variable."""
    variables = {entry.partition("=")[0]: entry for entry in base}
    for layer in layers:
        for entry in layer:
            name, separator, _value = entry.partition("=")
            if separator:
                variables[name] = entry
            else:
                variables.pop(name, None)
    return list(variables.values())


def _user(user: str | None, host_config: Mapping[str, Any]) -> Json:
    """uid and gid 0, unless a name that the guest resolves in the container's own /etc/passwd; and
    the groups that are joined besides, which it resolves too."""
    identity: Json = {"uid": 0, "gid": 0} | ({"username": user} if user else {})
    if groups := host_config.get("GroupAdd"):
        identity["additionalGroups"] = list(groups)
    return identity


def _capabilities(host_config: Mapping[str, Any], privileged: bool) -> Json:
    names = list(
        ALL_CAPABILITIES
        if privileged
        else adjusted_capabilities(
            host_config.get("CapAdd") or (), host_config.get("CapDrop") or ()
        )
    )
    return {"bounding": names, "effective": names, "permitted": names}


def adjusted_capabilities(add: Sequence[str], drop: Sequence[str]) -> tuple[str, ...]:
    """Docker's default capabilities with `add` and `drop` applied, in the kernel's order.

    Names may lack `CAP_` and be in lower case; `ALL` is all of them. What is named in both is kept
    where it was added by name.

    Raises:
        InvalidInput: a name is none.
    """
    added, dropped = _names(add), _names(drop)
    if "ALL" in added:
        chosen = set(ALL_CAPABILITIES) - dropped
    elif "ALL" in dropped:
        chosen = set(added)
    else:
        chosen = (set(DEFAULT_CAPABILITIES) - dropped) | added
    return tuple(name for name in ALL_CAPABILITIES if name in chosen)


def _names(entries: Sequence[str]) -> set[str]:
    names = set()
    for entry in entries:
        name = entry.upper()
        if name != "ALL":
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in ALL_CAPABILITIES:
                raise InvalidInput(f'invalid capability: unknown capability: "{entry}"')
        names.add(name)
    return names


def resources(host_config: Mapping[str, Any]) -> Json:
    """The limits, as `linux.resources` without devices."""
    result: Json = {}
    memory: Json = {}
    if limit := host_config.get("Memory"):
        memory["limit"] = limit
        if swap := host_config.get("MemorySwap"):
            memory["swap"] = swap
    if reservation := host_config.get("MemoryReservation"):
        memory["reservation"] = reservation
    if memory:
        result["memory"] = memory
    if cpu := _cpu(host_config):
        result["cpu"] = cpu
    if pids := host_config.get("PidsLimit"):
        result["pids"] = {"limit": max(-1, pids)}
    if weights := block_io(host_config):
        result["blockIO"] = weights
    return result


def _cpu(host_config: Mapping[str, Any]) -> Json:
    cpu: Json = {}
    if nano := host_config.get("NanoCpus"):
        cpu |= {"period": CPU_PERIOD, "quota": nano * CPU_PERIOD // 1_000_000_000}
    if quota := host_config.get("CpuQuota"):
        cpu["quota"] = quota
    if period := host_config.get("CpuPeriod"):
        cpu["period"] = period
    if shares := host_config.get("CpuShares"):
        cpu["shares"] = shares
    if cpus := host_config.get("CpusetCpus"):
        cpu["cpus"] = cpus
    if mems := host_config.get("CpusetMems"):
        cpu["mems"] = mems
    return cpu


def console_size(size: Sequence[int] | None) -> Json | None:
    """Docker's [height, width] to the agent's size; nothing, or 0 by 0, is none."""
    if not size or len(size) != 2 or not all(size):
        return None
    return {"rows": size[0], "cols": size[1]}


def etc_files(container: Container, facts: Facts) -> dict[str, str]:
    """The texts of /etc/hosts, /etc/hostname and /etc/resolv.conf; a mount takes a file's place."""
    name, host_config = hostname(container, facts), container.host_config
    texts = {
        "hosts": hosts(host_config, name),
        "hostname": f"{name}\n",
        "resolv.conf": resolv_conf(host_config, facts.dns),
    }
    mounted = {mount.destination for mount in container.mounts}
    return {file: text for file, text in texts.items() if f"/etc/{file}" not in mounted}
