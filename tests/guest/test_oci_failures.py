"""Every system call of a container's creation fails in its turn: an error, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oci_harness import Runtime, change, namespace

pytestmark = pytest.mark.guest

MOST_CALLS = 500
TOLERATED = {
    # calls whose failure may change nothing: what they are for is not there, or goes on without
    "stat", "lstat", "executable", "realpath",
}  # fmt: skip


def plain(runtime: Runtime, source: Path) -> dict[str, Any]:
    """A container with a bit of everything that is made by system calls."""
    spec = runtime.spec("true")
    spec["mounts"] += [
        {"destination": "/mnt", "source": str(source), "type": "bind", "options": ["rbind", "ro"]},
        {"destination": "/srv", "source": "tmpfs", "type": "tmpfs", "options": ["tmpcopyup", "ro"]},
        {"destination": "/dev/mqueue", "source": "mqueue", "type": "mqueue"},
    ]
    spec["process"] |= {
        "noNewPrivileges": True,
        "oomScoreAdj": 100,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        "user": {"uid": 5, "gid": 5, "additionalGids": [6], "umask": 0o22},
        "scheduler": {"policy": "SCHED_OTHER", "nice": 1},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 5},
    }
    spec["root"]["readonly"] = True
    change(spec, "linux.maskedPaths", ["/proc/kcore", "/proc/acpi", "/proc/scsi"])
    change(spec, "linux.readonlyPaths", ["/proc/sys"])
    change(spec, "linux.sysctl", {"net.ipv4.ip_forward": "1"})
    change(spec, "linux.rootfsPropagation", "private")
    return change(spec, "linux.resources", {"devices": [{"allow": False, "access": "rwm"}]})


def hooked(runtime: Runtime, source: Path) -> dict[str, Any]:
    """Hooks, whose own children count too: what fails in them shadows what else has that number."""
    stages = ("prestart", "createRuntime", "createContainer", "startContainer")
    hooks = {stage: [{"path": "/bin/true"}] for stage in stages}
    return change(runtime.spec("true"), "hooks", hooks)


def mapped(runtime: Runtime, source: Path) -> dict[str, Any]:
    """The same with user and time namespaces: with a midwife, taken devices, mapped mounts."""
    spec = namespace(namespace(plain(runtime, source), "user"), "time")
    ranges = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    change(spec, "linux.uidMappings", ranges)
    change(spec, "linux.gidMappings", ranges)
    change(spec, "linux.timeOffsets", {"monotonic": {"secs": 5}})
    for mount in spec["mounts"]:
        if mount["destination"] == "/mnt":
            mount["options"].append("idmap")
    return spec


@pytest.mark.timeout(500)
@pytest.mark.parametrize("make", [plain, mapped, hooked])
def test_whichever_call_fails_nothing_is_left(
    wherry_oci: Runtime, make: Callable[[Runtime, Path], dict[str, Any]]
) -> None:
    source = wherry_oci.host.directory / "bundle-source"
    source.mkdir()
    before = wherry_oci.host.residue()
    id = wherry_oci.new_id()
    bundle = wherry_oci.bundle(make(wherry_oci, source), id)
    names = []
    for number in range(1, MOST_CALLS):
        result = wherry_oci("run", "--bundle", bundle, id, failing=number)
        name = result.failed
        if not name:
            assert result.returncode == 0, result
            break
        names.append(name)
        if result.returncode == 0:
            assert name in TOLERATED, (number, name)
        else:
            assert result.returncode == 1, (number, name, result)
            (line,) = result.stderr.splitlines()
            assert "internal error" not in line, (number, name, line)
            assert "input/output error" in line.lower() or name == "execve", (number, name, line)
        assert wherry_oci.host.residue() == before, (number, name)
    else:
        raise AssertionError(f"more than {MOST_CALLS} calls")
    assert {"clone", "capset", "execve"} <= set(names)
    assert make is hooked or {"mount", "pivot_root", "move_mount"} <= set(names)
