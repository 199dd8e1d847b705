"""The OCI runtime spec (1.2) as frozen values: parsed, validated, nothing ignored.

Rules: pure; a field that Wherry does not know or not support is an error that names it, unless it
is at its default (absent, null, false, 0, "", [] or {}). What the specification wants a warning
for goes to `warn`, and is an error where nobody listens. Field names are the specification's own:
https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md and config-linux.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wherry_guest.core.capabilities import NAMES, CapabilitySets, mask_of
from wherry_guest.core.fields import Fields, SpecError
from wherry_guest.core.hooks import Hooks, parse_hooks
from wherry_guest.core.resources import Resources, read_resources
from wherry_guest.core.scheduling import (
    IoPriority,
    Scheduler,
    parse_io_priority,
    parse_personality,
    parse_scheduler,
)
from wherry_guest.core.seccomp import Filter, Filters
from wherry_guest.core.userns import IdMaps, parse_id_maps

NAMESPACE_TYPES: Final = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
PROPAGATIONS: Final = (
    "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable",
)  # fmt: skip
_CLOCKS: Final = ("monotonic", "boottime")

Warn = Callable[[str], None]
"""Takes a line about what is not as the spec asks, and goes on."""

RLIMITS: Final[Mapping[str, int]] = {
    # asm-generic/resource.h; getrlimit(2)
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class User:
    """`process.user`. `username` (resolved in the container) takes the place of uid and gid.

    `additional_groups`, our own field, are names or numbers, resolved there too.
    """

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()
    username: str = ""
    additional_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rlimit:
    """`process.rlimits[]`: `name` is the spec's (RLIMIT_NOFILE), `resource` the kernel's number."""

    name: str
    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Process:
    """`process`. `console_size` is (rows, columns)."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: User
    capabilities: CapabilitySets
    rlimits: tuple[Rlimit, ...]
    no_new_privileges: bool
    oom_score_adj: int | None
    console_size: tuple[int, int] | None
    terminal: bool
    scheduler: Scheduler | None
    io_priority: IoPriority | None


@dataclass(frozen=True, slots=True)
class Mount:
    """`mounts[]`, as written; `core.mounts` gives the options their meaning."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...]
    id_maps: IdMaps | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """`linux.devices[]`: type is c, u, b or p."""

    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Namespaces:
    """`linux.namespaces`: the new ones, and (type, path) of those to join; others stay the VM's."""

    new: frozenset[str]
    join: tuple[tuple[str, str], ...] = ()

    def path(self, kind: str) -> str | None:
        """Where the namespace to join stands, if there is one of this kind."""
        return dict(self.join).get(kind)

    def own(self, kind: str) -> bool:
        """Whether the container has its own one, new or joined."""
        return kind in self.new or self.path(kind) is not None


@dataclass(frozen=True, slots=True)
class Spec:
    """A container's whole specification.

    Args:
        id_maps: of a new user namespace; of a joined one what it has already.
        time_offsets: (clock, seconds, nanoseconds); clock: monotonic or boottime.
        propagation: `linux.rootfsPropagation`, "" when it is absent.
        seccomp: `linux.seccomp`, compiled for this machine.
    """

    process: Process
    root_path: str
    readonly_root: bool
    hostname: str
    domainname: str
    annotations: tuple[tuple[str, str], ...]
    hooks: Hooks
    mounts: tuple[Mount, ...]
    namespaces: Namespaces
    id_maps: IdMaps | None
    time_offsets: tuple[tuple[str, int, int], ...]
    devices: tuple[Device, ...]
    resources: Resources
    cgroups_path: str
    propagation: str
    personality: str | None
    sysctl: tuple[tuple[str, str], ...]
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    seccomp: Filter | None


def parse_spec(
    data: Mapping[str, Any], warn: Warn | None = None, filters: Filters | None = None
) -> Spec:
    """A runtime spec's JSON object as a `Spec`.

    Args:
        filters: where compiled seccomp profiles are remembered.

    Raises:
        SpecError: a field is wrong, missing, unknown or not supported.
    """
    spec = Fields(data, "")
    version = spec.get("ociVersion", str, "")
    if not version.startswith("1."):
        raise SpecError(f"ociVersion {version!r} is not 1.x")
    if "process" not in data:
        raise SpecError("process is missing: there is no command to run")
    root = spec.object("root")
    linux = spec.object("linux")
    parsed = Spec(
        process=_parse_process(spec.object("process"), warn),
        root_path=root.get("path", str, ""),
        readonly_root=root.get("readonly", bool, False),
        hostname=spec.get("hostname", str, ""),
        domainname=spec.get("domainname", str, ""),
        annotations=spec.pairs("annotations"),
        hooks=parse_hooks(spec.object("hooks")),
        mounts=tuple(_parse_mount(item) for item in spec.objects("mounts")),
        namespaces=_parse_namespaces(linux),
        id_maps=parse_id_maps(linux),
        time_offsets=_parse_time_offsets(linux),
        devices=tuple(_parse_device(item) for item in linux.objects("devices")),
        resources=read_resources(linux.object("resources")),
        cgroups_path=linux.get("cgroupsPath", str, ""),
        propagation=linux.get("rootfsPropagation", str, ""),
        personality=parse_personality(linux.object("personality")),
        sysctl=linux.pairs("sysctl"),
        masked_paths=linux.paths("maskedPaths"),
        readonly_paths=linux.paths("readonlyPaths"),
        seccomp=_parse_seccomp(linux, filters or Filters()),
    )
    for item in (root, linux, spec):
        item.finish()
    _check_together(parsed)
    return parsed


def parse_process(data: Mapping[str, Any], warn: Warn | None = None) -> Process:
    """A process object (of an exec) as a `Process`; raises SpecError."""
    return _parse_process(Fields(data, "process"), warn)


def _check_together(spec: Spec) -> None:
    """What single fields cannot say: namespaces that others need."""
    namespaces = spec.namespaces
    for name in ("hostname", "domainname"):
        if getattr(spec, name) and not namespaces.own("uts"):
            raise SpecError(f"{name} needs a uts namespace of the container's own")
    if "user" in namespaces.new and spec.id_maps is None:
        raise SpecError("linux.uidMappings is missing: a new user namespace needs mappings")
    if not namespaces.own("user") and spec.id_maps is not None:
        raise SpecError("linux.uidMappings needs a user namespace of the container's own")
    if spec.time_offsets and "time" not in namespaces.new:
        raise SpecError("linux.timeOffsets needs a new time namespace")
    if spec.propagation not in ("", *PROPAGATIONS):
        raise SpecError(f"linux.rootfsPropagation {spec.propagation!r} is no propagation mode")


def _parse_process(process: Fields, warn: Warn | None = None) -> Process:
    args = process.strings("args")
    if not args:
        raise SpecError(f"{process.name('args')} is empty: there is no command to run")
    cwd = process.get("cwd", str, "/")
    if not cwd.startswith("/"):
        raise SpecError(f"{process.name('cwd')} {cwd!r} is not absolute")
    size = process.object("consoleSize")
    rows, columns = size.integer("height", 0), size.integer("width", 0)
    size.finish()
    for name, what in _REFUSED.items():
        process.refuse_unless_default(name, what)
    parsed = Process(
        args=args,
        env=_checked_env(process),
        cwd=cwd,
        user=_parse_user(process.object("user")),
        capabilities=_parse_capabilities(process.object("capabilities"), warn),
        rlimits=tuple(_parse_rlimit(item) for item in process.objects("rlimits")),
        no_new_privileges=process.get("noNewPrivileges", bool, False),
        oom_score_adj=_parse_oom_score(process),
        console_size=(rows, columns) if rows and columns else None,
        terminal=process.get("terminal", bool, False),
        scheduler=parse_scheduler(process.object("scheduler")),
        io_priority=parse_io_priority(process.object("ioPriority")),
    )
    process.finish()
    return parsed


_REFUSED: Final[Mapping[str, str]] = {
    "apparmorProfile": "Wherry does without AppArmor",
    "selinuxLabel": "Wherry does without SELinux",
}


def _parse_oom_score(process: Fields) -> int | None:
    score = process.optional("oomScoreAdj")
    return None if score is None else process.integer("oomScoreAdj", 0, -1000, 1000)


def _checked_env(process: Fields) -> tuple[str, ...]:
    env = process.strings("env")
    for entry in env:
        if entry.find("=") < 1:
            raise SpecError(f"{process.name('env')} has {entry!r}, which is not NAME=value")
    return env


def _parse_user(user: Fields) -> User:
    umask = user.optional("umask")
    parsed = User(
        uid=user.integer("uid", 0, 0, 2**32 - 2),
        gid=user.integer("gid", 0, 0, 2**32 - 2),
        umask=umask,
        additional_gids=tuple(user.list("additionalGids", int)),
        username=user.get("username", str, ""),
        additional_groups=user.strings("additionalGroups"),
    )
    user.finish()
    return parsed


def _parse_capabilities(capabilities: Fields, warn: Warn | None) -> CapabilitySets:
    masks = {}
    for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        names = capabilities.strings(name)
        for capability in [entry for entry in names if entry not in NAMES]:
            words = f"{capabilities.name(name)} has {capability!r}, which is no capability"
            if warn is None:
                raise SpecError(words)
            warn(words)
        masks[name] = mask_of(entry for entry in names if entry in NAMES)
    capabilities.finish()
    return CapabilitySets(**masks)


def _parse_rlimit(item: Fields) -> Rlimit:
    name = item.get("type", str, "")
    if name not in RLIMITS:
        raise SpecError(f"{item.name('type')} {name!r} is not a resource limit")
    parsed = Rlimit(name, RLIMITS[name], item.integer("soft", 0), item.integer("hard", 0))
    item.finish()
    return parsed


def _parse_mount(item: Fields) -> Mount:
    destination = item.get("destination", str, "")
    if not destination.startswith("/"):
        raise SpecError(f"{item.name('destination')} {destination!r} is not absolute")
    options = item.strings("options")
    kind = item.get("type", str, "")
    if "bind" in options or "rbind" in options:
        kind = "bind"
    source = item.get("source", str, "")
    parsed = Mount(destination, kind, source, options, parse_id_maps(item))
    item.finish()
    return parsed


def _parse_namespaces(linux: Fields) -> Namespaces:
    new: set[str] = set()
    join: list[tuple[str, str]] = []
    for item in linux.objects("namespaces"):
        kind, path = item.get("type", str, ""), item.get("path", str, "")
        item.finish()
        if kind not in NAMESPACE_TYPES:
            raise SpecError(f"{item.name('type')} {kind!r} is no type of namespace")
        if kind in new or kind in dict(join):
            raise SpecError(f"{item.name('type')} {kind!r} stands twice")
        if not path:
            new.add(kind)
        elif kind == "mount":
            reason = "a root would change for everybody in it"
            raise SpecError(f"{item.name('path')} is not supported for 'mount': {reason}")
        elif not path.startswith("/"):
            raise SpecError(f"{item.name('path')} {path!r} is not absolute")
        else:
            join.append((kind, path))
    if "mount" not in new:
        reason = "the host's root would change"
        raise SpecError(
            f"linux.namespaces without a new mount namespace is not supported: {reason}"
        )
    return Namespaces(frozenset(new), tuple(join))


def _parse_seccomp(linux: Fields, filters: Filters) -> Filter | None:
    profile: Mapping[str, Any] = linux.get("seccomp", dict, {})
    return filters.get(profile) if profile else None


def _parse_time_offsets(linux: Fields) -> tuple[tuple[str, int, int], ...]:
    offsets = []
    for clock, item in linux.members("timeOffsets"):
        if clock not in _CLOCKS:
            raise SpecError(f"{item.path} is no clock with an offset")
        nanoseconds = item.integer("nanosecs", 0, 0, 999_999_999)
        offsets.append((clock, item.integer("secs", 0), nanoseconds))
        item.finish()
    return tuple(offsets)


def _parse_device(item: Fields) -> Device:
    kind = item.get("type", str, "")
    if kind not in ("c", "u", "b", "p"):
        raise SpecError(f"{item.name('type')} {kind!r} is not c, u, b or p")
    parsed = Device(
        path=item.get("path", str, ""),
        type=kind,
        major=item.integer("major", 0),
        minor=item.integer("minor", 0),
        mode=item.integer("fileMode", 0o666) & 0o7777,
        uid=item.integer("uid", 0),
        gid=item.integer("gid", 0),
    )
    if not parsed.path.startswith("/"):
        raise SpecError(f"{item.name('path')} {parsed.path!r} is not absolute")
    item.finish()
    return parsed
