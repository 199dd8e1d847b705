"""Containers started for real, through PID 1's own loop."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

import pytest
from containers_harness import (
    DEFAULT_CAPABILITIES,
    Machine,
    StartFailed,
    held_open,
    read_all,
    read_until,
)

from wherry_guest.core.capabilities import mask_of
from wherry_guest.zygote import Rootfs

pytestmark = pytest.mark.guest


def lines(machine: Machine, *args: str, **process: object) -> list[str]:
    result = machine.run(*args, **process)
    assert result.exit_code == 0, result
    return result.stdout.splitlines()


# Exit codes, signals, stdio.


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_is_the_commands(machine: Machine, code: int) -> None:
    assert machine.run("sh", "-c", f"exit {code}").exit_code == code


def test_wait_status_tells_the_signal(machine: Machine) -> None:
    container = machine.start(machine.spec("sleep", "100"))
    os.kill(container.pid, signal.SIGKILL)
    assert machine.finish(container).exit_code == -signal.SIGKILL


def test_first_process_gets_signals_that_it_handles(machine: Machine) -> None:
    script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    container = machine.start(machine.spec("sh", "-c", script))
    read_until(container.stdout, "ready")
    os.kill(container.pid, signal.SIGTERM)
    result = machine.finish(container)
    assert (result.exit_code, result.stdout) == (7, "bye\n")


def test_stdout_and_stderr_are_separate_and_stdin_arrives(machine: Machine) -> None:
    result = machine.run("sh", "-c", "cat; echo err >&2", stdin="in\n")
    assert (result.stdout, result.stderr) == ("in\n", "err\n")


def test_signals_are_neither_ignored_nor_blocked(machine: Machine) -> None:
    status = lines(machine, "cat", "/proc/self/status")
    masks = dict(line.split(":\t") for line in status if line.startswith("Sig"))
    assert int(masks["SigIgn"], 16) == int(masks["SigBlk"], 16) == 0


def test_a_closed_pipe_kills_with_sigpipe(machine: Machine) -> None:
    container = machine.start(machine.spec("sh", "-c", "yes; echo $? >&2"))
    os.close(container.stdout)
    container.stdout = os.open("/dev/null", os.O_RDONLY)
    assert machine.finish(container).stderr == f"{128 + signal.SIGPIPE}\n"


def test_only_stdio_is_open(machine: Machine) -> None:
    machine.zygote.keep("a pipe", pipe := os.pipe())
    container = machine.start(machine.spec("sleep", "100"))
    assert sorted(path.name for path in Path(f"/proc/{container.pid}/fd").iterdir()) == [
        "0",
        "1",
        "2",
    ]
    os.kill(container.pid, signal.SIGKILL)
    machine.finish(container)
    machine.zygote.drop("a pipe")
    for fd in pipe:
        os.close(fd)


def test_no_descriptor_of_pid_1_leaks_over_many_starts(machine: Machine) -> None:
    machine.run("true")
    machine.settle()
    before = held_open(machine.process.pid)
    for _ in range(10):
        machine.run("true")
        with pytest.raises(StartFailed):
            machine.start(machine.spec("no-such-command"))
    machine.settle()
    machine.holds_no_more(before)


def test_a_container_that_ends_at_once_is_started_first(machine: Machine) -> None:
    for _ in range(30):
        container = machine.start(machine.spec("true"))
        assert machine.exited(container.key).pid == container.pid
        machine.zygote.forget(container.key)


# What the process sees.


def test_first_process_is_pid_1_of_its_own_session(machine: Machine) -> None:
    # fields of proc_pid_stat(5): pid, comm, state, ppid, pgrp, session
    fields = lines(machine, "cat", "/proc/self/stat")[0].split()
    assert (fields[0], fields[3], fields[4], fields[5]) == ("1", "0", "1", "1")


def test_only_its_own_processes_are_in_proc(machine: Machine) -> None:
    pids = [name for name in lines(machine, "ls", "/proc") if name.isdigit()]
    assert pids == ["1"]


def test_hostname(machine: Machine) -> None:
    assert lines(machine, "hostname") == ["box"]


def test_environment_is_exactly_the_specs_and_home(machine: Machine) -> None:
    env = ["PATH=/bin", "A=1", "B=two words", "EMPTY="]
    text = machine.run("cat", "/proc/self/environ", env=env).stdout
    assert text.rstrip("\0").split("\0") == [*env, "HOME=/root"]


def test_home_of_the_spec_stays(machine: Machine) -> None:
    assert lines(machine, "sh", "-c", "echo $HOME", env=["HOME=/x", "PATH=/bin"]) == ["/x"]


def test_namespaces_are_its_own(machine: Machine) -> None:
    container = machine.start(machine.spec("sleep", "100"))
    for kind in ("mnt", "uts", "ipc", "net", "pid", "cgroup"):
        mine, its = (
            str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for pid in ("self", container.pid)
        )
        assert mine != its, kind
    os.kill(container.pid, signal.SIGKILL)
    machine.finish(container)


def test_host_network_is_the_machines(machine: Machine) -> None:
    spec = machine.spec("readlink", "/proc/self/ns/net")
    namespaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [item for item in namespaces if item["type"] != "network"]
    assert machine.run_spec(spec).stdout.strip() == str(Path("/proc/self/ns/net").readlink())


def test_network_namespace_of_another_container_can_be_joined(machine: Machine) -> None:
    first = machine.start(machine.spec("sleep", "100"))
    spec = machine.spec("readlink", "/proc/self/ns/net")
    for item in spec["linux"]["namespaces"]:
        if item["type"] == "network":
            item["path"] = f"/proc/{first.pid}/ns/net"
    wanted = str(Path(f"/proc/{first.pid}/ns/net").readlink())
    assert machine.run_spec(spec).stdout.strip() == wanted
    os.kill(first.pid, signal.SIGKILL)
    machine.finish(first)


def test_loopback_is_up(machine: Machine) -> None:
    assert "inet 127.0.0.1/8" in machine.run("ip", "addr").stdout


def test_cgroup_namespace_begins_at_its_cgroup(machine: Machine) -> None:
    assert "0::/" in lines(machine, "cat", "/proc/self/cgroup")
    container = machine.start(machine.spec("sleep", "100"))
    procs = (machine.cgroups / container.key / "cgroup.procs").read_text().split()
    assert procs == [str(container.pid)]
    os.kill(container.pid, signal.SIGKILL)
    machine.finish(container)


def test_oom_score_adj_is_not_pid_1s(machine: Machine) -> None:
    assert lines(machine, "cat", "/proc/self/oom_score_adj", oomScoreAdj=300) == ["300"]


def test_rlimits(machine: Machine) -> None:
    limit = {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}
    command = "ulimit -Sn; ulimit -Hn"
    assert lines(machine, "sh", "-c", command, rlimits=[limit]) == ["100", "200"]


def test_umask_defaults_to_022_and_can_be_set(machine: Machine) -> None:
    assert lines(machine, "sh", "-c", "umask") == ["0022"]
    assert lines(machine, "sh", "-c", "umask", user={"umask": 0o77}) == ["0077"]


# Mounts.


def mounts(machine: Machine) -> dict[str, tuple[str, set[str]]]:
    """Mount point -> (type, options), as the container sees them; the topmost wins."""
    rows = [line.split() for line in lines(machine, "cat", "/proc/self/mounts")]
    return {row[1]: (row[2], set(row[3].split(","))) for row in rows}


def test_mounts_are_the_specs(machine: Machine) -> None:
    table = mounts(machine)
    kinds = {target: kind for target, (kind, _) in table.items()}
    assert kinds["/"] == "overlay"
    assert kinds["/proc"] == "proc"
    assert kinds["/dev"] == kinds["/dev/shm"] == "tmpfs"
    assert kinds["/dev/pts"] == "devpts"
    assert kinds["/dev/mqueue"] == "mqueue"
    assert kinds["/sys/fs/cgroup"] == "cgroup2"
    assert "ro" in table["/sys"][1] and "ro" in table["/sys/fs/cgroup"][1]
    assert {"nosuid", "nodev", "noexec"} <= table["/proc"][1]
    assert "size=65536k" in table["/dev/shm"][1]


def test_overlay_follows_no_redirects(machine: Machine) -> None:
    assert "redirect_dir=nofollow" in mounts(machine)["/"][1]


def test_nothing_of_the_machines_tree_is_left(machine: Machine) -> None:
    for target, (kind, options) in mounts(machine).items():
        assert target == "/" or target.split("/")[1] in ("proc", "dev", "sys"), (kind, options)


def test_masked_files_are_empty_and_masked_directories_too(machine: Machine) -> None:
    assert machine.run("cat", "/proc/timer_list").stdout == ""
    masked = [path for path in ("/proc/acpi", "/sys/firmware") if Path(path).is_dir()]
    assert masked, "neither a device tree nor ACPI"
    for path in masked:
        assert machine.run("ls", "-A", path).stdout == ""


def test_readonly_paths_cannot_be_written(machine: Machine) -> None:
    result = machine.run("sh", "-c", "echo 1 > /proc/sys/kernel/pid_max")
    assert "Read-only file system" in result.stderr


def test_readonly_root_still_has_writable_dev_shm(machine: Machine) -> None:
    spec = machine.spec("sh", "-c", "touch /dev/shm/x && touch /x", cwd="/made/here")
    spec["root"]["readonly"] = True
    result = machine.run_spec(spec)
    assert result.exit_code != 0 and "/x: Read-only file system" in result.stderr


def test_devices_have_docker_s_numbers_and_modes(machine: Machine) -> None:
    output = machine.run("stat", "-c", "%n %t:%T %a", "/dev/null", "/dev/tty", "/dev/urandom")
    assert output.stdout.splitlines() == [
        "/dev/null 1:3 666", "/dev/tty 5:0 666", "/dev/urandom 1:9 666",
    ]  # fmt: skip
    assert machine.run("readlink", "/dev/ptmx").stdout == "pts/ptmx\n"


def test_bind_mounts_of_files_reach_through_dangling_links(machine: Machine) -> None:
    """Ubuntu's /etc/resolv.conf points into a /run that the image does not have."""
    source = machine.directory / "resolv.conf"
    source.write_text("nameserver 192.0.2.1\n")
    layer = machine.directory / "l" / "dangling"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc" / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    spec = machine.spec("cat", "/etc/resolv.conf")
    mount = {"destination": "/etc/resolv.conf", "source": str(source), "type": "bind"}
    spec["mounts"].append({**mount, "options": ["rbind", "rprivate"]})
    rootfs = machine.rootfs("dangling", "dangling", "busybox")
    result = machine.finish(machine.start(spec, rootfs=rootfs))
    assert result.stdout == "nameserver 192.0.2.1\n"


def test_bind_options_are_applied(machine: Machine) -> None:
    source = machine.directory / "shared"
    source.mkdir()
    spec = machine.spec("sh", "-c", "grep ' /in/side ' /proc/mounts; touch /in/side/x")
    mount = {"destination": "/in/side", "source": str(source), "type": "bind"}
    spec["mounts"].append({**mount, "options": ["bind", "ro", "nosuid"]})
    result = machine.run_spec(spec)
    assert "ro,nosuid" in result.stdout
    assert "Read-only" in result.stderr


def test_links_of_a_hostile_image_do_not_lead_out(machine: Machine) -> None:
    secret = machine.directory / "outside"
    secret.mkdir()
    layer = machine.directory / "l" / "hostile"
    layer.mkdir()
    (layer / "data").symlink_to(f"../../../../..{secret}")
    source = machine.directory / "file"
    source.write_text("mounted\n")
    spec = machine.spec("cat", "/data/below/file")
    mount = {"destination": "/data/below/file", "source": str(source), "type": "bind"}
    spec["mounts"].append({**mount, "options": ["bind"]})
    rootfs = machine.rootfs("hostile", "hostile", "busybox")
    assert machine.finish(machine.start(spec, rootfs=rootfs)).stdout == "mounted\n"
    assert list(secret.iterdir()) == []


def test_proc_is_not_mounted_through_a_link(machine: Machine) -> None:
    layer = machine.directory / "l" / "proclink"
    layer.mkdir()
    (layer / "proc").symlink_to("/tmp")
    rootfs = machine.rootfs("proclink", "proclink", "busybox")
    with pytest.raises(StartFailed, match="symbolic link"):
        machine.start(machine.spec("true"), rootfs=rootfs)


def test_tmpfs_with_options(machine: Machine) -> None:
    spec = machine.spec("sh", "-c", "grep ' /scratch ' /proc/mounts; stat -c %a /scratch")
    options = ["noexec", "size=1m", "mode=1770"]
    mount = {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"}
    spec["mounts"].append({**mount, "options": options})
    row, mode = machine.run_spec(spec).stdout.splitlines()
    assert "size=1024k" in row and "noexec" in row and mode == "1770"


def test_rootfs_of_many_layers_and_none_of_it_writable(machine: Machine) -> None:
    names = []
    for number in range(60):
        layer = machine.directory / "l" / f"n{number}"
        layer.mkdir()
        (layer / f"f{number}").write_text(str(number))
        names.append(layer.name)
    rootfs = machine.rootfs("many", *names, "busybox")
    container = machine.start(machine.spec("cat", "/f0", "/f59"), rootfs=rootfs)
    assert machine.finish(container).stdout == "059"


def test_what_a_container_writes_stays_in_its_upper_directory(machine: Machine) -> None:
    key = machine.new_key()
    rootfs = machine.rootfs(key)
    machine.finish(machine.start(machine.spec("touch", "/made"), key=key, rootfs=rootfs))
    assert (machine.directory / f"{key}-upper/made").exists()
    assert not (machine.directory / "l/busybox/made").exists()
    again = machine.start(machine.spec("ls", "/made"), key=key, rootfs=rootfs)
    assert machine.finish(again).stdout == "/made\n"


# Users and capabilities.


@pytest.mark.parametrize(
    ("username", "wanted"),
    [
        ("", "0:0:0"),
        ("web", "1000:1000:1000 10 50"),
        ("1000", "1000:1000:1000 10 50"),
        ("web:staff", "1000:50:50"),
        ("1234", "1234:0:0"),
        ("1234:4321", "1234:4321:4321"),
        ("root", "0:0:0 10"),
    ],
)
def test_user_names_mean_what_docker_means(machine: Machine, username: str, wanted: str) -> None:
    output = lines(
        machine, "sh", "-c", 'echo "$(id -u):$(id -g):$(id -G)"', user={"username": username}
    )
    assert output == [wanted]


def test_unknown_user_is_a_setup_error_that_names_it(machine: Machine) -> None:
    with pytest.raises(StartFailed) as failure:
        machine.start(machine.spec("true", user={"username": "nobody-here"}))
    assert failure.value.report.exit_code == 125
    assert "unable to find user nobody-here" in failure.value.report.message


def test_home_comes_from_the_containers_passwd(machine: Machine) -> None:
    assert lines(machine, "sh", "-c", "echo $HOME", user={"username": "web"}) == ["/home/web"]


def test_users_files_of_a_hostile_image_are_not_followed_out(machine: Machine) -> None:
    layer = machine.directory / "l" / "passwd"
    (layer / "etc").mkdir(parents=True)
    os.mkfifo(layer / "etc/passwd")
    rootfs = machine.rootfs("passwd", "passwd", "busybox")
    with pytest.raises(StartFailed, match="unable to find user web"):
        machine.start(machine.spec("true", user={"username": "web"}), rootfs=rootfs)


def test_a_user_can_reopen_its_own_stdout(machine: Machine) -> None:
    result = machine.run("sh", "-c", "echo hi > /dev/stdout", user={"username": "web"})
    assert result.stdout == "hi\n"


def capability_lines(machine: Machine, **process: object) -> dict[str, int]:
    status = lines(machine, "cat", "/proc/self/status", **process)
    pairs = (line.split(":\t") for line in status if line.startswith("Cap"))
    return {name: int(mask, 16) for name, mask in pairs}


def test_root_has_the_14_default_capabilities(machine: Machine) -> None:
    mask = mask_of(DEFAULT_CAPABILITIES)
    assert capability_lines(machine) == {
        "CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0,
    }  # fmt: skip


def test_another_user_loses_them_at_exec(machine: Machine) -> None:
    found = capability_lines(machine, user={"username": "web"})
    assert (found["CapPrm"], found["CapEff"]) == (0, 0)
    assert found["CapBnd"] == mask_of(DEFAULT_CAPABILITIES)


def test_ambient_capabilities_survive_for_another_user(machine: Machine) -> None:
    names = ["CAP_NET_BIND_SERVICE"]
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    found = capability_lines(
        machine, user={"uid": 1000, "gid": 1000}, capabilities=dict.fromkeys(sets, names)
    )
    assert set(found.values()) == {mask_of(names)}


def test_no_capabilities_at_all(machine: Machine) -> None:
    assert set(capability_lines(machine, capabilities={}).values()) == {0}


def test_no_new_privileges(machine: Machine) -> None:
    assert "NoNewPrivs:\t1" in lines(machine, "cat", "/proc/self/status", noNewPrivileges=True)


# Working directory, and what cannot be run.


def test_missing_working_directory_is_made(machine: Machine) -> None:
    assert lines(machine, "pwd", cwd="/srv/new/app") == ["/srv/new/app"]


def test_working_directory_outside_of_the_container_is_refused(machine: Machine) -> None:
    for number in range(3, 12):
        with pytest.raises(StartFailed):
            machine.start(machine.spec("pwd", cwd=f"/proc/self/fd/{number}"))


@pytest.mark.parametrize(
    ("command", "exit_code", "message"),
    [
        ("no-such-command", 127, 'exec: "no-such-command": executable file not found in $PATH'),
        ("", 127, 'exec: "": executable file not found in $PATH'),
        ("/no/such", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, "is a directory"),
        ("/bin/garbage", 126, "exec format error"),
        ("/bin/orphan", 127, "no such file or directory"),
    ],
)
def test_what_cannot_be_run(machine: Machine, command: str, exit_code: int, message: str) -> None:
    layer = machine.directory / "l" / "bad"
    if not layer.exists():
        (layer / "bin").mkdir(parents=True)
        for name, text in (("garbage", "\0garbage"), ("orphan", "#!/no/interpreter\n")):
            (layer / "bin" / name).write_text(text)
            (layer / "bin" / name).chmod(0o755)
    with pytest.raises(StartFailed) as failure:
        machine.start(machine.spec(command), rootfs=machine.rootfs("bad", "bad", "busybox"))
    report = failure.value.report
    assert report.exit_code == exit_code
    assert message in report.message.lower() or message in report.message
    assert report.step == f"exec {command!r}"


def test_path_lookup_is_along_the_containers_own_path(machine: Machine) -> None:
    with pytest.raises(StartFailed) as failure:
        machine.start(machine.spec("true", env=["PATH=/nowhere"]))
    assert failure.value.report.exit_code == 127
    assert lines(machine, "pwd", env=["PATH=/nowhere:/bin"]) == ["/"]


# Failures leave nothing.


def leftovers(machine: Machine) -> tuple[set[str], str, list[int]]:
    """Cgroups, the mounts of PID 1's process, and its children."""
    others = machine.others()
    cgroups = {path.name for path in machine.cgroups.iterdir() if path.is_dir()}
    pid = machine.process.pid
    return cgroups, Path(f"/proc/{pid}/mounts").read_text(), others


def broken_specs(machine: Machine) -> dict[str, tuple[dict, str]]:
    limit = machine.spec("true")
    limit["linux"]["resources"] = {"unified": {"nonsense.max": "1"}}
    bind = machine.spec("true")
    mount = {"destination": "/x", "source": "/no/such/source", "type": "bind"}
    bind["mounts"].append({**mount, "options": ["bind"]})
    tmpfs = machine.spec("true")
    bad = {"destination": "/x", "source": "tmpfs", "type": "tmpfs", "options": ["size=nonsense"]}
    tmpfs["mounts"].append(bad)
    unknown = machine.spec("true")
    unknown["linux"]["timeOffsets"] = {"monotonic": {"secs": 1}}
    return {
        "limit": (
            limit,
            "set nonsense.max to 1 (linux.resources.unified.nonsense.max): the cgroup has no",
        ),
        "bind": (bind, "take /no/such/source for a bind mount (mounts): No such file or directory"),
        "tmpfs": (tmpfs, "mount tmpfs on /x: Invalid argument (EINVAL)"),
        "unknown field": (unknown, "linux.timeOffsets needs a new time namespace"),
        "command": (machine.spec("nope"), "executable file not found"),
    }


@pytest.mark.parametrize("name", ["limit", "bind", "tmpfs", "unknown field", "command"])
def test_a_failing_step_names_itself_and_leaves_nothing(machine: Machine, name: str) -> None:
    before = leftovers(machine)
    spec, message = broken_specs(machine)[name]
    with pytest.raises(StartFailed) as failure:
        machine.start(spec)
    assert message in failure.value.report.message
    assert leftovers(machine) == before


def test_a_failed_overlay_leaves_nothing(machine: Machine) -> None:
    before = leftovers(machine)
    with pytest.raises(StartFailed) as failure:
        machine.start(machine.spec("true"), rootfs=machine.rootfs("ghost", "ghost", "busybox"))
    assert failure.value.report.errno == errno.ENOENT
    assert failure.value.report.step.startswith("mount overlay on ")
    assert leftovers(machine) == before


def test_an_ended_container_leaves_nothing(machine: Machine) -> None:
    before = leftovers(machine)
    machine.run("sh", "-c", "sleep 100 & sleep 100 & true")
    assert leftovers(machine) == before


def test_a_key_in_use_is_refused_and_its_owner_lives_on(machine: Machine) -> None:
    container = machine.start(machine.spec("cat"))
    with pytest.raises(StartFailed) as failure:
        machine.start(machine.spec("true"), key=container.key)
    assert failure.value.report.errno == errno.EEXIST
    assert machine.finish(container, "alive").stdout == "alive"


def test_a_root_without_upper_directory_is_readonly(machine: Machine) -> None:
    layer = machine.directory / "l" / "ground"
    for name in ("proc", "sys", "dev"):
        (layer / name).mkdir(parents=True)
    container = machine.start(
        machine.spec("touch", "/x"), rootfs=Rootfs(("ground", "busybox")), key=machine.new_key()
    )
    assert "Read-only file system" in machine.finish(container).stderr


def test_device_filter_of_the_spec_is_enforced(machine: Machine) -> None:
    spec = machine.spec("sh", "-c", "mknod /dev/zz c 1 5 && head -c1 /dev/zz; echo x > /dev/null")
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    ]
    spec["linux"]["resources"]["devices"] = rules
    result = machine.run_spec(spec)
    assert "/dev/zz: Operation not permitted" in result.stderr
    assert "/dev/null" not in result.stderr


def test_spec_devices_are_made(machine: Machine) -> None:
    spec = machine.spec("stat", "-c", "%t:%T %a %u", "/dev/net/tun")
    device = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o660}
    spec["linux"]["devices"] = [{**device, "uid": 1000}]
    assert machine.run_spec(spec).stdout == "a:c8 660 1000\n"


def test_sysctls_of_new_namespaces_are_set(machine: Machine) -> None:
    spec = machine.spec("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start")
    spec["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
    assert machine.run_spec(spec).stdout == "0\n"


def test_big_specs_arrive_whole(machine: Machine) -> None:
    env = ["PATH=/bin", *(f"V{number}={'x' * 1000}" for number in range(300))]
    result = machine.run("sh", "-c", "env | grep -c ^V", env=env)
    assert result.stdout == "300\n"


def test_upper_directory_keeps_modes(machine: Machine) -> None:
    key = machine.new_key()
    rootfs = machine.rootfs(key)
    spec = machine.spec("sh", "-c", "mkdir -m 2775 /a; mkfifo /a/p")
    assert machine.finish(machine.start(spec, key=key, rootfs=rootfs)).exit_code == 0
    made = machine.directory / f"{key}-upper/a"
    assert stat.S_IMODE(made.stat().st_mode) == 0o2775 and (made / "p").is_fifo()


def test_output_of_a_killed_container_is_complete(machine: Machine) -> None:
    container = machine.start(machine.spec("sh", "-c", "echo one; echo two; kill -9 $$; sleep 9"))
    os.close(container.stdin)
    assert read_until(container.stdout, "two\n") == "one\ntwo\n"
    os.kill(container.pid, signal.SIGKILL)
    assert read_all(container.stdout) == "" == read_all(container.stderr)
    machine.exited(container.key)
    machine.zygote.forget(container.key)
