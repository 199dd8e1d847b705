"""Plans with a midwife, hooks, propagation, id-mapped mounts; and every call failing. On any OS."""

from __future__ import annotations

import copy
import errno
import os
import stat
from typing import Any

import pytest
from recording_kernel import RecordingKernel
from test_core_plan import ROOTFS, SPEC, fake_kernel

from wherry_guest.core.devices import DEFAULT_DEVICES
from wherry_guest.core.fields import SpecError
from wherry_guest.core.hooks import HookState
from wherry_guest.core.plan import DirectoryRoot, Layout, Options, Plan, container_plan
from wherry_guest.core.spec import parse_spec
from wherry_guest.core.steps import State, Step, StepFailed, run
from wherry_guest.core.syscalls import (
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    FileStatus,
)

CGROUP = "/sys/fs/cgroup/containers/c"
RANGES = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
ABOUT = HookState("id", "/bundle", (("key", "value"),))


def spec(**changes: Any) -> dict[str, Any]:
    """The plan tests' spec; names of `changes` have `__` for a dot."""
    data = copy.deepcopy(SPEC)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = data
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = value
    return data


def mapped(*more: str, **changes: Any) -> dict[str, Any]:
    data = spec(linux__uidMappings=RANGES, linux__gidMappings=RANGES, **changes)
    data["linux"]["namespaces"] += [{"type": kind} for kind in ("user", *more)]
    return data


def plan(data: dict[str, Any], root: Any = ROOTFS, **options: Any) -> Plan:
    given = {"cgroup": CGROUP, "about": ABOUT} | options
    return container_plan(parse_spec(data), root, Options(**given), Layout())


def with_devices(kernel: RecordingKernel) -> RecordingKernel:
    """A kernel whose machine has the default device nodes."""
    nodes = {
        it.path: FileStatus(stat.S_IFCHR | it.mode, it.major, it.minor) for it in DEFAULT_DEVICES
    }
    kernel.statuses = {**kernel.statuses, **nodes}
    return kernel


def calls(steps: tuple[Step, ...], state: State | None = None) -> RecordingKernel:
    kernel = with_devices(fake_kernel())
    run(steps, kernel, state or State(user_namespace=None, ask=lambda request: None))
    return kernel


def test_without_user_and_time_namespaces_there_is_no_midwife() -> None:
    made = plan(spec())
    assert made.outside == () and made.new_pid


def test_the_user_namespace_is_entered_last_of_all_outside() -> None:
    state = State()
    kernel = calls(plan(mapped("time")).outside, state)
    assert kernel.calls[-1][0] == "setns" and kernel.calls[-1][2] == CLONE_NEWUSER
    assert state.root is not None and state.user_namespace is None


def test_limits_and_sources_are_taken_with_the_machines_rights() -> None:
    outside, inside = both(plan(mapped()))
    assert (f"{CGROUP}/memory.max", str(1 << 26)) in outside.arguments("write")
    assert ("/run/hosts", True, -100) in outside.arguments("open_tree")
    assert not any("cgroup" in str(args) for args in inside.arguments("write"))
    assert not any(args[0] == "/run/hosts" for args in inside.arguments("open_tree"))


def both(made: Plan) -> tuple[RecordingKernel, RecordingKernel]:
    """What is done outside, and what inside, by one kernel with one state."""
    kernel, state = with_devices(fake_kernel()), State(ask=lambda request: None)
    run(made.outside, kernel, state)
    done = len(kernel.calls)
    run(made.inside, kernel, state)
    outside, inside = RecordingKernel(), RecordingKernel()
    outside.calls, inside.calls = kernel.calls[:done], kernel.calls[done:]
    return outside, inside


def test_layers_are_mapped_and_overlayfs_has_a_mapped_mounter() -> None:
    kernel = calls(plan(mapped()).outside)
    overlay = next(call for call in kernel.calls if call[0] == "mount" and call[3] == "overlay")
    at = kernel.calls.index(overlay)
    assert kernel.arguments("set_id_map") != []
    assert ("set_file_ids", 100_000, 100_000) in kernel.calls[:at]
    assert ("set_file_ids", 0, 0) in kernel.calls[at:]
    assert "lowerdir=0:1" in overlay[5] and "upperdir=/run/wherry/root/rw/upper" in overlay[5]


def test_maps_are_written_from_outside() -> None:
    kernel = calls(plan(mapped()).outside)
    written = dict(kernel.arguments("write"))
    (uid_map,) = (text for path, text in written.items() if path.endswith("/uid_map"))
    assert uid_map == "0 100000 65536\n"


def test_inside_the_process_becomes_root_before_anything_else() -> None:
    _, kernel = both(plan(mapped()))
    assert [call[0] for call in kernel.calls[:3]] == ["setgroups", "setgid", "setuid"]


def test_proc_is_opened_while_an_old_one_can_be_seen() -> None:
    _, kernel = both(plan(mapped()))
    names = kernel.names()
    assert names.index("fsopen") < names.index("pivot_root") < names.index("execve")


def test_no_node_is_made_in_a_user_namespace() -> None:
    outside, inside = both(plan(mapped()))
    assert "mknod" not in inside.names()
    assert ("/dev/null", False, -100) in outside.arguments("open_tree")


def test_a_joined_user_namespace_is_opened_not_made() -> None:
    data = mapped()
    data["linux"]["namespaces"][-1]["path"] = "/proc/5/ns/user"
    kernel = calls(plan(data).outside)
    assert ("/proc/5/ns/user", os.O_RDONLY) in kernel.arguments("open")
    assert not any(str(args[0]).endswith("uid_map") for args in kernel.arguments("write"))


def test_time_offsets_are_written_before_the_process_is_born() -> None:
    data = spec(linux__timeOffsets={"monotonic": {"secs": -5, "nanosecs": 7}})
    data["linux"]["namespaces"].append({"type": "time"})
    kernel = calls(plan(data).outside)
    assert kernel.calls == [
        ("unshare", CLONE_NEWTIME),
        ("write", "/proc/self/timens_offsets", "monotonic -5 7\n"),
    ]


def test_a_pid_namespace_by_path_is_where_the_process_is_born() -> None:
    data = spec()
    data["linux"]["namespaces"][0]["path"] = "/proc/5/ns/pid"
    made = plan(data)
    assert (made.new_pid, made.pid_namespace) == (False, "/proc/5/ns/pid")
    assert ("prctl", 4, 0) in calls(made.inside).calls  # not to be looked into by its neighbours


# Hooks.


def test_hooks_stand_where_the_specification_puts_them() -> None:
    hook = [{"path": "/hook"}]
    stages = ("prestart", "createRuntime", "createContainer", "startContainer")
    made = plan(spec(hooks=dict.fromkeys(stages, hook)), await_start=True)
    words = [step.describe() for step in made.inside]
    order = ["run the hooks outside of the container", "run hooks.createContainer",
             "make /run/wherry/root the root", "wait for the start", "run hooks.startContainer",
             "exec '/bin/app'"]  # fmt: skip
    positions = [len(words) - 1 - words[::-1].index(word) for word in order]
    assert positions == sorted(positions)
    assert positions[-1] == len(words) - 1


def test_hooks_need_somebody_who_runs_them() -> None:
    with pytest.raises(SpecError, match=r"hooks.poststop is not supported in the machine"):
        plan(spec(hooks={"poststop": [{"path": "/hook"}]}), about=None)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"path": "relative"}, r"hooks.prestart\[0\].path 'relative' is not absolute"),
        ({"path": "/x", "timeout": 0}, r"hooks.prestart\[0\].timeout 0 is not above 0"),
        ({"path": "/x", "nonsense": 1}, r"hooks.prestart\[0\].nonsense is not supported"),
    ],
)
def test_hooks_that_are_none(hook: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(spec(hooks={"prestart": [hook]}))


# A directory as the root; propagation.


def bind(*options: str, **more: Any) -> list[dict[str, Any]]:
    mount = {"destination": "/x", "type": "bind", "source": "/src", "options": list(options)}
    return [{**mount, **more}]


def test_a_directory_root_is_taken_before_mounts_become_private_and_attached_there() -> None:
    kernel = calls(plan(spec(), DirectoryRoot("/bundle/rootfs")).inside)
    taken = kernel.calls.index(("open_tree", "/bundle/rootfs", True, -100))
    private = kernel.calls.index(("mount", None, "/", None, 0x4000 | MS_PRIVATE, None))
    attached = next(at for at, call in enumerate(kernel.calls) if call[-1] == "/bundle/rootfs")
    assert taken < private < attached < kernel.names().index("pivot_root")


def test_what_names_no_propagation_is_private() -> None:
    kernel = calls(plan(spec(mounts=bind("bind")), DirectoryRoot("/r")).inside)
    assert {args[3] for args in kernel.arguments("set_propagation")} == {MS_PRIVATE}


@pytest.mark.parametrize(("mode", "flag"), [("rslave", MS_SLAVE), ("rshared", MS_SHARED)])
def test_a_related_bind_is_taken_before_mounts_become_private(mode: str, flag: int) -> None:
    kernel = calls(plan(spec(mounts=bind("rbind", mode))).inside)
    taken = kernel.calls.index(("open_tree", "/src", True, -100))
    assert taken < kernel.calls.index(("mount", None, "/", None, 0x4000 | MS_PRIVATE, None))
    assert any(args[2:] == (True, flag) for args in kernel.arguments("set_propagation"))


def test_the_roots_propagation_is_set_in_the_container() -> None:
    kernel = calls(plan(spec(linux__rootfsPropagation="rshared")).inside)
    change = kernel.calls.index(("set_propagation", -100, "/", True, MS_SHARED))
    assert kernel.names().index("pivot_root") < change


def test_recursive_flags_are_set_on_all_mounts_below() -> None:
    kernel = calls(plan(spec(mounts=bind("rbind", "rro", "nosuid"))).inside)
    changes = [args[2:] for args in kernel.arguments("mount_setattr")]
    assert (False, 2, 0) in changes and (True, 1, 0) in changes


def test_an_id_mapped_bind_has_a_user_namespace_of_its_own() -> None:
    more = {"uidMappings": RANGES, "gidMappings": RANGES}
    kernel = calls(plan(spec(mounts=bind("bind", "idmap", **more))).inside)
    names = kernel.names()
    assert names.index("set_id_map") < names.index("pivot_root")
    assert names.index("hold_user_namespace") < names.index("let_go") < names.index("set_id_map")


def test_id_maps_are_for_binds_only() -> None:
    mount = {"destination": "/x", "type": "tmpfs", "uidMappings": RANGES, "gidMappings": RANGES}
    with pytest.raises(SpecError, match=r"mounts\[/x\].uidMappings is not supported for tmpfs"):
        plan(spec(mounts=[mount]))


def test_a_foreign_file_system_is_opened_before_the_root_changes() -> None:
    mount = {"destination": "/x", "type": "ext4", "source": "/dev/vdb", "options": ["ro", "dax"]}
    kernel = calls(plan(spec(mounts=[mount])).inside)
    assert [args[1:] for args in kernel.arguments("fsconfig")] == [
        (1, "source", "/dev/vdb"), (0, "ro", None), (0, "dax", None), (6, None, None),
    ]  # fmt: skip
    names = kernel.names()
    assert names.index("fsmount") < names.index("pivot_root") < len(names)


# Every call fails once.


class Failing(RecordingKernel):
    """The n-th call that is recorded fails."""

    def __init__(self, failing: int) -> None:
        base = with_devices(fake_kernel())
        super().__init__(base.files, base.statuses)
        self.number = failing
        self.count = 0

    def _record(self, name: str, *args: Any) -> None:
        super()._record(name, *args)
        self.count += 1
        if self.count == self.number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def everything(state: State) -> list[tuple[Plan, State]]:
    binds = [*bind("rbind", "rro", "idmap"), *SPEC["mounts"]]
    changes: dict[str, Any] = {
        "mounts": binds,
        "process__scheduler": {"policy": "SCHED_RR", "priority": 5},
        "process__ioPriority": {"class": "IOPRIO_CLASS_IDLE"},
        "linux__personality": {"domain": "LINUX32"},
        "linux__rootfsPropagation": "rslave",
    }
    return [(plan(mapped("time", **changes)), state)]


def test_whichever_call_fails_the_step_is_named() -> None:
    made, _ = everything(State())[0]
    steps = [*made.outside, *made.inside]
    words = {step.describe() for step in steps}
    number = 0
    while True:
        number += 1
        kernel = Failing(number)
        try:
            run(steps, kernel, State(ask=lambda request: None))
        except StepFailed as failure:
            assert failure.step in words
            assert failure.message.startswith((failure.step, "exec:")), failure.message
            assert failure.errno == errno.EIO
            continue
        break
    assert number > 100
    assert kernel.names()[-1] == "execve"
