"""cgroups by the command line: limits, update, figures. What a host lacks is skipped or refused.

The controllers that a plain cgroup v2 host has (memory, pids, cpu, io) are in the machine; here
hugetlb may be the only one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from oci_harness import Runtime, change

pytestmark = pytest.mark.guest


def cgroup(runtime: Runtime, id: str) -> Path:
    root = Path(f"/proc/{runtime.host.keeper.pid}/root/sys/fs/cgroup")
    return root / runtime.host.cgroups / id


def need(runtime: Runtime, controller: str) -> None:
    root = Path(f"/proc/{runtime.host.keeper.pid}/root/sys/fs/cgroup")
    if controller not in (root / "cgroup.controllers").read_text().split():
        pytest.skip(f"this host's cgroup v2 tree has no {controller} controller")


LIMITS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    # name -> (controller, linux.resources, files)
    "huge pages": (
        "hugetlb",
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]},
        {"hugetlb.2MB.max": "4194304"},
    ),
    "unified": (
        "hugetlb",
        {"unified": {"hugetlb.2MB.max": "2097152"}},
        {"hugetlb.2MB.max": "2097152"},
    ),
    "memory": (
        "memory",
        {"memory": {"limit": 64 << 20, "reservation": 32 << 20}},
        {"memory.max": str(64 << 20), "memory.low": str(32 << 20)},
    ),
    "swap": (
        "memory",
        {"memory": {"limit": 64 << 20, "swap": 96 << 20}},
        {"memory.swap.max": str(32 << 20)},
    ),
    "pids": ("pids", {"pids": {"limit": 50}}, {"pids.max": "50"}),
    "cpu": (
        "cpu",
        {"cpu": {"shares": 512, "quota": 20_000, "period": 50_000}},
        {"cpu.weight": "20", "cpu.max": "20000 50000"},
    ),
    "cpuset": ("cpuset", {"cpu": {"cpus": "0", "mems": "0"}}, {"cpuset.cpus": "0"}),
    "io": ("io", {"blockIO": {"weight": 100}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_in_the_cgroup(runtime: Runtime, name: str) -> None:
    controller, resources, files = LIMITS[name]
    need(runtime, controller)
    id = runtime.start(change(runtime.spec("sleep", "100"), "linux.resources", resources))
    for file, value in files.items():
        assert (cgroup(runtime, id) / file).read_text().strip() == value, file


def test_the_process_is_in_its_cgroup_before_it_runs(runtime: Runtime) -> None:
    id = runtime.create(runtime.spec("sleep", "100"))
    assert str(runtime.pid(id)) in (cgroup(runtime, id) / "cgroup.procs").read_text().split()


def test_update_changes_a_limit(wherry_oci: Runtime) -> None:
    need(wherry_oci, "hugetlb")
    id = wherry_oci.start(wherry_oci.spec("sleep", "100"))
    resources = {"hugepageLimits": [{"pageSize": "2MB", "limit": 8 << 20}]}
    wherry_oci.ok("update", "--resources", "-", id, input=json.dumps(resources))
    file = cgroup(wherry_oci, id) / "hugetlb.2MB.max"
    assert file.read_text().strip() == str(8 << 20)


def test_an_update_that_fails_changes_nothing(wherry_oci: Runtime) -> None:
    need(wherry_oci, "hugetlb")
    limits = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    spec = change(wherry_oci.spec("sleep", "100"), "linux.resources", limits)
    id = wherry_oci.start(spec)
    file = cgroup(wherry_oci, id) / "hugetlb.2MB.max"
    before = file.read_text()
    resources = {"unified": {"hugetlb.2MB.max": "2097152", "hugetlb.2MB.rsvd.max": "nonsense"}}
    result = wherry_oci("update", "--resources", "-", id, input=json.dumps(resources))
    assert result.returncode == 1
    assert "set hugetlb.2MB.rsvd.max to nonsense (linux.resources.unified" in result.stderr
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory", "lots"], "--memory 'lots' is not a number"),
        (["--resources", "/no/such"], "/no/such: No such file or directory"),
        (["--pids-limit", "5", "--resources", "-"], "not both"),
    ],
)
def test_an_update_that_cannot_be(wherry_oci: Runtime, flags: list[str], message: str) -> None:
    id = wherry_oci.start(wherry_oci.spec("sleep", "100"))
    result = wherry_oci("update", *flags, id)
    assert (result.returncode, message in result.stderr) == (1, True), result.stderr


def test_events_once_are_the_figures(runtime: Runtime) -> None:
    if runtime.name == "crun":
        pytest.skip("crun has no events")
    if runtime.name == "runc":
        need(runtime, "memory")
    id = runtime.start(runtime.spec("sleep", "100"))
    event = json.loads(runtime.ok("events", "--stats", id))
    assert (event["type"], event["id"]) == ("stats", id)
    assert event["data"]["cpu"]["usage"]["total"] > 0


def test_a_cgroup_with_processes_is_not_taken(wherry_oci: Runtime) -> None:
    first = wherry_oci.start(wherry_oci.spec("sleep", "100"))
    spec = wherry_oci.spec("true")
    change(spec, "linux.cgroupsPath", f"/{wherry_oci.host.cgroups}/{first}")
    result = wherry_oci.run(spec)
    assert result.returncode == 1
    assert "(linux.cgroupsPath) has processes already" in result.stderr
    assert wherry_oci.state(first)["status"] == "running"


def test_a_cgroup_that_was_there_is_removed_with_the_container(runtime: Runtime) -> None:
    """As the references do: whoever wants to keep it makes the parent."""
    spec = runtime.spec("true")
    change(spec, "linux.cgroupsPath", f"/{runtime.host.cgroups}/made")
    path = cgroup(runtime, "made")
    path.mkdir(parents=True)
    assert runtime.run(spec).returncode == 0
    assert not path.exists()
    runtime.host.tidy()


def test_without_a_path_there_is_one_of_the_runtimes_own(wherry_oci: Runtime) -> None:
    spec = wherry_oci.spec("sleep", "100")
    spec["linux"]["cgroupsPath"] = ""
    id = wherry_oci.start(spec)
    lines = Path(f"/proc/{wherry_oci.pid(id)}/cgroup").read_text().splitlines()
    assert f"0::/wherry-oci/{id}" in lines


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    # what the kernel does not take: name -> (controller, linux.resources, our words)
    "quota below a millisecond": (
        "cpu",
        {"cpu": {"quota": 10, "period": 100_000}},
        "set cpu.max to 10 100000 (linux.resources.cpu.quota): the kernel does not take it",
    ),
    "a processor that is not there": (
        "cpuset",
        {"cpu": {"cpus": "4000"}},
        "set cpuset.cpus to 4000 (linux.resources.cpu.cpus): the kernel does not take it",
    ),
    "a device that is not there": (
        "io",
        {"blockIO": {"throttleReadBpsDevice": [{"major": 511, "minor": 9, "rate": 1000}]}},
        "set io.max to 511:9 rbps=1000 (linux.resources.blockIO (rbps)): the kernel does not",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_limit_that_the_kernel_does_not_take(runtime: Runtime, name: str) -> None:
    controller, resources, words = REFUSED[name]
    need(runtime, controller)
    result = runtime.run(change(runtime.spec("true"), "linux.resources", resources))
    assert result.returncode == 1
    if runtime.ours:
        assert words in result.stderr
        assert not runtime.host.residue()["cgroups"]


def test_the_pids_limit_holds(runtime: Runtime) -> None:
    need(runtime, "pids")
    spec = runtime.spec("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait")
    result = runtime.run(change(spec, "linux.resources", {"pids": {"limit": 4}}))
    assert "Resource temporarily unavailable" in result.stderr


def test_update_takes_runcs_flags(runtime: Runtime) -> None:
    need(runtime, "memory")
    need(runtime, "pids")
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 10}}
    id = runtime.start(change(runtime.spec("sleep", "100"), "linux.resources", limits))
    runtime.ok("update", "--memory", str(32 << 20), "--pids-limit", "20", id)
    directory = cgroup(runtime, id)
    assert (directory / "memory.max").read_text().strip() == str(32 << 20)
    assert (directory / "pids.max").read_text().strip() == "20"


def test_a_limit_below_what_is_used_is_refused_where_asked(wherry_oci: Runtime) -> None:
    need(wherry_oci, "memory")
    id = wherry_oci.start(wherry_oci.spec("sleep", "100"))
    resources = {"memory": {"limit": 4096, "checkBeforeUpdate": True}}
    result = wherry_oci("update", "--resources", "-", id, input=json.dumps(resources))
    assert result.returncode == 1
    assert "linux.resources.memory.limit 4096 is below the" in result.stderr
    assert wherry_oci.state(id)["status"] == "running"


def test_events_tell_of_memory_and_pids(wherry_oci: Runtime) -> None:
    need(wherry_oci, "memory")
    need(wherry_oci, "pids")
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 10}}
    id = wherry_oci.start(change(wherry_oci.spec("sleep", "100"), "linux.resources", limits))
    data = json.loads(wherry_oci.ok("events", "--stats", id))["data"]
    assert data["memory"]["usage"]["limit"] == 64 << 20
    assert data["memory"]["usage"]["usage"] > 0
    assert data["pids"] == {"current": 1, "limit": 10}
