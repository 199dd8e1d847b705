"""The OCI runtime spec (1.2) as frozen values: parsed, validated, nothing ignored.

Rules: pure; a field that Wherry does not know or not support is an error that names it, unless it
is at its default (absent, null, false, 0, "", [] or {}). Field names are the specification's own:
https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md and config-linux.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from wherry_guest.core.capabilities import CapabilitySets, mask_of

T = TypeVar("T")

NAMESPACE_TYPES: Final = ("cgroup", "ipc", "mount", "network", "pid", "uts")
_ALWAYS_NEW: Final = ("mount", "pid")
_JOINABLE: Final = ("ipc", "network", "uts")

RLIMITS: Final[Mapping[str, int]] = {
    # asm-generic/resource.h; getrlimit(2)
    "RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}  # fmt: skip


class SpecError(Exception):
    """The spec is wrong, or asks for what is not supported; the message names the field."""


@dataclass(frozen=True, slots=True)
class User:
    """`process.user`. `username` (resolved in the container) takes the place of uid and gid."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()
    username: str = ""


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
    oom_score_adj: int
    console_size: tuple[int, int] | None
    terminal: bool


@dataclass(frozen=True, slots=True)
class Mount:
    """`mounts[]`, as written; `core.mounts` gives the options their meaning."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...]


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
class DeviceRule:
    """`linux.resources.devices[]`: type a, b or c; None: every number."""

    allow: bool
    type: str
    major: int | None
    minor: int | None
    access: str


@dataclass(frozen=True, slots=True)
class Resources:
    """`linux.resources` in the spec's (cgroup v1's) terms; bytes; -1: no limit, None: unset."""

    memory_limit: int | None = None
    memory_reservation: int | None = None
    memory_swap: int | None = None
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpus: str = ""
    mems: str = ""
    pids_limit: int | None = None
    devices: tuple[DeviceRule, ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Namespaces:
    """`linux.namespaces`: the new ones, and (type, path) of those to join; others stay the VM's."""

    new: frozenset[str]
    join: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """A container's whole specification."""

    process: Process
    readonly_root: bool
    hostname: str
    domainname: str
    mounts: tuple[Mount, ...]
    namespaces: Namespaces
    devices: tuple[Device, ...]
    resources: Resources
    sysctl: tuple[tuple[str, str], ...]
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]


def parse_spec(data: Mapping[str, Any]) -> Spec:
    """A runtime spec's JSON object as a `Spec`.

    Raises:
        SpecError: a field is wrong, missing, unknown or not supported.
    """
    spec = _Object(data, "")
    version = spec.get("ociVersion", str, "")
    if not version.startswith("1."):
        raise SpecError(f"ociVersion {version!r} is not 1.x")
    process = _parse_process(spec.object("process"))
    root = spec.object("root")
    root.get("path", str, "")  # the rootfs comes with the request
    spec.get("annotations", dict, {})  # the specification: unknown ones must be ignored
    linux = spec.object("linux")
    parsed = Spec(
        process=process,
        readonly_root=root.get("readonly", bool, False),
        hostname=spec.get("hostname", str, ""),
        domainname=spec.get("domainname", str, ""),
        mounts=tuple(_parse_mount(item) for item in spec.objects("mounts")),
        namespaces=_parse_namespaces(linux),
        devices=tuple(_parse_device(item) for item in linux.objects("devices")),
        resources=_parse_resources(linux.object("resources")),
        sysctl=linux.pairs("sysctl"),
        masked_paths=linux.paths("maskedPaths"),
        readonly_paths=linux.paths("readonlyPaths"),
    )
    linux.get("cgroupsPath", str, "")  # the cgroup comes with the request
    if linux.get("rootfsPropagation", str, "") not in ("", "private", "rprivate"):
        raise SpecError("linux.rootfsPropagation is supported as private only")
    for item in (root, linux, spec):
        item.finish()
    _check_uts(parsed)
    return parsed


def parse_process(data: Mapping[str, Any]) -> Process:
    """A process object (of an exec) as a `Process`; raises SpecError."""
    return _parse_process(_Object(data, "process"))


def _check_uts(spec: Spec) -> None:
    named = [name for name in ("hostname", "domainname") if getattr(spec, name)]
    if named and "uts" not in spec.namespaces.new:
        raise SpecError(f"{named[0]} needs a new uts namespace")


def _parse_process(process: _Object) -> Process:
    args = process.strings("args")
    if not args:
        raise SpecError(f"{process.name('args')} is empty: there is no command to run")
    cwd = process.get("cwd", str, "/")
    if not cwd.startswith("/"):
        raise SpecError(f"{process.name('cwd')} {cwd!r} is not absolute")
    size = process.object("consoleSize")
    rows, columns = size.integer("height", 0), size.integer("width", 0)
    size.finish()
    parsed = Process(
        args=args,
        env=_checked_env(process),
        cwd=cwd,
        user=_parse_user(process.object("user")),
        capabilities=_parse_capabilities(process.object("capabilities")),
        rlimits=tuple(_parse_rlimit(item) for item in process.objects("rlimits")),
        no_new_privileges=process.get("noNewPrivileges", bool, False),
        oom_score_adj=process.integer("oomScoreAdj", 0, -1000, 1000),
        console_size=(rows, columns) if rows and columns else None,
        terminal=process.get("terminal", bool, False),
    )
    process.finish()
    return parsed


def _checked_env(process: _Object) -> tuple[str, ...]:
    env = process.strings("env")
    for entry in env:
        if entry.find("=") < 1:
            raise SpecError(f"{process.name('env')} has {entry!r}, which is not NAME=value")
    return env


def _parse_user(user: _Object) -> User:
    umask = user.optional("umask")
    parsed = User(
        uid=user.integer("uid", 0, 0, 2**32 - 2),
        gid=user.integer("gid", 0, 0, 2**32 - 2),
        umask=umask,
        additional_gids=tuple(user.list("additionalGids", int)),
        username=user.get("username", str, ""),
    )
    user.finish()
    return parsed


def _parse_capabilities(capabilities: _Object) -> CapabilitySets:
    masks = {}
    for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        try:
            masks[name] = mask_of(capabilities.strings(name))
        except KeyError as error:
            field = capabilities.name(name)
            raise SpecError(f"{field} has {error.args[0]!r}, which is no capability") from error
    capabilities.finish()
    return CapabilitySets(**masks)


def _parse_rlimit(item: _Object) -> Rlimit:
    name = item.get("type", str, "")
    if name not in RLIMITS:
        raise SpecError(f"{item.name('type')} {name!r} is not a resource limit")
    parsed = Rlimit(name, RLIMITS[name], item.integer("soft", 0), item.integer("hard", 0))
    item.finish()
    return parsed


def _parse_mount(item: _Object) -> Mount:
    destination = item.get("destination", str, "")
    if not destination.startswith("/"):
        raise SpecError(f"{item.name('destination')} {destination!r} is not absolute")
    options = item.strings("options")
    kind = item.get("type", str, "")
    if "bind" in options or "rbind" in options:
        kind = "bind"
    parsed = Mount(destination, kind, item.get("source", str, ""), options)
    item.finish()
    return parsed


def _parse_namespaces(linux: _Object) -> Namespaces:
    new: set[str] = set()
    join: list[tuple[str, str]] = []
    for item in linux.objects("namespaces"):
        kind, path = item.get("type", str, ""), item.get("path", str, "")
        item.finish()
        if kind not in NAMESPACE_TYPES:
            raise SpecError(f"{item.name('type')} {kind!r} is not supported")
        if kind in new or kind in dict(join):
            raise SpecError(f"{item.name('type')} {kind!r} stands twice")
        if not path:
            new.add(kind)
        elif kind in _JOINABLE:
            join.append((kind, path))
        else:
            raise SpecError(f"{item.name('path')} is not supported for {kind!r}")
    for kind in _ALWAYS_NEW:
        if kind not in new:
            raise SpecError(f"linux.namespaces without a new {kind} namespace is not supported")
    return Namespaces(frozenset(new), tuple(join))


def _parse_device(item: _Object) -> Device:
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


def _parse_resources(resources: _Object) -> Resources:
    memory, cpu, pids = (resources.object(name) for name in ("memory", "cpu", "pids"))
    memory.get("checkBeforeUpdate", bool, False)  # limits are set once, on an empty cgroup
    parsed = Resources(
        memory_limit=memory.optional("limit"),
        memory_reservation=memory.optional("reservation"),
        memory_swap=memory.optional("swap"),
        cpu_shares=cpu.optional("shares"),
        cpu_quota=cpu.optional("quota"),
        cpu_period=cpu.optional("period"),
        cpus=cpu.get("cpus", str, ""),
        mems=cpu.get("mems", str, ""),
        pids_limit=pids.optional("limit"),
        devices=tuple(_parse_device_rule(item) for item in resources.objects("devices")),
        unified=resources.pairs("unified"),
    )
    for item in (memory, cpu, pids, resources):
        item.finish()
    return parsed


def _parse_device_rule(item: _Object) -> DeviceRule:
    kind = item.get("type", str, "") or "a"
    access = item.get("access", str, "") or "rwm"
    if kind not in ("a", "b", "c") or not set(access) <= set("rwm"):
        raise SpecError(f"{item.name('type')} {kind!r} with access {access!r} is not a device rule")
    numbers = [item.optional(name) for name in ("major", "minor")]
    major, minor = (None if number in (None, -1) else number for number in numbers)
    parsed = DeviceRule(item.get("allow", bool, False), kind, major, minor, access)
    item.finish()
    return parsed


class _Object:
    """A JSON object that is read field by field and complains about what was not read."""

    __slots__ = ("_data", "_path", "_seen")

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, Mapping):
            raise SpecError(f"{path or 'the spec'} must be an object")
        self._data = data
        self._path = path
        self._seen: set[str] = set()

    def name(self, field: str) -> str:
        return f"{self._path}.{field}" if self._path else field

    def get(self, field: str, kind: type[T], default: T) -> T:
        self._seen.add(field)
        value = self._data.get(field)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SpecError(f"{self.name(field)} must be of type {_JSON_TYPES[kind]}")
        return value

    def integer(self, field: str, default: int, low: int = -(2**63), high: int = 2**64 - 1) -> int:
        value = self.get(field, int, default)
        if not low <= value <= high:
            raise SpecError(f"{self.name(field)} {value} is not from {low} to {high}")
        return value

    def optional(self, field: str) -> int | None:
        return None if self._data.get(field) is None else self.integer(field, 0)

    def object(self, field: str) -> _Object:
        return _Object(self.get(field, dict, {}), self.name(field))

    def objects(self, field: str) -> list[_Object]:
        items = self.get(field, list, [])
        return [_Object(item, f"{self.name(field)}[{index}]") for index, item in enumerate(items)]

    def list(self, field: str, kind: type[T]) -> list[T]:
        items: list[Any] = self.get(field, list, [])
        for item in items:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise SpecError(f"{self.name(field)} must hold {_JSON_TYPES[kind]}s only")
        return items

    def strings(self, field: str) -> tuple[str, ...]:
        items = self.list(field, str)
        for item in items:
            if "\0" in item:
                raise SpecError(f"{self.name(field)} has a NUL byte in {item!r}")
        return tuple(items)

    def paths(self, field: str) -> tuple[str, ...]:
        for path in (items := self.strings(field)):
            if not path.startswith("/"):
                raise SpecError(f"{self.name(field)} has {path!r}, which is not absolute")
        return items

    def pairs(self, field: str) -> tuple[tuple[str, str], ...]:
        items = self.get(field, dict, {})
        for key, value in items.items():
            if not isinstance(value, str):
                raise SpecError(f"{self.name(field)}.{key} must be a string")
        return tuple(items.items())

    def refuse(self, field: str) -> None:
        raise SpecError(f"{self.name(field)} is not supported")

    def finish(self) -> None:
        """Complain about the first field that nobody read and that is not at its default."""
        for field, value in self._data.items():
            if field not in self._seen and value not in (None, False, 0, "", [], {}):
                self.refuse(field)


_JSON_TYPES: Final[Mapping[Any, str]] = {
    str: "string", int: "integer", bool: "boolean", dict: "object", list: "array",
}  # fmt: skip
