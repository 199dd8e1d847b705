"""Hooks: when, where and with what they run, the same for us, crun and runc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from oci_harness import Runtime, change

pytestmark = pytest.mark.guest

OUTSIDE = ("prestart", "createRuntime", "poststart", "poststop")


def hook(directory: Path, name: str) -> dict[str, Any]:
    """Notes its name, what it was told, its environment, and its namespaces."""
    script = (
        f'echo {name} >>"{directory}/order"; cat >"{directory}/{name}.json"; '
        f'readlink /proc/self/ns/mnt >"{directory}/{name}.mnt"; '
        f'readlink /proc/self/ns/uts >"{directory}/{name}.uts"; echo "$A" >"{directory}/{name}.env"'
    )
    args = ["sh", "-c", script]
    return {"path": "/bin/sh", "args": args, "env": [f"A={name}", "PATH=/usr/bin:/bin"]}


def hooked(runtime: Runtime, directory: Path) -> dict[str, Any]:
    """A spec with a hook of every kind; the container's own sees `directory` too."""
    spec = runtime.spec("sh", "-c", f'echo command >>"{directory}/order"')
    spec["annotations"] = {"org.example": "x"}
    mount = {"destination": str(directory), "source": str(directory), "type": "bind"}
    spec["mounts"].append({**mount, "options": ["rbind", "rw"]})
    names = (*OUTSIDE, "createContainer", "startContainer")
    return change(spec, "hooks", {name: [hook(directory, name)] for name in names})


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    tmp_path.chmod(0o777)
    return tmp_path


def run_hooked(runtime: Runtime, notes: Path) -> tuple[str, int]:
    id = runtime.create(hooked(runtime, notes))
    pid = runtime.pid(id)
    runtime.ok("start", id)
    runtime.await_status(id, "stopped")
    runtime.ok("delete", id)
    return id, pid


def test_hooks_run_in_order(runtime: Runtime, notes: Path) -> None:
    run_hooked(runtime, notes)
    order = (notes / "order").read_text().split()
    assert order[:3] == ["prestart", "createRuntime", "createContainer"]
    assert order[-1] == "poststop"
    middle = order[3:-1]  # poststart and what goes on in the container run at the same time
    assert sorted(middle) == ["command", "poststart", "startContainer"]
    assert middle.index("startContainer") < middle.index("command")
    if runtime.ours:
        assert middle[0] == "startContainer"


def test_hooks_are_told_the_state(runtime: Runtime, notes: Path) -> None:
    id, pid = run_hooked(runtime, notes)
    statuses = {
        "prestart": "creating",
        "createRuntime": "creating",
        "createContainer": "creating",
        "startContainer": "created",
        "poststart": "running",
        "poststop": "stopped",
    }
    for name, status in statuses.items():
        state = json.loads((notes / f"{name}.json").read_text())
        assert state["id"] == id
        assert state["annotations"] == {"org.example": "x"}
        if runtime.ours:  # the references differ here, from us and from each other
            assert state["bundle"] == f"{runtime.host.directory}/bundle-{id}"
            assert state["status"] == status, name
            assert state.get("pid", 0) == (0 if name == "poststop" else pid), name
        assert (notes / f"{name}.env").read_text() == f"{name}\n"


def test_hooks_run_inside_or_outside(runtime: Runtime, notes: Path) -> None:
    run_hooked(runtime, notes)
    outside = str(Path(f"/proc/{runtime.host.keeper.pid}/ns/uts").readlink())
    for name in OUTSIDE:
        assert (notes / f"{name}.uts").read_text().strip() == outside, name
    for name in ("createContainer", "startContainer"):
        assert (notes / f"{name}.uts").read_text().strip() != outside, name


@pytest.mark.parametrize("stage", ["createContainer", "startContainer"])
def test_a_failing_hook_inside_ends_the_container(wherry_oci: Runtime, stage: str) -> None:
    spec = wherry_oci.spec("true")
    args = ["sh", "-c", "echo because >&2; exit 4"]
    change(spec, "hooks", {stage: [{"path": "/bin/sh", "args": args}]})
    result = wherry_oci.run(spec)
    assert result.returncode == 1
    assert f"hooks.{stage}[0] /bin/sh: ended with 4: because" in result.stderr


@pytest.mark.parametrize("stage", ["poststart", "poststop"])
def test_a_failing_hook_afterwards_is_a_warning(wherry_oci: Runtime, stage: str) -> None:
    spec = wherry_oci.spec("true")
    change(spec, "hooks", {stage: [{"path": "/bin/false"}, {"path": "/bin/true"}]})
    result = wherry_oci.run(spec)
    assert result.returncode == 0
    assert f"warning: hooks.{stage}[0] /bin/false: ended with 1" in result.stderr


def test_much_output_and_an_input_that_nobody_reads(wherry_oci: Runtime) -> None:
    spec = wherry_oci.spec("echo", "fine")
    spec["annotations"] = {"big": "x" * 300_000}
    args = ["sh", "-c", "head -c 1000000 /dev/zero"]
    change(spec, "hooks", {"createRuntime": [{"path": "/bin/sh", "args": args}]})
    assert wherry_oci.lines(spec) == ["fine"]


def test_a_hook_mounts_into_the_root(wherry_oci: Runtime, notes: Path) -> None:
    """As hooks of GPU vendors do: before the root is entered, into the container's namespace."""
    (notes / "file").write_text("from the hook\n")
    target = wherry_oci.host.rootfs / "srv"
    spec = wherry_oci.spec("cat", "/srv/file")
    args = ["sh", "-c", f"mount --bind {notes} {target}"]
    env = ["PATH=/usr/bin:/bin:/sbin"]
    change(spec, "hooks", {"createContainer": [{"path": "/bin/sh", "args": args, "env": env}]})
    assert wherry_oci.lines(spec) == ["from the hook"]
