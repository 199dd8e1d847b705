"""A container's life by the command line: the same claims for us, crun and runc."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from oci_harness import Runtime

pytestmark = pytest.mark.guest


# run


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_run_ends_with_the_commands_exit_code(runtime: Runtime, code: int) -> None:
    assert runtime.run(runtime.spec("sh", "-c", f"exit {code}")).returncode == code


def test_run_ends_with_128_and_the_signal(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", "sleep 100 & kill -9 $!; wait $!")
    assert runtime.run(spec).returncode == 128 + signal.SIGKILL


def test_stdio_is_the_commands_own(runtime: Runtime) -> None:
    result = runtime.run(runtime.spec("sh", "-c", "cat; echo err >&2"), input="in\n")
    assert (result.stdout, result.stderr) == ("in\n", "err\n")


def test_run_removes_the_container(runtime: Runtime) -> None:
    runtime.run(runtime.spec("true"))
    assert runtime("state", runtime.ids[-1]).returncode != 0


def test_run_detached_leaves_it_running(runtime: Runtime) -> None:
    id = runtime.new_id()
    bundle = runtime.bundle(runtime.spec("sleep", "100"), id)
    runtime.detached("run", "--detach", "--bundle", bundle, id)
    assert runtime.state(id)["status"] == "running"


def test_root_path_is_relative_to_the_bundle(runtime: Runtime) -> None:
    id = runtime.new_id()
    spec = runtime.spec("cat", "/etc/passwd")
    spec["root"]["path"] = "root"
    bundle = runtime.bundle(spec, id)
    (Path(bundle) / "root").mkdir()
    runtime.host.run("cp", "-a", f"{runtime.host.rootfs}/.", f"{bundle}/root")
    assert runtime.ok("run", "--bundle", bundle, id).startswith("root:x:0:0")


# create, state, start, kill, delete


def test_a_life_in_single_steps(runtime: Runtime) -> None:
    spec = runtime.spec("sleep", "100")
    spec["annotations"] = {"org.example.key": "value"}
    id = runtime.create(spec)
    state = runtime.state(id)
    assert (state["id"], state["status"]) == (id, "created")
    assert state["bundle"] == os.fspath(runtime.host.directory / f"bundle-{id}")
    assert state["annotations"] == {"org.example.key": "value"}
    assert state["ociVersion"].startswith("1.")
    assert Path(f"/proc/{state['pid']}").exists()
    runtime.ok("start", id)
    assert runtime.state(id)["status"] == "running"
    assert Path(f"/proc/{state['pid']}/cmdline").read_bytes() == b"sleep\x00100\x00"
    runtime.ok("kill", id, "KILL")
    runtime.await_status(id, "stopped")
    runtime.ok("delete", id)
    assert runtime("state", id).returncode == 1


def test_the_command_does_not_run_before_start(runtime: Runtime, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        id = runtime.create(runtime.spec("echo", "ran"), stdout=out)
        assert (tmp_path / "out").read_text() == ""
        runtime.ok("start", id)
    runtime.await_status(id, "stopped")
    assert (tmp_path / "out").read_text() == "ran\n"


def test_pid_file_has_the_pid_and_nothing_else(runtime: Runtime, tmp_path: Path) -> None:
    id = runtime.create(runtime.spec("sleep", "100"), "--pid-file", f"{tmp_path}/pid")
    assert (tmp_path / "pid").read_text() == str(runtime.pid(id))


def test_a_created_container_is_killed_by_a_signal(runtime: Runtime) -> None:
    id = runtime.create(runtime.spec("sleep", "100"))
    runtime.ok("kill", id, "KILL")
    runtime.await_status(id, "stopped")


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", "15"])
def test_signals_have_names_and_numbers(runtime: Runtime, name: str, tmp_path: Path) -> None:
    script = "trap 'echo got; exit' TERM; echo ready; while :; do sleep 0.05; done"
    read, write = os.pipe()
    id = runtime.start(runtime.spec("sh", "-c", script), stdout=write)
    os.close(write)
    assert os.read(read, 6) == b"ready\n"
    runtime.ok("kill", id, name)
    assert os.read(read, 4) == b"got\n"
    os.close(read)


def test_kill_all_reaches_every_process(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sh", "-c", "sleep 100 & sleep 100 & wait"))
    runtime.ok("kill", "--all", id, "KILL")
    runtime.await_status(id, "stopped")
    runtime.ok("delete", id)


def test_delete_with_force_ends_a_running_one(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sh", "-c", "sleep 100 & sleep 100"))
    pid = runtime.pid(id)
    runtime.ok("delete", "--force", id)
    assert runtime("state", id).returncode == 1
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or ") Z " in stat.read_text()


def test_delete_with_force_does_not_mind_what_is_not_there(runtime: Runtime) -> None:
    runtime.ok("delete", "--force", "never-was")


def test_delete_removes_one_that_is_only_created(runtime: Runtime) -> None:
    id = runtime.create(runtime.spec("sleep", "100"))
    runtime.ok("delete", *(["--force"] if runtime.name == "crun" else []), id)


# pause, resume, ps, list, features


def test_pause_and_resume(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sleep", "100"))
    runtime.ok("pause", id)
    assert runtime.state(id)["status"] == "paused"
    assert runtime("exec", id, "true").returncode != 0
    runtime.ok("resume", id)
    assert runtime.state(id)["status"] == "running"


def test_a_paused_one_can_be_deleted_by_force(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sleep", "100"))
    runtime.ok("pause", id)
    runtime.ok("delete", "--force", id)


def test_ps_lists_the_containers_processes(runtime: Runtime) -> None:
    id = runtime.start(runtime.spec("sh", "-c", "sleep 100 & wait"))
    deadline_pids: list[int] = []
    while len(deadline_pids) < 2:
        deadline_pids = json.loads(runtime.ok("ps", "--format", "json", id))
    assert runtime.pid(id) in deadline_pids
    assert str(runtime.pid(id)) in runtime.ok("ps", id)


def test_list_has_every_container(runtime: Runtime) -> None:
    ids = [runtime.create(runtime.spec("sleep", "100")) for _ in range(2)]
    rows = json.loads(runtime.ok("list", "--format", "json"))
    assert {row["id"] for row in rows} >= set(ids)
    assert set(runtime.ok("list", "--quiet").split()) >= set(ids)


def test_features_is_an_object_that_knows_the_hooks(wherry_oci: Runtime) -> None:
    features = json.loads(wherry_oci.ok("features"))
    assert "createRuntime" in features["hooks"] and "rro" in features["mountOptions"]
    assert features["linux"]["cgroup"]["v2"] is True
    assert features["linux"]["mountExtensions"]["idmap"]["enabled"] is True
    assert "time" in features["linux"]["namespaces"]


def test_spec_writes_a_config_that_runs(runtime: Runtime) -> None:
    id = runtime.new_id()
    bundle = runtime.host.directory / f"bundle-{id}"
    bundle.mkdir()
    runtime.ok(
        "spec", *(["--bundle", str(bundle)] if runtime.name != "crun" else ["-b", str(bundle)])
    )
    config = json.loads((bundle / "config.json").read_text())
    assert config["process"]["terminal"] is True
    config["process"] |= {"terminal": False, "args": ["id", "-u"]}
    config["root"]["path"] = str(runtime.host.rootfs)
    config["linux"]["cgroupsPath"] = f"/{runtime.host.cgroups}/{id}"
    config["linux"]["resources"].pop("devices", None)  # crun would raise RLIMIT_MEMLOCK for them
    (bundle / "config.json").write_text(json.dumps(config))
    assert runtime.ok("run", "--bundle", str(bundle), id) == "0\n"
