"""From a spec to the list of steps that makes the container; pure, so tested on any OS.

Rules: nothing here touches the system. The order is the point; why each thing stands where it does
is said beside it. The last step is the exec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.capabilities import DropBounding, SetCapabilities
from wherry_guest.core.cgroups import SetLimit, limits
from wherry_guest.core.devices import FilterDevices, plan_devices
from wherry_guest.core.mounts import (
    EnterRoot,
    MakePrivate,
    MaskPath,
    ReadonlyPath,
    ReadonlyRoot,
    plan_binds,
    plan_mounts,
    plan_populating,
)
from wherry_guest.core.namespaces import (
    JoinContainer,
    JoinNamespace,
    NewNamespaces,
    SetDomainname,
    SetHostname,
)
from wherry_guest.core.netlink import LoopbackUp
from wherry_guest.core.overlay import mount_rootfs
from wherry_guest.core.process import (
    BeginSession,
    EnterDirectory,
    Execute,
    NoNewPrivileges,
    SetOomScore,
    SetRlimit,
    SetSysctl,
    SetUmask,
    check_sysctl,
)
from wherry_guest.core.spec import RLIMITS, Process, Rlimit, Spec, SpecError
from wherry_guest.core.tty import BindConsole, OpenTerminal, UseTerminal
from wherry_guest.core.users import BecomeUser, ResolveUser

if TYPE_CHECKING:
    from wherry_guest.core.steps import Step
    from wherry_guest.zygote import Rootfs


_UMASK: Final = 0o022
_NOFILE: Final = "RLIMIT_NOFILE"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the VM.

    Args:
        layers: the directory with the layers' mount points.
        root: an empty directory; every container's overlay is mounted there, each in its own
            mount namespace.
        cgroups: the cgroup below which every container gets its own.
        open_files: RLIMIT_NOFILE (soft, hard) where a spec has none; None: PID 1's own.
    """

    layers: str = "/run/wherry/l"
    root: str = "/run/wherry/root"
    cgroups: str = "/sys/fs/cgroup/containers"
    open_files: tuple[int, int] | None = None


def container_plan(
    spec: Spec, rootfs: Rootfs, tty: bool, cgroup: str, layout: Layout
) -> list[Step]:
    """The steps of a new container's first process, which is in `cgroup` (a path) already.

    Raises:
        SpecError: the spec asks for what cannot be.
    """
    namespaces = spec.namespaces
    for name, _ in spec.sysctl:
        check_sysctl(name, namespaces.new)
    _check_terminal(spec.process, tty)
    # oom_score_adj is written through the VM's /proc; the umask is for what is made from here on
    steps: list[Step] = [SetOomScore(spec.process.oom_score_adj), SetUmask(_UMASK)]
    steps += [SetLimit(cgroup, file, value) for file, value in limits(spec.resources)]
    if spec.resources.devices:
        steps.append(FilterDevices(cgroup, spec.resources.devices))
    steps += [JoinNamespace(kind, path) for kind, path in namespaces.join]
    steps.append(NewNamespaces(tuple(sorted(namespaces.new - {"pid"}))))
    steps.append(MakePrivate())
    if "network" in namespaces.new:
        steps.append(LoopbackUp())
    steps += [SetHostname(spec.hostname)] if spec.hostname else []
    steps += [SetDomainname(spec.domainname)] if spec.domainname else []
    steps += _root_steps(spec, rootfs, layout)
    if tty:
        steps += [OpenTerminal(spec.process.console_size), BindConsole()]
    # sysctls need /proc writable, which read-only paths end; masks come after every mount
    steps += [SetSysctl(name, value) for name, value in spec.sysctl]
    steps += [ReadonlyPath(path) for path in spec.readonly_paths]
    steps += [MaskPath(path) for path in spec.masked_paths]
    tail = _process_steps(spec.process, tty, layout, create_cwd=True)
    if spec.readonly_root:  # after the working directory was made, before the process is anybody
        position = next(i for i, step in enumerate(tail) if isinstance(step, EnterDirectory)) + 1
        tail.insert(position, ReadonlyRoot())
    return steps + tail


def exec_plan(process: Process, tty: bool, pidfd: int, layout: Layout) -> list[Step]:
    """The steps of one more process in a container; it is in cgroup and pid namespace already."""
    _check_terminal(process, tty)
    steps: list[Step] = [SetOomScore(process.oom_score_adj), SetUmask(_UMASK)]
    steps.append(JoinContainer(pidfd))
    if tty:
        steps.append(OpenTerminal(process.console_size))
    return steps + _process_steps(process, tty, layout, create_cwd=False)


def _check_terminal(process: Process, tty: bool) -> None:
    if process.terminal and not tty:
        raise SpecError("process.terminal is true, but no terminal was asked for")


def _root_steps(spec: Spec, rootfs: Rootfs, layout: Layout) -> list[Step]:
    steps: list[Step] = [*plan_binds(spec.mounts)]
    steps += [mount_rootfs(rootfs, layout.layers, layout.root), EnterRoot(layout.root)]
    steps += plan_populating(spec.mounts)
    steps += plan_mounts(spec.mounts)
    if not any(mount.destination == "/dev" and mount.type == "bind" for mount in spec.mounts):
        steps += plan_devices(spec.devices)
    elif spec.devices:
        raise SpecError("linux.devices together with a bind mount on /dev is not supported")
    return steps


def _process_steps(process: Process, tty: bool, layout: Layout, create_cwd: bool) -> list[Step]:
    user = process.user
    steps: list[Step] = [BeginSession()]
    if tty:
        steps.append(UseTerminal())
    steps += [SetRlimit(limit) for limit in _rlimits(process, layout)]
    steps.append(ResolveUser(user))
    steps.append(EnterDirectory(process.cwd, create_cwd))
    steps.append(DropBounding(process.capabilities.bounding))
    steps.append(BecomeUser())
    steps.append(SetCapabilities(process.capabilities))
    if process.no_new_privileges:
        steps.append(NoNewPrivileges())
    if user.umask is not None:
        steps.append(SetUmask(user.umask))
    steps.append(Execute(process.args, process.env))
    return steps


def _rlimits(process: Process, layout: Layout) -> list[Rlimit]:
    limits = list(process.rlimits)
    if layout.open_files is not None and all(limit.name != _NOFILE for limit in limits):
        limits.append(Rlimit(_NOFILE, RLIMITS[_NOFILE], *layout.open_files))
    return limits
