"""Several machines, as a user has them: one with Debian's 6.1 kernel beside the shared one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
from harness import Wherry
from waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

BUSYBOX = "localhost/busybox"
OTHER = "other"
SHAPE = ("--memory", "512m", "--cpus", "1", "--kernel", "6.1")
"""Of all machines here: they start from one template."""


class Other:
    """The commands of one machine."""

    def __init__(self, wherry: Wherry, name: str) -> None:
        self.wherry = wherry
        self.name = name

    def out(self, *args: str, timeout: float = 120) -> str:
        return self.wherry.out("-M", self.name, *args, timeout=timeout)

    def fails(self, *args: str) -> str:
        done = self.wherry.run("-M", self.name, *args)
        assert done.returncode != 0
        return done.stderr.decode()

    def facts(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out("machine", "inspect", self.name))[0]
        return found


@pytest.fixture(scope="module")
def other(wherry: Wherry) -> Iterator[Other]:
    wherry.run("machine", "create", OTHER, *SHAPE, "--disk", "1g", check=True)
    it = Other(wherry, OTHER)
    it.out("run", "-d", "--name", "box", "-v", "vol:/data", BUSYBOX, "sleep", "1000", timeout=200)
    it.out("exec", "box", "sh", "-c", "echo kept > /data/file; echo mine > /file")
    yield it
    for name in (OTHER, "copy", "heir"):
        wherry.run("machine", "rm", "-f", name)


def test_a_container_runs_on_the_kernel_that_was_chosen(other: Other) -> None:
    assert other.out("exec", "box", "uname", "-r").startswith("6.1.")
    assert other.facts()["kernel"] == "6.1"


def test_two_machines_run_at_once_and_share_nothing_but_images(
    wherry: Wherry, other: Other
) -> None:
    name = f"here-{uuid.uuid4().hex[:8]}"
    wherry.run("run", "-d", "--name", name, BUSYBOX, "sleep", "1000", check=True, timeout=200)
    assert not wherry.out("exec", name, "uname", "-r").startswith("6.1.")
    assert name not in other.out("ps", "--format", "{{.Names}}")
    assert "box" not in wherry.out("ps", "--format", "{{.Names}}").split()
    table = wherry.out("machine", "ls", "--format", "{{.Name}} {{.State}} {{.Kernel}}")
    assert {"default running default", f"{OTHER} running 6.1"} <= set(table.splitlines())
    wherry.run("rm", "-f", name, check=True)


def test_what_one_machine_prunes_another_still_has(wherry: Wherry, other: Other) -> None:
    tag = f"localhost/theirs-{uuid.uuid4().hex[:8]}"
    other.out("commit", "box", tag)
    other.out("run", "-d", "--name", "theirs", tag, "sleep", "1000")
    wherry.run("rmi", "-f", tag, check=True)
    wherry.run("system", "prune", "-f", check=True)
    other.out("restart", "-t", "0", "theirs")
    assert other.out("exec", "theirs", "cat", "/file") == "mine"
    other.out("rm", "-f", "theirs")


def test_a_running_machines_disk_grows_and_its_memory_waits(other: Other) -> None:
    def mib() -> int:
        return int(other.out("exec", "box", "df", "-m", "/data").splitlines()[-1].split()[1])

    assert mib() < 1024
    assert "cannot be made smaller" not in other.out("machine", "set", "--disk", "5g", OTHER)
    assert mib() > 4 * 1024
    other.out("machine", "set", "--memory", "600m", OTHER)
    assert other.facts()["memory_mib"] == 512
    assert other.facts()["pending"] == {"memory_mib": {"now": 512, "next": 600}}
    assert "has 5 GiB" in other.fails("machine", "set", "--disk", "2g", OTHER)
    other.out("machine", "set", "--memory", "512m", OTHER)
    assert other.facts()["pending"] == {}
    assert other.out("exec", "box", "cat", "/data/file") == "kept"


def test_a_machine_is_copied_without_its_identity(wherry: Wherry, other: Other) -> None:
    assert "is running" in other.fails("machine", "clone", OTHER, "copy")
    other.out("stop", "-t", "0", "box")
    other.out("machine", "stop", OTHER)
    assert wherry.out("machine", "clone", OTHER, "copy") == "copy"
    copy = Other(wherry, "copy")
    assert copy.out("ps", "-a", "--format", "{{.Names}}") == "box"
    copy.out("start", "box", timeout=200)
    assert copy.out("exec", "box", "cat", "/data/file", "/file") == "kept\nmine"
    assert copy.facts()["disk_gib"] == 5
    copy.out("exec", "box", "sh", "-c", "echo changed > /data/file")
    other.out("start", "box", timeout=200)
    assert other.out("exec", "box", "cat", "/data/file") == "kept"
    boot = ("exec", "box", "cat", "/proc/sys/kernel/random/boot_id")
    assert copy.out(*boot) != other.out(*boot)
    copy.out("stop", "-t", "0", "box")
    copy.out("machine", "rm", "-f", "copy")


def test_a_kept_disk_is_taken_up_by_another_machine(wherry: Wherry, other: Other) -> None:
    other.out("stop", "-t", "0", "box")
    other.out("machine", "rm", "-f", "--keep-disk", OTHER)
    states = wherry.out("machine", "ls", "--format", "{{.Name}} {{.State}}").splitlines()
    assert f"{OTHER} disk kept" in states
    wherry.run("system", "prune", "-f", check=True)
    wherry.run("machine", "create", "heir", *SHAPE, "--disk-from", OTHER, check=True)
    heir = Other(wherry, "heir")
    assert heir.facts()["disk_gib"] == 5
    heir.out("start", "box", timeout=200)
    assert heir.out("exec", "box", "cat", "/data/file", "/file") == "kept\nmine"
    names = wherry.out("machine", "ls", "--format", "{{.Name}}").splitlines()
    assert OTHER not in names
    heir.out("stop", "-t", "0", "box")
    heir.out("machine", "rm", "-f", "heir")
    eventually("its files are gone", lambda: not wherry.home.machine("heir").root.exists())
