"""What bad input gets: a clear line, the references' exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oci_harness import Runtime, change, namespace

pytestmark = pytest.mark.guest

Spec = dict[str, Any]


def _add(path: str, item: Any) -> Callable[[Spec], Spec]:
    def edit(spec: Spec) -> Spec:
        *parents, last = path.split(".")
        target: Any = spec
        for name in parents:
            target = target.setdefault(name, {})
        target.setdefault(last, []).append(item)
        return spec

    return edit


def _set(path: str, value: Any) -> Callable[[Spec], Spec]:
    return lambda spec: change(spec, path, value)


BIND = {"destination": "/mnt", "type": "bind", "source": "/no/such/source", "options": ["bind"]}
BROKEN = {
    "no args": (_set("process.args", None), "process.args is empty"),
    "no process": (_set("process", None), "process is missing"),
    "command is not there": (
        _set("process.args", ["nope"]),
        'exec: "nope": executable file not found in $PATH',
    ),
    "command's path is not there": (
        _set("process.args", ["/nope"]),
        'exec: "/nope": stat /nope: no such file or directory',
    ),
    "command is a directory": (_set("process.args", ["/etc"]), 'exec: "/etc": is a directory'),
    "command is not executable": (
        _set("process.args", ["/etc/passwd"]),
        'exec: "/etc/passwd": permission denied',
    ),
    "working directory is a file": (
        _set("process.cwd", "/etc/passwd"),
        "change to the directory /etc/passwd (process.cwd): Not a directory",
    ),
    "namespace is gone": (
        lambda spec: namespace(spec, "network", "/proc/4194304/ns/net"),
        "join the network namespace /proc/4194304/ns/net (linux.namespaces): No such file",
    ),
    "namespace is of another kind": (
        lambda spec: namespace(spec, "network", "/proc/self/ns/uts"),
        "join the network namespace /proc/self/ns/uts (linux.namespaces): Invalid argument",
    ),
    "namespace type is none": (
        _add("linux.namespaces", {"type": "nonsense"}),
        "linux.namespaces[6].type 'nonsense' is no type of namespace",
    ),
    "bind source is not there": (
        _add("mounts", BIND),
        "take /no/such/source for a bind mount (mounts): No such file or directory (ENOENT)",
    ),
    "file system is none": (
        _add("mounts", {"destination": "/mnt", "type": "nonsense", "source": "x"}),
        "open the file system nonsense (mounts): No such device (ENODEV)",
    ),
    "tmpfs option is wrong": (
        _add("mounts", {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs",
                        "options": ["size=nonsense"]}),
        "mount tmpfs on /mnt: Invalid argument (EINVAL)",
    ),
    "rlimit is none": (
        _set("process.rlimits", [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]),
        "process.rlimits[0].type 'RLIMIT_NONSENSE' is not a resource limit",
    ),
    "rlimit soft above hard": (
        _set("process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 50}]),
        "set RLIMIT_NOFILE to 100:50 (process.rlimits): Invalid argument (EINVAL)",
    ),
    "controller is missing": (
        _set("linux.resources", {"unified": {"nonsense.max": "1"}}),
        "set nonsense.max to 1 (linux.resources.unified.nonsense.max): the cgroup has no such file",
    ),
    "huge page size is none of this machine's": (
        _set("linux.resources", {"hugepageLimits": [{"pageSize": "3MB", "limit": 3 << 20}]}),
        "set hugetlb.3MB.max to 3145728 (linux.resources.hugepageLimits (3MB)): the cgroup has no",
    ),
    "sysctl of the machine": (
        _set("linux.sysctl", {"kernel.panic": "1"}),
        "linux.sysctl.kernel.panic would change the whole machine",
    ),
    "root is not there": (_set("root.path", "/no/such/root"), "root.path /no/such/root is not"),
    "hook is not there": (
        _set("hooks", {"createRuntime": [{"path": "/no/such/hook"}]}),
        "hooks.createRuntime[0] /no/such/hook: No such file or directory",
    ),
    "hook fails": (
        _set("hooks", {"prestart": [{"path": "/bin/sh",
                                    "args": ["sh", "-c", "echo no >&2; exit 3"]}]}),
        "hooks.prestart[0] /bin/sh: ended with 3: no",
    ),
    "hook takes too long": (
        _set("hooks", {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"],
                                          "timeout": 1}]}),
        "hooks.createRuntime[0] /bin/sleep: took longer than its timeout of 1 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_spec_that_cannot_be_is_refused(runtime: Runtime, name: str) -> None:
    edit, message = BROKEN[name]
    result = runtime.run(edit(runtime.spec("true")))
    assert result.returncode != 0
    if runtime.ours:
        assert (result.returncode, message in result.stderr) == (1, True), result.stderr
        assert result.stderr.count("\n") == 1
        assert not runtime.host.residue()["states"]
        assert not runtime.host.residue()["cgroups"]


OURS_ONLY = {
    # the references take these for granted, or overlook them
    "version": (_set("ociVersion", "7.0.0"), "ociVersion '7.0.0' is not 1.x"),
    "device node is of another file": (
        _set("linux.devices", [{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3}]),
        "make the device /etc/passwd (linux.devices): something else has this path",
    ),
    "device type": (
        _set("linux.devices", [{"path": "/dev/x", "type": "z"}]),
        "linux.devices[0].type 'z' is not c, u, b or p",
    ),
    "unknown field": (_set("linux.nonsense", 1), "linux.nonsense is not supported"),
    "Intel RDT": (_set("linux.intelRdt", {"closID": "x"}), "linux.intelRdt is not supported"),
    "AppArmor": (_set("process.apparmorProfile", "x"), "process.apparmorProfile is not supported"),
    "mount namespace by path": (
        lambda spec: namespace(spec, "mount", "/proc/self/ns/mnt"),
        "is not supported for 'mount'",
    ),
    "user that is not there": (
        _set("process.user", {"username": "nobody-here"}),
        "unable to find user nobody-here: no matching entries in passwd file",
    ),
    "proc on a link": (
        lambda spec: change(spec, "mounts", [{"destination": "/mnt/link", "type": "proc"}]),
        "mount proc on /mnt/link: the image has a symbolic link on this path",
    ),
    "systemd's cgroup path": (
        _set("linux.cgroupsPath", "system.slice:x:y"),
        "linux.cgroupsPath 'system.slice:x:y' is systemd's form",
    ),
    "cgroup path that leads out": (_set("linux.cgroupsPath", "/../x"), "is not a path below"),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS_ONLY)
def test_we_refuse_what_the_references_overlook(wherry_oci: Runtime, name: str) -> None:
    link = wherry_oci.host.rootfs / "mnt/link"
    if not link.is_symlink():
        link.symlink_to("/srv")
    edit, message = OURS_ONLY[name]
    result = wherry_oci.run(edit(wherry_oci.spec("true")))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr


@pytest.mark.parametrize("text", ["{nope", "", "[]", '"x"', "\xff"])
def test_a_config_that_is_no_json_object(runtime: Runtime, text: str) -> None:
    result = runtime.run(text)
    assert result.returncode == 1
    if runtime.ours:
        assert "config.json" in result.stderr


def test_a_bundle_without_a_config(runtime: Runtime, tmp_path: Path) -> None:
    assert runtime("run", "--bundle", str(tmp_path), runtime.new_id()).returncode == 1
    assert runtime("run", "--bundle", "/no/such/bundle", runtime.new_id()).returncode == 1


def test_an_id_is_taken_once(runtime: Runtime) -> None:
    spec = runtime.spec("sleep", "100")
    id = runtime.create(spec)
    again = runtime("create", "--bundle", runtime.bundle(spec, id), id)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert runtime.state(id)["status"] == "created"


@pytest.mark.parametrize("id", ["a/b", "..", ".", "a b", ""])
def test_an_id_that_is_none(runtime: Runtime, id: str) -> None:
    spec = runtime.spec("true")
    change(spec, "linux.cgroupsPath", f"/{runtime.host.cgroups}/odd")
    if runtime.name == "crun" and id in ("a b", "."):
        pytest.skip("crun takes it")
    result = runtime("create", "--bundle", runtime.bundle(spec, "odd"), id)
    assert result.returncode == 1


def test_commands_on_what_is_not_there(runtime: Runtime) -> None:
    for command in ("state", "start", "kill", "delete", "pause", "resume", "ps"):
        result = runtime(command, "never-was")
        assert result.returncode != 0, command
        if runtime.ours:
            assert result.returncode == 1
            assert "container never-was does not exist" in result.stderr


def test_start_twice(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sleep", "100"))
    result = runtime("start", id)
    assert result.returncode == 1
    assert runtime.state(id)["status"] == "running"
    if runtime.ours:
        assert "cannot start an already running container" in result.stderr


def test_delete_of_a_running_one(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sleep", "100"))
    result = runtime("delete", id)
    assert result.returncode == 1
    assert runtime.state(id)["status"] == "running"
    if runtime.ours:
        assert f"cannot delete container {id} that is not stopped: running" in result.stderr


def test_a_stopped_one_can_only_be_deleted(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("true"))
    runtime.await_status(id, "stopped")
    assert runtime("start", id).returncode == 1
    assert runtime("exec", id, "true").returncode != 0
    if runtime.name != "crun":  # which says nothing
        assert runtime("kill", id, "KILL").returncode == 1
        assert runtime("pause", id).returncode == 1
    runtime.ok("delete", id)


def test_an_unknown_signal(wherry_oci: Runtime) -> None:
    id = wherry_oci.start(wherry_oci.spec("sleep", "100"))
    for name in ("BOGUS", "0", "65", "SIGRTMIN+99", "-1"):
        result = wherry_oci("kill", id, name)
        assert result.returncode == 1
    assert wherry_oci.state(id)["status"] == "running"


def test_a_program_of_no_known_format_is_told_by_start(wherry_oci: Runtime) -> None:
    """It is there and executable, so only the exec itself can find out."""
    program = wherry_oci.host.rootfs / "bin/odd"
    program.write_bytes(b"\0\1\2\3")
    program.chmod(0o755)
    id = wherry_oci.create(wherry_oci.spec("/bin/odd"))
    result = wherry_oci("start", id)
    assert result.returncode == 1
    assert 'exec: "/bin/odd": exec format error' in result.stderr
    wherry_oci.await_status(id, "stopped")
    assert wherry_oci.run(wherry_oci.spec("/bin/odd")).returncode == 1


def test_the_process_is_killed_between_create_and_start(runtime: Runtime) -> None:
    id = runtime.create(runtime.spec("true"))
    os.kill(runtime.pid(id), 9)
    runtime.await_status(id, "stopped")
    assert runtime("start", id).returncode == 1


def test_usage_errors_are_one_line(wherry_oci: Runtime) -> None:
    for arguments in (
        ["nonsense"],
        ["create"],
        ["kill"],
        ["create", "--nonsense", "x"],
        ["--systemd-cgroup", "state", "x"],
        ["--cgroup-manager", "systemd", "state", "x"],
        ["create", "--preserve-fds", "x", "y"],
        ["exec", "--apparmor", "x", "y", "true"],
    ):
        result = wherry_oci(*arguments)
        assert result.returncode in (1, 255), arguments
        assert result.stderr.count("\n") == 1, result.stderr


def test_errors_are_in_the_log_too(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = [*runtime.argv, f"--root={runtime.root}", f"--log={log}", "--log-format=json"]
    result = runtime.host.run(*arguments, "state", "never-was")
    assert result.returncode == 1
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries[-1]["level"] == "error"
    assert "time" in entries[-1]
    if runtime.ours:
        assert entries[-1]["msg"] == "container never-was does not exist"
        assert result.stderr == "container never-was does not exist\n"


def test_a_limit_needs_a_cgroup(wherry_oci: Runtime) -> None:
    spec = wherry_oci.spec("true")
    change(spec, "linux.resources", {"pids": {"limit": 5}})
    id = wherry_oci.new_id()
    command = ["--cgroup-manager=disabled", "run", "--bundle", wherry_oci.bundle(spec, id), id]
    result = wherry_oci(*command)
    assert result.returncode == 1
    assert "linux.resources.pids.limit cannot be set: the container has no cgroup" in result.stderr


def test_without_limits_no_cgroup_is_needed(wherry_oci: Runtime) -> None:
    id = wherry_oci.new_id()
    bundle = wherry_oci.bundle(wherry_oci.spec("cat", "/proc/self/cgroup"), id)
    out = wherry_oci.ok("--cgroup-manager=disabled", "run", "--bundle", bundle, id)
    assert wherry_oci.host.cgroups not in out
