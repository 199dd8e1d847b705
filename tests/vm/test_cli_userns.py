"""User namespaces: root in the container, nobody in the machine, and files as always."""

from __future__ import annotations

import io
import tarfile
import uuid

import pytest
from harness import Wherry

pytestmark = pytest.mark.vm

BUSYBOX = "localhost/busybox"
OWNER = "%u:%g %n"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def owners(archive: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: (member.uid, member.gid) for member in tar}


def test_owners_are_the_containers_everywhere(wherry: Wherry) -> None:
    name, volume, image = unique("mapped"), unique("volume"), unique("localhost/made")
    script = "echo x >/new; touch /v/x; chown 5:6 /new /v; exec sleep 1000"
    mapped = ("--userns", "private", "-v", f"{volume}:/v")
    wherry.out("run", "-d", "--name", name, *mapped, BUSYBOX, "sh", "-c", script)
    wherry.out("exec", name, "sh", "-c", "until grep -q sleep /proc/1/cmdline; do :; done")
    shown = wherry.out("exec", name, "sh", "-c", f"id -u; stat -c '{OWNER}' /new /v /etc/hosts")
    assert shown.splitlines() == ["0", "5:6 /new", "5:6 /v", "0:0 /etc/hosts"]
    assert wherry.out("exec", "-u", "7", name, "id", "-u") == "7"
    uid = wherry.out("exec", name, "cat", "/proc/self/uid_map").split()
    assert uid[0] == "0" and int(uid[1]) >= 65536 and uid[2] == "65536"

    wherry.run("cp", "-", f"{name}:/", input=_archive(), check=True)
    copied = wherry.run("cp", f"{name}:/brought", "-", check=True).stdout
    assert owners(copied) == {"brought": (8, 9)}
    exported = owners(wherry.run("export", name, check=True).stdout)
    assert (exported["new"], exported["brought"]) == ((5, 6), (8, 9))
    assert "A /new" in wherry.out("diff", name).splitlines()
    wherry.out("commit", name, image)
    wherry.out("rm", "-f", name)
    command = ("sh", "-c", f"stat -c '{OWNER}' /new /brought /v")
    expected = ["5:6 /new", "8:9 /brought", "5:6 /v"]
    for flags in ((), ("--userns", "auto:size=4096")):
        again = wherry.out("run", "--rm", *flags, "-v", f"{volume}:/v", image, *command)
        assert again.splitlines() == expected
    wherry.out("rmi", image)
    wherry.out("volume", "rm", volume)


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("brought")
        member.uid, member.gid = 8, 9
        tar.addfile(member)
    return buffer.getvalue()


def test_who_joins_shares_the_user_namespace(wherry: Wherry) -> None:
    name = unique("mapped")
    flags = ("--userns", "auto", "--ipc", "shareable")
    wherry.out("run", "-d", "--name", name, *flags, BUSYBOX, "sleep", "1000")
    joined = [f"--{kind}=container:{name}" for kind in ("ipc", "pid", "network")]
    show = ("cat", "/proc/self/uid_map")
    assert wherry.out("run", "--rm", *joined, BUSYBOX, *show) == wherry.out("exec", name, *show)
    alone = wherry.out("run", "--rm", "--userns", "private", BUSYBOX, *show)
    assert alone != wherry.out("exec", name, *show)
    wherry.out("rm", "-f", name)


@pytest.mark.parametrize(
    ("flags", "command", "expected"),
    [
        (["--ulimit", "memlock=-1:-1"], "ulimit -l", "unlimited"),
        (["--device", "/dev/zero:/dev/mine"], "head -c 2 /dev/mine | wc -c", "2"),
        (["-u", "1000", "--tmpfs", "/t"], "touch /t/x; stat -c %u /t/x", "1000"),
        (["--read-only", "--init"], "touch /x 2>/dev/null || echo no", "no"),
        (["--sysctl", "net.core.somaxconn=77"], "cat /proc/sys/net/core/somaxconn", "77"),
        (["--cap-add", "ALL"], "mknod /x b 254 0 2>/dev/null || echo no", "no"),
        (["--cap-add", "SYS_TIME"], "date -s 2020-01-01 2>&1 | grep -o not.perm", "not perm"),
    ],
)
def test_flags_in_a_user_namespace(
    wherry: Wherry, flags: list[str], command: str, expected: str
) -> None:
    run = ("run", "--rm", "--userns", "private")
    assert wherry.out(*run, *flags, BUSYBOX, "sh", "-c", command) == expected
