"""What a container sees of the machine, as flags say: limits, devices, namespaces, names."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from harness import Wherry

pytestmark = pytest.mark.vm

BUSYBOX = "localhost/busybox"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize(
    ("flags", "command", "expected"),
    [
        (["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn", "100\n200"),
        (["--sysctl", "net.core.somaxconn=77"], "cat /proc/sys/net/core/somaxconn", "77"),
        (["--sysctl", "kernel.shmmax=4096"], "cat /proc/sys/kernel/shmmax", "4096"),
        (["--group-add", "tty", "--group-add", "44"], "id -G", "0 5 44"),
        (["--oom-score-adj", "77"], "cat /proc/self/oom_score_adj", "77"),
        (["--init"], "cat /proc/1/comm; echo $PPID", "wherry-init\n1"),
        (["--domainname", "example.org"], "cat /proc/sys/kernel/domainname", "example.org"),
        (["--add-host", "db:192.0.2.1"], "grep db /etc/hosts", "192.0.2.1\tdb"),
        (
            ["--dns", "192.0.2.9", "--dns-search", "a.b", "--dns-opt", "ndots:2"],
            "cat /etc/resolv.conf",
            "nameserver 192.0.2.9\nsearch a.b\noptions ndots:2",
        ),
        (["--tmpfs", "/t:size=1m,exec"], "df -k /t | tail -1 | awk '{print $2}'", "1024"),
        (
            ["--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700"],
            "stat -c %a /t; grep -c '/t tmpfs.*noexec' /proc/mounts",
            "700\n1",
        ),
        (["--shm-size", "2m"], "df -k /dev/shm | tail -1 | awk '{print $2}'", "2048"),
        (["--ipc", "none"], "ls -d /dev/shm 2>/dev/null; echo gone", "gone"),
        (["--cgroupns", "host"], "grep -c containers/ /proc/self/cgroup", "1"),
        (["--device", "/dev/full:/dev/mine:r"], "head -c 2 /dev/mine | wc -c", "2"),
        (
            ["--security-opt", "no-new-privileges"],
            "grep NoNewPrivs /proc/self/status",
            "NoNewPrivs:\t1",
        ),
        (["--security-opt", "systempaths=unconfined"], "wc -c < /proc/timer_list | head -c 1", ""),
    ],
)
def test_flags(wherry: Wherry, flags: list[str], command: str, expected: str) -> None:
    output = wherry.out("run", "--rm", *flags, BUSYBOX, "sh", "-c", command)
    if expected:
        assert output == expected
    else:
        assert output not in ("", "0")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sysctl", "kernel.panic=1"], "sysctl 'kernel.panic' is not allowed"),
        (["--sysctl", "net.x=1", "--network", "host"], "own network namespace"),
        (["--ulimit", "files=1"], "invalid ulimit type: files"),
        (["--device", "/dev/nope"], 'custom device "/dev/nope": no such file'),
        (["--device", "/etc/passwd"], "not a device node"),
        (["--group-add", "nobody-here"], "unable to find group nobody-here"),
        (["--ipc", "container:nobody-here"], "No such container"),
        (["--dns", "nowhere"], "invalid IP address"),
        (["--tmpfs", "/t:wrong"], 'invalid tmpfs option "wrong"'),
        (["--mount", "type=volume,source=vv,target=x"], "mount path must be absolute"),
        (["-v", "vv:/x", "-v", "ww:/x"], "Duplicate mount point: /x"),
        (["--security-opt", "apparmor=x"], "HostConfig.SecurityOpt"),
        (["-p", "80:80"], "No such option"),
    ],
)
def test_flags_that_are_wrong_say_so(wherry: Wherry, flags: list[str], words: str) -> None:
    done = wherry.run("run", "--rm", *flags, BUSYBOX, "true")
    assert done.returncode == 125
    assert words in done.stderr.decode(), done.stderr


def test_containers_share_namespaces(wherry: Wherry) -> None:
    name = unique("first")
    script = "echo shared > /dev/shm/x; exec sleep 1000"
    wherry.out(
        "run", "-d", "--name", name, "--ipc", "shareable", "-h", "first",
        "--add-host", "me:192.0.2.1", BUSYBOX, "sh", "-c", script,
    )  # fmt: skip
    joined = [f"--{kind}=container:{name}" for kind in ("ipc", "pid", "network")]
    output = wherry.out(
        "run", "--rm", *joined, BUSYBOX, "sh", "-c",
        "cat /dev/shm/x; hostname; grep me /etc/hosts; ps | grep -c 'sleep 1000'",
    )  # fmt: skip
    assert output.splitlines()[:3] == ["shared", "first", "192.0.2.1\tme"]
    assert int(output.splitlines()[3]) >= 2  # it, and grep itself
    assert wherry.run("run", "--rm", f"--pid=container:{name}", BUSYBOX, "true").returncode == 0
    wherry.run("kill", name, check=True)
    done = wherry.run("run", "--rm", f"--network=container:{name}", BUSYBOX, "true")
    assert done.returncode == 125 and b"is not running" in done.stderr
    wherry.run("rm", name, check=True)


def test_the_machines_namespaces(wherry: Wherry) -> None:
    output = wherry.out(
        "run", "--rm", "--pid", "host", "--uts", "host", BUSYBOX,
        "sh", "-c", "ls -d /proc/[0-9]* | wc -l; hostname",
    )  # fmt: skip
    processes, name = output.splitlines()
    assert int(processes) > 20
    assert name == "default"


def test_privileged_containers_have_the_machines_devices(wherry: Wherry) -> None:
    script = "test -c /dev/kmsg && test -b /dev/vda && echo yes; ls /dev/pts"
    output = wherry.out("run", "--rm", "--privileged", BUSYBOX, "sh", "-c", script)
    assert output == "yes\nptmx"


def test_drivers_are_loaded_when_their_devices_are_opened(wherry: Wherry) -> None:
    make = "head -c 1048576 /dev/zero >/disk && mke2fs -F /disk >&2"
    script = f"{make} && mount -o loop /disk /tmp && ls /tmp && umount /tmp"
    assert wherry.out("run", "--rm", "--privileged", BUSYBOX, "sh", "-c", script) == "lost+found"
    flags = ["--device", "/dev/net/tun", "--cap-add", "NET_ADMIN", "-u", "0"]
    script = "tunctl -t mine && ip link show mine | head -1"
    assert "mine: " in wherry.out("run", "--rm", *flags, BUSYBOX, "sh", "-c", script)


def test_the_id_is_written_to_a_new_file(wherry: Wherry, tmp_path: Path) -> None:
    file = tmp_path / "id"
    wherry.out("run", "--rm", "--cidfile", str(file), BUSYBOX, "true")
    assert len(file.read_text()) == 64
    done = wherry.run("run", "--rm", "--cidfile", str(file), BUSYBOX, "true")
    assert done.returncode == 125 and b"container ID file found" in done.stderr
    file.unlink()
    assert wherry.run("create", "--cidfile", str(file), "--ipc", "x", BUSYBOX).returncode
    assert not file.exists()


def test_only_the_stream_that_is_named_is_shown(wherry: Wherry) -> None:
    script = "echo out; echo err >&2"
    done = wherry.run("run", "--rm", "-a", "stderr", BUSYBOX, "sh", "-c", script, check=True)
    assert (done.stdout, done.stderr) == (b"", b"err\n")
