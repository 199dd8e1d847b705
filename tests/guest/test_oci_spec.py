"""The spec's fields, seen from inside a container: the same for us, crun and runc."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from oci_harness import Runtime, change, namespace, without_namespace

pytestmark = pytest.mark.guest


def test_environment_arguments_and_directory(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", 'echo "$A" "$0" "$1"; pwd', "zero", "one two", cwd="/srv")
    spec["process"]["env"].append("A=b c")
    assert runtime.lines(spec) == ["b c zero one two", "/srv"]


def test_working_directory_is_made(runtime: Runtime) -> None:
    assert runtime.lines(runtime.spec("pwd", cwd="/tmp/made/here")) == ["/tmp/made/here"]


def test_user_groups_and_umask(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", "id -u; id -g; id -G; umask")
    spec["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o77}
    uid, gid, groups, mask = runtime.lines(spec)
    assert (uid, gid, set(groups.split()), mask) == ("5", "6", {"6", "7", "8"}, "0077")


def test_capabilities_are_the_specs(runtime: Runtime) -> None:
    spec = runtime.spec("grep", "^Cap", "/proc/self/status")
    kill, chown = 1 << 5, 1 << 0  # uapi/linux/capability.h
    names = ["CAP_KILL", "CAP_CHOWN"]
    spec["process"]["capabilities"] = {
        "bounding": names, "permitted": names, "effective": ["CAP_KILL"], "inheritable": names,
        "ambient": ["CAP_KILL"],
    }  # fmt: skip
    spec["process"]["user"] = {"uid": 5, "gid": 5}
    found = {name: int(mask, 16) for name, mask in (line.split() for line in runtime.lines(spec))}
    assert found["CapBnd:"] == found["CapInh:"] == kill | chown
    assert found["CapAmb:"] == found["CapPrm:"] == found["CapEff:"] == kill


def test_a_capability_that_is_none_is_a_warning(runtime: Runtime) -> None:
    spec = runtime.spec("true")
    spec["process"]["capabilities"] = {"bounding": ["CAP_NONSENSE"]}
    result = runtime.run(spec)
    assert result.returncode == 0
    if runtime.ours:
        assert "warning" in result.stderr and "CAP_NONSENSE" in result.stderr


def test_no_new_privileges(runtime: Runtime) -> None:
    spec = runtime.spec("grep", "NoNewPrivs", "/proc/self/status", noNewPrivileges=True)
    assert runtime.lines(spec) == ["NoNewPrivs:\t1"]


def test_rlimits(runtime: Runtime) -> None:
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    spec = runtime.spec("sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c", rlimits=limits)
    assert runtime.lines(spec) == ["64", "128", "0"]


def test_oom_score_adj_is_set_or_stays(runtime: Runtime) -> None:
    spec = runtime.spec("cat", "/proc/self/oom_score_adj", oomScoreAdj=321)
    assert runtime.lines(spec) == ["321"]
    own = Path("/proc/self/oom_score_adj").read_text().strip()
    assert runtime.lines(runtime.spec("cat", "/proc/self/oom_score_adj")) == [own]


def test_hostname_and_domainname(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", "hostname; cat /proc/sys/kernel/domainname")
    if runtime.ours:  # domainname is younger than the references
        spec["domainname"] = "example.org"
    lines = runtime.lines(spec)
    assert lines[0] == "box"
    assert not runtime.ours or lines[1] == "example.org"


def test_sysctls_of_the_containers_namespaces(runtime: Runtime) -> None:
    files = "/proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"
    spec = runtime.spec("sh", "-c", f"cat {files}")
    change(spec, "linux.sysctl", {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4321"})
    assert runtime.lines(spec) == ["1", "4321"]


def test_personality(runtime: Runtime) -> None:
    spec = runtime.spec("uname", "-m")
    change(spec, "linux.personality", {"domain": "LINUX32"})
    if runtime.name == "runc":
        pytest.skip("runc of this age overlooks it")
    assert runtime.lines(spec) == [{"x86_64": "i686"}.get(os.uname().machine, "armv8l")]


# Namespaces.


def test_namespaces_are_new_and_others_stay(runtime: Runtime) -> None:
    spec = without_namespace(runtime.spec("sleep", "100"), "network")
    id = runtime.start(spec)
    pid = runtime.pid(id)
    for kind in ("mnt", "uts", "ipc", "pid", "cgroup"):
        links = {str(Path(f"/proc/{it}/ns/{kind}").readlink()) for it in (pid, "self")}
        assert len(links) == 2, kind
    assert Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()


@pytest.mark.parametrize(
    ("kind", "name"), [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")]
)
def test_a_namespace_is_joined_by_its_path(runtime: Runtime, kind: str, name: str) -> None:
    first = runtime.pid(runtime.start(runtime.spec("sleep", "100")))
    spec = runtime.spec("sleep", "100")
    if kind == "uts":
        del spec["hostname"]
    second = runtime.pid(runtime.start(namespace(spec, kind, f"/proc/{first}/ns/{name}")))
    links = {str(Path(f"/proc/{pid}/ns/{name}").readlink()) for pid in (first, second)}
    assert len(links) == 1
    assert Path(f"/proc/{second}/ns/mnt").readlink() != Path(f"/proc/{first}/ns/mnt").readlink()


def test_the_pid_namespace_can_be_the_hosts(runtime: Runtime) -> None:
    id = runtime.start(without_namespace(runtime.spec("sleep", "100"), "pid"))
    link = Path(f"/proc/{runtime.pid(id)}/ns/pid").readlink()
    assert link == Path("/proc/self/ns/pid").readlink()
    assert str(runtime.pid(id)) in runtime.ok("ps", "--format", "json", id)


# Mounts and paths.


def test_root_can_be_readonly(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", "touch /x 2>/dev/null || echo no; touch /dev/y && echo yes")
    spec["root"]["readonly"] = True
    assert runtime.lines(spec) == ["no", "yes"]


def test_masked_and_readonly_paths(runtime: Runtime) -> None:
    script = "wc -c </proc/version; ls /proc/sys/net | wc -l; cat /proc/sys/kernel/hostname"
    script += "; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo readonly"
    spec = runtime.spec("sh", "-c", script)
    change(spec, "linux.maskedPaths", ["/proc/version", "/proc/sys/net", "/proc/no-such"])
    change(spec, "linux.readonlyPaths", ["/proc/sys", "/no/such"])
    assert runtime.lines(spec) == ["0", "0", "box", "readonly"]


def test_bind_of_a_directory_and_of_a_file(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("outside\n")
    spec = runtime.spec("sh", "-c", "cat /mnt/dir/file /mnt/one; touch /mnt/dir/x || echo no")
    directory = {"destination": "/mnt/dir", "source": str(tmp_path), "type": "bind"}
    file = {"destination": "/mnt/one", "source": f"{tmp_path}/file", "type": "bind"}
    spec["mounts"] += [{**directory, "options": ["bind", "ro"]}, {**file, "options": ["bind"]}]
    result = runtime.run(spec)
    assert result.stdout.splitlines() == ["outside", "outside", "no"]


def test_a_bind_sources_relative_path_is_the_bundles(runtime: Runtime) -> None:
    id = runtime.new_id()
    spec = runtime.spec("cat", "/mnt/rel/file")
    mount = {"destination": "/mnt/rel", "source": "data", "type": "bind", "options": ["bind"]}
    spec["mounts"].append(mount)
    bundle = Path(runtime.bundle(spec, id))
    (bundle / "data").mkdir()
    (bundle / "data/file").write_text("relative\n")
    assert runtime.ok("run", "--bundle", str(bundle), id, cwd=str(bundle)) == "relative\n"


def test_tmpfs_with_options(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", "grep ' /mnt ' /proc/mounts; stat -c %a /mnt")
    options = ["nosuid", "noexec", "size=1m", "mode=1700"]
    spec["mounts"].append(
        {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": options}
    )
    line, mode = runtime.lines(spec)
    assert {"nosuid", "noexec", "size=1024k"} <= set(line.split()[3].split(","))
    assert mode == "1700" or runtime.name == "runc"  # which keeps the directory's


def test_tmpcopyup_fills_a_tmpfs(runtime: Runtime) -> None:
    spec = runtime.spec("sh", "-c", "cat /etc/passwd | head -1; echo x >/etc/passwd; ls /etc")
    spec["mounts"].append(
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}
    )
    lines = runtime.lines(spec)
    assert lines[0].startswith("root:x:0")
    assert "group" in lines
    assert (runtime.host.rootfs / "etc/passwd").read_text().startswith("root:x:0")


# Devices.


def test_default_devices_and_links_are_there(runtime: Runtime) -> None:
    names = "null zero full random urandom tty"
    script = f"cd /dev; for i in {names}; do test -c $i || echo $i; done"
    script += "; for i in fd stdin stdout stderr ptmx; do test -L $i || echo $i; done"
    assert runtime.lines(runtime.spec("sh", "-c", script)) == []


def test_devices_with_their_mode_and_owner(runtime: Runtime) -> None:
    spec = runtime.spec("stat", "-c", "%F %a %u %g %t %T", "/dev/mine", "/dev/pipe")
    mine = {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5}
    devices = [
        {**mine, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]
    change(spec, "linux.devices", devices)
    assert runtime.lines(spec) == ["character special file 640 5 6 1 5", "fifo 600 0 0 0 0"]


def test_device_rules_hold_beside_the_basic_ones(wherry_oci: Runtime) -> None:
    """The references do the same, but raise RLIMIT_MEMLOCK for it, which not every root may."""
    script = "head -c1 /dev/null; head -c1 /dev/zero | wc -c; mknod /tmp/kmsg c 1 11 && echo made"
    script += "; head -c1 /tmp/kmsg || echo refused; rm /tmp/kmsg"
    spec = wherry_oci.spec("sh", "-c", script)
    change(spec, "linux.resources", {"devices": [{"allow": False, "access": "rwm"}]})
    assert wherry_oci.lines(spec) == ["1", "made", "refused"]


# Only ours: younger than the references.


def test_scheduler_and_io_priority(wherry_oci: Runtime) -> None:
    spec = wherry_oci.spec("sh", "-c", "ionice; cut -d' ' -f19,41 /proc/self/stat")
    spec["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    spec["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 2}
    lines = wherry_oci.lines(spec)
    assert lines == ["best-effort: prio 2", "7 3"]  # 3: SCHED_BATCH


def test_time_namespace_with_offsets(wherry_oci: Runtime) -> None:
    spec = namespace(wherry_oci.spec("cat", "/proc/uptime"), "time")
    change(spec, "linux.timeOffsets", {"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5}})
    assert float(wherry_oci.lines(spec)[0].split()[0]) > 1_000_000
    id = wherry_oci.start(spec | {"process": spec["process"] | {"args": ["sleep", "100"]}})
    assert float(wherry_oci.ok("exec", id, "cat", "/proc/uptime").split()[0]) > 1_000_000


def test_a_file_system_of_any_type(wherry_oci: Runtime, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("lower\n")
    options = [f"{name}={tmp_path}/{name.removesuffix('dir')}" for name in ("lowerdir", "upperdir")]
    options.append(f"workdir={tmp_path}/work")
    spec = wherry_oci.spec("sh", "-c", "cat /mnt/file; touch /mnt/new")
    spec["mounts"].append(
        {"destination": "/mnt", "type": "overlay", "source": "overlay", "options": options}
    )
    assert wherry_oci.lines(spec) == ["lower"]
    assert stat.S_ISREG((tmp_path / "upper/new").stat().st_mode)


def test_a_link_in_the_image_does_not_lead_a_mount_out(wherry_oci: Runtime, tmp_path: Path) -> None:
    link = wherry_oci.host.rootfs / "out"
    if not link.is_symlink():
        link.symlink_to(f"../../../../../..{tmp_path}")
    spec = wherry_oci.spec("grep", "-c", " /.*/inner ", "/proc/mounts")
    spec["mounts"].append({"destination": "/out/inner", "type": "tmpfs", "source": "tmpfs"})
    assert wherry_oci.lines(spec) == ["1"]
    assert not (tmp_path / "inner").exists()


def test_no_pivot_root(runtime: Runtime) -> None:
    assert runtime.lines(runtime.spec("pwd"), "--no-pivot") == ["/"]
