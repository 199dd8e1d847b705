"""User namespaces and id-mapped mounts: the same for us, crun and runc where they can."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from oci_harness import Runtime, change, namespace

pytestmark = pytest.mark.guest

BASE = 100_000
RANGES = [{"containerID": 0, "hostID": BASE, "size": 65536}]


def mapped(runtime: Runtime, *args: str, **process: Any) -> dict[str, Any]:
    """A spec with a user namespace: root inside is BASE outside."""
    spec = namespace(runtime.spec(*args, **process), "user")
    change(spec, "linux.uidMappings", RANGES)
    return change(spec, "linux.gidMappings", RANGES)


def test_root_inside_is_somebody_else_outside(runtime: Runtime) -> None:
    shared = runtime.host.directory / "bundle-shared"
    shared.mkdir()
    shared.chmod(0o777)
    spec = mapped(runtime, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /mnt/file")
    spec["mounts"].append(
        {"destination": "/mnt", "source": str(shared), "type": "bind", "options": ["rbind"]}
    )
    uid, ids = runtime.lines(spec)
    assert (uid, ids.split()) == ("0", ["0", str(BASE), "65536"])
    status = (shared / "file").stat()
    assert (status.st_uid, status.st_gid) == (BASE, BASE)


def test_all_namespaces_belong_to_the_user_namespace(runtime: Runtime) -> None:
    """So its root may set the host name, and bring an interface down."""
    spec = mapped(runtime, "sh", "-c", "hostname other; hostname; ip link set lo down && echo ok")
    for kind in ("bounding", "effective", "permitted"):
        spec["process"]["capabilities"][kind] = ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETUID"]
    assert runtime.lines(spec) == ["other", "ok"]


def test_devices_are_the_hosts_own(runtime: Runtime) -> None:
    spec = mapped(runtime, "sh", "-c", "head -c3 /dev/zero | wc -c; echo x >/dev/null && echo ok")
    assert runtime.lines(spec) == ["3", "ok"]


def test_a_device_that_the_host_lacks_cannot_be_taken(wherry_oci: Runtime) -> None:
    device = {"path": "/dev/no-such", "type": "c", "major": 1, "minor": 3}
    result = wherry_oci.run(change(mapped(wherry_oci, "true"), "linux.devices", [device]))
    assert result.returncode == 1
    assert "take the device /dev/no-such (linux.devices): No such file" in result.stderr


def test_sysfs_and_cgroup_and_mqueue_are_mounted(runtime: Runtime) -> None:
    spec = mapped(runtime, "sh", "-c", "ls /sys/class/net; ls /sys/fs/cgroup | grep -c procs")
    plain = ["nosuid", "noexec", "nodev"]
    spec["mounts"] += [
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*plain, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": [*plain, "ro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": plain},
    ]  # fmt: skip
    assert runtime.lines(spec) == ["lo", "1"]


def test_exec_enters_the_user_namespace(runtime: Runtime) -> None:
    id = runtime.start(mapped(runtime, "sleep", "100"))
    out = runtime.ok("exec", id, "sh", "-c", "id -u; cat /proc/self/uid_map")
    assert out.split() == ["0", "0", str(BASE), "65536"]
    assert runtime.ok("exec", "--user", "5:6", id, "id", "-u") == "5\n"
    uid = next(
        line.split()[1]
        for line in Path(f"/proc/{runtime.pid(id)}/status").read_text().splitlines()
        if line.startswith("Uid:")
    )
    assert uid == str(BASE)


def test_another_user_inside(runtime: Runtime) -> None:
    spec = mapped(runtime, "sh", "-c", "id -u; id -g")
    spec["process"]["user"] = {"uid": 1000, "gid": 1001}
    assert runtime.lines(spec) == ["1000", "1001"]


def test_a_user_namespace_is_joined_by_its_path(runtime: Runtime) -> None:
    first = runtime.pid(runtime.start(mapped(runtime, "sleep", "100")))
    spec = mapped(runtime, "sleep", "100")
    if runtime.ours:  # runc of this age wants the mappings all the same
        del spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]
    namespace(spec, "user", f"/proc/{first}/ns/user")
    second = runtime.pid(runtime.start(spec))
    links = {str(Path(f"/proc/{pid}/ns/user").readlink()) for pid in (first, second)}
    assert len(links) == 1


def test_a_terminal_in_a_user_namespace(wherry_oci: Runtime) -> None:
    id = wherry_oci.start(mapped(wherry_oci, "sleep", "100"))
    process = wherry_oci.command("exec", "--tty", id, "tty")
    out = wherry_oci.host.run("script", "-qec", " ".join(process), "/dev/null")
    assert out.stdout.strip().endswith("/dev/pts/0")


def test_user_and_time_namespace_together(wherry_oci: Runtime) -> None:
    spec = namespace(mapped(wherry_oci, "sh", "-c", "id -u; cat /proc/uptime"), "time")
    change(spec, "linux.timeOffsets", {"boottime": {"secs": 1_000_000}})
    uid, uptime = wherry_oci.lines(spec)
    assert uid == "0"
    assert float(uptime.split()[0]) > 1_000_000


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("linux.uidMappings", [], "linux.uidMappings is missing"),
        ("linux.gidMappings", [{"containerID": 0, "hostID": 0, "size": 0}], "size 0 is not from 1"),
        (
            "linux.uidMappings",
            [
                {"containerID": 0, "hostID": 0, "size": 9},
                {"containerID": 5, "hostID": 99, "size": 9},
            ],
            "make the user namespace (linux.uidMappings, linux.gidMappings): Invalid argument",
        ),
        (
            "linux.uidMappings",
            [{"containerID": 1, "hostID": 1, "size": 9}],
            "become the user namespace's root",
        ),
    ],
)
def test_mappings_that_cannot_be(wherry_oci: Runtime, field: str, value: Any, message: str) -> None:
    result = wherry_oci.run(change(mapped(wherry_oci, "true"), field, value))
    assert result.returncode == 1
    assert message in result.stderr


# Id-mapped mounts.


def id_mapped(runtime: Runtime, source: Path, options: list[str]) -> dict[str, Any]:
    """A container whose /mnt shows what 0 owns in `source` as 5000's."""
    (source / "sub").mkdir()
    (source / "file").write_text("x")
    spec = runtime.spec("sh", "-c", "stat -c %u /mnt /mnt/file /mnt/sub; touch /mnt/new")
    spec["mounts"].append(
        {"destination": "/mnt", "source": str(source), "type": "bind", "options": options,
         "uidMappings": [{"containerID": 0, "hostID": 5000, "size": 10}],
         "gidMappings": [{"containerID": 0, "hostID": 5000, "size": 10}]}
    )  # fmt: skip
    spec["process"]["user"] = {"uid": 5000, "gid": 5000}
    return spec


@pytest.mark.parametrize("options", [["bind", "idmap"], ["rbind", "ridmap"], ["bind"]])
def test_a_bind_is_id_mapped(wherry_oci: Runtime, tmp_path: Path, options: list[str]) -> None:
    spec = id_mapped(wherry_oci, tmp_path, options)
    assert wherry_oci.lines(spec) == ["5000", "5000", "5000"]
    assert (tmp_path / "new").stat().st_uid == 0


def test_a_bind_is_mapped_as_the_containers_user_namespace(
    wherry_oci: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 7, 7)
    spec = mapped(wherry_oci, "sh", "-c", "stat -c %u /mnt/file; touch /mnt/new")
    spec["mounts"].append(
        {"destination": "/mnt", "source": str(tmp_path), "type": "bind",
         "options": ["bind", "idmap"]}
    )  # fmt: skip
    assert wherry_oci.lines(spec) == ["7"]
    assert (tmp_path / "new").stat().st_uid == 0
