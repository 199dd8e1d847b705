"""From a spec to the list of steps that makes the container; pure, so tested on any OS.

Rules: nothing here touches the system. The order is the point; why each thing stands where it does
is said beside it. The last step is the exec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.capabilities import DropBounding, SetCapabilities
from wherry_guest.core.devices import (
    ALWAYS_ALLOWED,
    FilterDevices,
    plan_devices,
    plan_taken_devices,
)
from wherry_guest.core.fields import SpecError
from wherry_guest.core.hooks import AskForHooks, HookState, NoteOuterPid, RunHooks
from wherry_guest.core.limits import SetLimit, limits
from wherry_guest.core.masks import MaskPath, ReadonlyPath
from wherry_guest.core.mounts import (
    plan_binds,
    plan_filesystems,
    plan_mounts,
    plan_populating,
    related,
)
from wherry_guest.core.namespaces import (
    BY_UNSHARE,
    HideMemory,
    JoinContainer,
    JoinNamespace,
    NewNamespaces,
    NewTimeNamespace,
    SetDomainname,
    SetHostname,
)
from wherry_guest.core.netlink import LoopbackUp
from wherry_guest.core.overlay import mount_rootfs
from wherry_guest.core.overlay_ids import MountMappedOverlay
from wherry_guest.core.process import (
    AwaitStart,
    BeginSession,
    CloseOnExec,
    EnterDirectory,
    Execute,
    FindProgram,
    NewKeyring,
    NoNewPrivileges,
    RaiseHardLimit,
    SetOomScore,
    SetRlimit,
    SetSysctl,
    SetUmask,
    check_sysctl,
)
from wherry_guest.core.root import (
    AttachRoot,
    EnterRoot,
    MakePrivate,
    ReadonlyRoot,
    SetRootPropagation,
    TakeRoot,
)
from wherry_guest.core.scheduling import SetIoPriority, SetPersonality, SetScheduler
from wherry_guest.core.seccomp import Filter, InstallFilter, kept_capabilities
from wherry_guest.core.spec import RLIMITS, Process, Rlimit, Spec
from wherry_guest.core.tty import BindConsole, OpenTerminal, UseTerminal
from wherry_guest.core.userns import (
    BecomeRootInside,
    EnterUserNamespace,
    MakeUserNamespace,
    OpenUserNamespace,
)
from wherry_guest.core.users import BecomeUser, ResolveUser
from wherry_guest.zygote import Rootfs

if TYPE_CHECKING:
    from wherry_guest.core.steps import Step

INIT_ANNOTATION: Final = "io.wherry.init"
"""`true`: the command runs under a first process that forwards signals and reaps."""

_UMASK: Final = 0o022
_NOFILE: Final = "RLIMIT_NOFILE"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the VM, and what a process gets where its spec is silent.

    Args:
        layers: the directory with the layers' mount points.
        root: an empty directory; every container's overlay is mounted there, each in its own
            mount namespace.
        cgroups: the cgroup below which every container gets its own.
        open_files: RLIMIT_NOFILE (soft, hard); None: as it is.
        oom_score_adj: None: as it is.
        basic_devices: add to a spec's device rules those that every container needs.
    """

    layers: str = "/run/wherry/l"
    root: str = "/run/wherry/root"
    cgroups: str = "/sys/fs/cgroup/containers"
    open_files: tuple[int, int] | None = None
    oom_score_adj: int | None = 0
    basic_devices: bool = False


@dataclass(frozen=True, slots=True)
class DirectoryRoot:
    """A directory (an OCI bundle's) as the root. `path` is absolute."""

    path: str


@dataclass(frozen=True, slots=True)
class Options:
    """How a process is started, beyond its spec.

    Args:
        cgroup: the cgroup's directory, which the process is in already; None: it has none.
        tty: with a terminal.
        about: what hooks are told; None: there is nobody to run those outside of the container.
        await_start: stop before the exec until somebody says so.
        pivot, keyring: False: without.
        preserved: so many descriptors beyond stdio are the process's too.
        filtered: whoever makes the process attaches its `device_filter`.
    """

    cgroup: str | None
    tty: bool = False
    about: HookState | None = None
    await_start: bool = False
    pivot: bool = True
    keyring: bool = True
    preserved: int = 0
    filtered: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How a process comes to be.

    Args:
        outside: done first by a *midwife*, with the runtime's own rights and namespaces, who then
            makes the process; empty where there is no need for one.
        inside: done by the process itself, the exec at last.
        new_pid: it is PID 1 of a new pid namespace.
        pid_namespace: the path of the one that it is born in, where no midwife joins that.
    """

    outside: tuple[Step, ...]
    inside: tuple[Step, ...]
    new_pid: bool = False
    pid_namespace: str | None = None


def container_plan(
    spec: Spec, root: Rootfs | DirectoryRoot, options: Options, layout: Layout
) -> Plan:
    """How a new container's first process comes to be.

    Raises:
        SpecError: the spec asks for what cannot be.
    """
    namespaces = spec.namespaces
    for name, _ in spec.sysctl:
        check_sysctl(name, namespaces)
    _check_terminal(spec.process, options.tty)
    if options.about is None and spec.hooks.stages:
        stage = spec.hooks.stages[0][0]
        raise SpecError(f"hooks.{stage} is not supported in the machine: nobody could run it")
    if "time" in namespaces.new or namespaces.own("user"):
        return _with_midwife(spec, root, options, layout)
    joined = [JoinNamespace(kind, path) for kind, path in namespaces.join if kind != "pid"]
    steps: list[Step] = [*_ground_steps(spec, options, layout), *joined]
    steps += _namespace_steps(spec)
    steps += _taking_steps(spec, root)
    if isinstance(root, DirectoryRoot):
        steps.append(AttachRoot(root.path))
    else:
        steps.append(mount_rootfs(root, layout.layers, layout.root))
    steps += _container_steps(spec, root, options, layout)
    pid_path = namespaces.path("pid")
    return Plan((), tuple(steps), "pid" in namespaces.new, pid_path)


def _with_midwife(
    spec: Spec, root: Rootfs | DirectoryRoot, options: Options, layout: Layout
) -> Plan:
    """Where the process must be born into what only its maker can prepare.

    All that needs the machine's own rights is done outside, before the user namespace is entered;
    paths of the machine too, since the user namespace's root might not get there.
    """
    namespaces = spec.namespaces
    outside: list[Step] = []
    inside: list[Step] = []
    ground = _ground_steps(spec, options, layout)
    joined = [JoinNamespace(k, path) for k, path in namespaces.join if k not in ("user", "pid")]
    if namespaces.own("user"):
        outside += [*ground, _user_namespace_step(spec), *_mapped_root_steps(spec, root, layout)]
        outside += joined
        inside += [BecomeRootInside(), *_namespace_steps(spec), MakePrivate()]
        inside += plan_filesystems(spec.mounts, visible=True, foreign=False)
        inside.append(AttachRoot("/"))
    else:
        inside += [*ground, *joined, *_namespace_steps(spec), *_taking_steps(spec, root)]
        if isinstance(root, DirectoryRoot):
            inside.append(AttachRoot(root.path))
        else:
            inside.append(mount_rootfs(root, layout.layers, layout.root))
    if "time" in namespaces.new:
        outside.append(NewTimeNamespace(spec.time_offsets))
    if (path := namespaces.path("pid")) is not None:
        outside.append(JoinNamespace("pid", path))
    if namespaces.own("user"):
        outside += [RaiseHardLimit(limit) for limit in spec.process.rlimits]
        outside.append(EnterUserNamespace())
    inside += _container_steps(spec, root, options, layout)
    return Plan(tuple(outside), tuple(inside), "pid" in namespaces.new)


def _ground_steps(spec: Spec, options: Options, layout: Layout) -> list[Step]:
    """What is written through the runtime's own /proc and /sys."""
    steps: list[Step] = []
    score = spec.process.oom_score_adj
    score = layout.oom_score_adj if score is None else score
    if score is not None:
        steps.append(SetOomScore(score))
    steps.append(SetUmask(_UMASK))  # for what is made from here on
    if "pid" not in spec.namespaces.new:
        steps.append(HideMemory())
    control_files = limits(spec.resources)
    if options.cgroup is None:
        if control_files:
            field = f"linux.resources.{control_files[0].field}"
            raise SpecError(f"{field} cannot be set: the container has no cgroup")
        return steps
    steps += [SetLimit(options.cgroup, limit) for limit in control_files]
    if not options.filtered and (step := device_filter(spec, options.cgroup, layout)) is not None:
        steps.append(step)
    return steps


def device_filter(spec: Spec, cgroup: str, layout: Layout) -> FilterDevices | None:
    """The step that attaches the container's device filter, if it has one."""
    if not (rules := spec.resources.devices):
        return None
    more = ALWAYS_ALLOWED if layout.basic_devices else ()
    return FilterDevices(cgroup, (*rules, *more))


def _namespace_steps(spec: Spec) -> list[Step]:
    namespaces = spec.namespaces
    steps: list[Step] = [NewNamespaces(tuple(sorted(namespaces.new & BY_UNSHARE)))]
    if "network" in namespaces.new:
        steps.append(LoopbackUp())
    steps += [SetHostname(spec.hostname)] if spec.hostname else []
    steps += [SetDomainname(spec.domainname)] if spec.domainname else []
    return steps


def _taking_steps(spec: Spec, root: Rootfs | DirectoryRoot) -> list[Step]:
    """The sources of mounts, in the container's own copy of the runtime's mount namespace.

    Mounts are made private first where nothing stays related to a source: one call for all.
    """
    early = not related(spec.mounts) and isinstance(root, Rootfs)
    steps: list[Step] = [MakePrivate()] if early else []
    steps += plan_binds(spec.mounts, shared_outside=not early, user_namespace=False)
    steps += plan_filesystems(spec.mounts, visible=False, foreign=True)
    if isinstance(root, DirectoryRoot):
        steps.append(TakeRoot(root.path, spec.propagation))
    return steps if early else [*steps, MakePrivate()]


def _user_namespace_step(spec: Spec) -> Step:
    path = spec.namespaces.path("user")
    if path is not None:
        return OpenUserNamespace(path)
    assert spec.id_maps is not None  # the spec's parser has checked it
    return MakeUserNamespace(spec.id_maps)


def _mapped_root_steps(spec: Spec, root: Rootfs | DirectoryRoot, layout: Layout) -> list[Step]:
    """Sources, device nodes and root, taken with the machine's rights, for a user namespace."""
    steps: list[Step] = [*plan_binds(spec.mounts, shared_outside=True, user_namespace=True)]
    steps += plan_filesystems(spec.mounts, visible=False, foreign=True)
    if not _dev_is_bound(spec):
        steps += plan_taken_devices(spec.devices)[0]
    if isinstance(root, DirectoryRoot):
        return [*steps, TakeRoot(root.path, spec.propagation)]
    if spec.id_maps is None:
        raise SpecError("linux.uidMappings is missing: the root's layers are mapped by it")
    steps += [NewNamespaces(("mount",)), MakePrivate()]
    mapped = MountMappedOverlay(root, layout.layers, layout.root, spec.id_maps)
    return [*steps, mapped, TakeRoot(layout.root)]


def _container_steps(
    spec: Spec, root: Rootfs | DirectoryRoot, options: Options, layout: Layout
) -> list[Step]:
    """From the mounted root to the exec."""
    in_user_namespace = spec.namespaces.own("user")
    steps: list[Step] = _early_hook_steps(spec, options)
    attached = isinstance(root, DirectoryRoot) or in_user_namespace
    steps.append(EnterRoot("" if attached else layout.root, options.pivot))
    steps += plan_populating(spec.mounts)
    steps += plan_mounts(spec.mounts, in_user_namespace)
    steps += _device_steps(spec, in_user_namespace)
    if spec.propagation:
        steps.append(SetRootPropagation(spec.propagation))
    if options.tty:
        steps += [OpenTerminal(spec.process.console_size), BindConsole()]
    # sysctls need /proc writable, which read-only paths end; masks come after every mount
    steps += [SetSysctl(name, value) for name, value in spec.sysctl]
    steps += [ReadonlyPath(path) for path in spec.readonly_paths]
    steps += [MaskPath(path) for path in spec.masked_paths]
    if spec.personality is not None:
        steps.append(SetPersonality(spec.personality))
    tail = _process_steps(spec.process, options, layout, spec.seccomp, create_cwd=True)
    if spec.readonly_root:  # after the working directory was made, before the process is anybody
        position = next(i for i, step in enumerate(tail) if isinstance(step, EnterDirectory)) + 1
        tail.insert(position, ReadonlyRoot())
    start: list[Step] = [AwaitStart()] if options.await_start else []
    if options.about is not None and (hooks := spec.hooks.at("startContainer")):
        start.append(RunHooks("startContainer", "created", hooks, options.about))
    return [*steps, *tail, *_reaper_steps(spec), *start, *_last_steps(spec.process, spec.seccomp)]


def _reaper_steps(spec: Spec) -> list[Step]:
    if dict(spec.annotations).get(INIT_ANNOTATION) != "true":
        return []
    from wherry_guest.core import reaper  # here: few containers want it, and PID 1 is small

    return [reaper.TakeReaper(reaper.program())]


def _early_hook_steps(spec: Spec, options: Options) -> list[Step]:
    """Hooks that come before the old root is gone."""
    about = options.about
    if about is None:
        return []
    steps: list[Step] = []
    if spec.hooks.any(("createContainer", "startContainer")):
        steps.append(NoteOuterPid())
    if spec.hooks.any(("prestart", "createRuntime")):
        steps.append(AskForHooks())
    if hooks := spec.hooks.at("createContainer"):
        steps.append(RunHooks("createContainer", "creating", hooks, about))
    return steps


def _dev_is_bound(spec: Spec) -> bool:
    return any(mount.destination == "/dev" and mount.type == "bind" for mount in spec.mounts)


def _device_steps(spec: Spec, in_user_namespace: bool) -> list[Step]:
    if _dev_is_bound(spec):
        if spec.devices:
            raise SpecError("linux.devices together with a bind mount on /dev is not supported")
        return []
    if in_user_namespace:
        return list(plan_taken_devices(spec.devices)[1])
    return list(plan_devices(spec.devices))


def exec_plan(
    process: Process,
    options: Options,
    pidfd: int,
    layout: Layout,
    user_namespace: bool = False,
    personality: str | None = None,
    seccomp: Filter | None = None,
) -> Plan:
    """One more process in a container; it is in cgroup and pid namespace already.

    Args:
        user_namespace, personality, seccomp: as the container has them.
    """
    _check_terminal(process, options.tty)
    steps: list[Step] = []
    score = layout.oom_score_adj if process.oom_score_adj is None else process.oom_score_adj
    if score is not None:
        steps.append(SetOomScore(score))
    # The container's processes see this one from now on, and must not look into it.
    if user_namespace:
        steps += [RaiseHardLimit(limit) for limit in process.rlimits]
    steps += [SetUmask(_UMASK), HideMemory(), JoinContainer(pidfd, user_namespace)]
    if user_namespace:
        steps.append(BecomeRootInside())
    if options.tty:
        steps.append(OpenTerminal(process.console_size))
    if personality is not None:
        steps.append(SetPersonality(personality))
    steps += _process_steps(process, options, layout, seccomp, create_cwd=False)
    return Plan((), (*steps, *_last_steps(process, seccomp)))


def _check_terminal(process: Process, tty: bool) -> None:
    if process.terminal and not tty:
        raise SpecError("process.terminal is true, but no terminal was asked for")


def _process_steps(
    process: Process, options: Options, layout: Layout, seccomp: Filter | None, create_cwd: bool
) -> list[Step]:
    """Who it is and what it may do; all but what comes last."""
    user = process.user
    steps: list[Step] = [BeginSession()]
    if options.keyring:
        steps.append(NewKeyring())
    if options.tty:
        steps.append(UseTerminal())
    steps += [SetRlimit(limit) for limit in _rlimits(process, layout)]
    # these need rights that the process itself may not have
    steps += [SetScheduler(process.scheduler)] if process.scheduler is not None else []
    steps += [SetIoPriority(process.io_priority)] if process.io_priority is not None else []
    steps.append(ResolveUser(user))
    steps.append(EnterDirectory(process.cwd, create_cwd))
    steps.append(DropBounding(process.capabilities.bounding))
    steps.append(BecomeUser())
    kept = kept_capabilities(seccomp, process.no_new_privileges)
    steps.append(SetCapabilities(process.capabilities, kept))
    if process.no_new_privileges:
        steps.append(NoNewPrivileges())
    if user.umask is not None:
        steps.append(SetUmask(user.umask))
    steps.append(FindProgram(process.args[0], process.env))
    steps.append(CloseOnExec(options.preserved))
    return steps


def _last_steps(process: Process, seccomp: Filter | None) -> list[Step]:
    """The filter as late as can be: it should not have to allow what a runtime does."""
    steps: list[Step] = []
    if seccomp is not None:
        caps = process.capabilities
        steps.append(InstallFilter(seccomp, caps, process.no_new_privileges))
    return [*steps, Execute(process.args, process.env)]


def _rlimits(process: Process, layout: Layout) -> list[Rlimit]:
    limits = list(process.rlimits)
    if layout.open_files is not None and all(limit.name != _NOFILE for limit in limits):
        limits.append(Rlimit(_NOFILE, RLIMITS[_NOFILE], *layout.open_files))
    return limits
