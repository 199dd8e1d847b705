"""Volumes and cp, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import uuid
from pathlib import Path

import pytest
from harness import Wherry
from waiting import eventually

pytestmark = pytest.mark.vm

BUSYBOX = "localhost/busybox"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def volumes(wherry: Wherry) -> list[str]:
    return wherry.out("volume", "ls", "-q").split()


def test_a_volume_outlives_containers_machine_and_engine(wherry: Wherry) -> None:
    name = unique("data")
    script = "echo kept > /data/file; sync"
    wherry.out("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "sh", "-c", script)
    wherry.run("machine", "stop", check=True, timeout=120)
    assert name in volumes(wherry)
    facts = json.loads(wherry.out("volume", "inspect", name))[0]
    assert facts["Mountpoint"] == f"/var/lib/wherry/volumes/{name}/_data"
    read = wherry.out(
        "run", "--rm", "-v", f"{name}:/data:ro", BUSYBOX, "cat", "/data/file", timeout=120
    )
    assert read == "kept"
    wherry.run("volume", "rm", name, check=True)


def test_a_volume_that_was_removed_and_made_again_is_empty(wherry: Wherry) -> None:
    name = unique("again")
    wherry.out("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "touch", "/data/old")
    wherry.run("volume", "rm", name, check=True)
    assert wherry.out("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "ls", "/data") == ""
    wherry.run("volume", "rm", name, check=True)


def test_an_empty_volume_gets_what_the_image_has(wherry: Wherry) -> None:
    name = unique("etc")
    assert "passwd" in wherry.out("run", "--rm", "-v", f"{name}:/etc", BUSYBOX, "ls", "/etc")
    assert "passwd" in wherry.out("run", "--rm", "-v", f"{name}:/x", BUSYBOX, "ls", "/x")
    other = unique("nocopy")
    listed = wherry.out("run", "--rm", "-v", f"{other}:/bin2:nocopy", BUSYBOX, "ls", "/bin2")
    assert listed == ""
    wherry.run("volume", "rm", name, other, check=True)


def test_anonymous_volumes_go_with_their_container(wherry: Wherry) -> None:
    before = set(volumes(wherry))
    wherry.out("run", "--rm", "-v", "/anonymous", BUSYBOX, "touch", "/anonymous/x")
    eventually("the anonymous volume is gone", lambda: set(volumes(wherry)) == before)
    name = unique("holder")
    wherry.out("create", "--name", name, "-v", "/anonymous", BUSYBOX, "true")
    wherry.run("rm", "-v", name, check=True)
    assert set(volumes(wherry)) == before


def test_a_volume_in_use_cannot_be_removed(wherry: Wherry) -> None:
    name, volume = unique("user"), unique("used")
    wherry.out("create", "--name", name, "-v", f"{volume}:/x", BUSYBOX, "true")
    done = wherry.run("volume", "rm", volume)
    assert done.returncode == 1 and b"volume is in use" in done.stderr
    wherry.run("rm", name, check=True)
    wherry.run("volume", "rm", volume, check=True)


def test_a_directory_of_this_computer_is_refused_with_a_hint(wherry: Wherry) -> None:
    done = wherry.run("run", "--rm", "-v", "/tmp:/x", BUSYBOX, "true")
    assert done.returncode == 125
    assert b"HostConfig.Binds" in done.stderr and b"hint:" in done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "file").write_bytes(os.urandom(3_000_000))
    (top / "sub/run").write_text("#!/bin/sh\n")
    (top / "sub/run").chmod(0o750)
    (top / "link").symlink_to("sub/run")
    return top


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_cp_both_ways(wherry: Wherry, tree: Path, tmp_path: Path, state: str) -> None:
    name = unique("cp")
    command = ["sleep", "1000"] if state == "running" else ["true"]
    wherry.out("run", "-d", "--name", name, BUSYBOX, *command)
    if state == "stopped":
        wherry.out("wait", name)
    wherry.run("cp", str(tree), f"{name}:/root", check=True)
    wherry.run("cp", f"{tree}/.", f"{name}:/root/contents", check=True)
    wherry.run("cp", str(tree / "file"), f"{name}:/root/renamed", check=True)
    back = tmp_path / "back"
    wherry.run("cp", f"{name}:/root/tree", str(back), check=True)
    assert (back / "file").read_bytes() == (tree / "file").read_bytes()
    assert (back / "link").readlink() == Path("sub/run")
    assert (back / "sub/run").stat().st_mode & 0o777 == 0o750
    wherry.run("cp", f"{name}:/root/renamed", str(tmp_path), check=True)
    assert (tmp_path / "renamed").read_bytes() == (tree / "file").read_bytes()
    wherry.run("cp", "-L", f"{name}:/root/tree/link", str(tmp_path), check=True)
    assert not (tmp_path / "link").is_symlink()
    archive = wherry.run("cp", f"{name}:/root/contents/sub", "-", check=True).stdout
    (tmp_path / "out.tar").write_bytes(archive)
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["sub", "sub/run"]
    wherry.run("cp", "-", f"{name}:/tmp", input=archive, check=True)
    wherry.run("cp", f"{name}:/tmp/sub/run", str(tmp_path / "again"), check=True)
    for arguments, words in (
        ([f"{name}:/nope", str(tmp_path)], b"Could not find the file /nope"),
        ([str(tree / "file"), f"{name}:/no/such/place"], b"Could not find the file /no/such"),
        ([str(tree), f"{name}:/etc/passwd"], b"cannot copy a directory to the file"),
        ([str(tree / "file"), f"{name}:/missing/"], b"no such directory"),
        ([str(tree / "file"), "nobody:/x"], b"No such container"),
        ([str(tree / "file"), str(tmp_path)], b"no container named"),
    ):
        done = wherry.run("cp", *arguments)
        assert done.returncode == 1 and words in done.stderr, (arguments, done.stderr)
    wherry.run("rm", "-f", name, check=True)


def test_cp_into_a_container_that_never_ran_is_there_when_it_starts(
    wherry: Wherry, tree: Path
) -> None:
    name = unique("new")
    wherry.out("create", "--name", name, "-v", "/data", BUSYBOX, "cat", "/data/run", "/tmp/run")
    for place in ("/data", "/tmp"):
        wherry.run("cp", str(tree / "sub/run"), f"{name}:{place}", check=True)
    assert wherry.out("start", "-a", name) == "#!/bin/sh\n#!/bin/sh"
    wherry.run("rm", "-v", name, check=True)


def test_cp_to_a_read_only_root_is_refused(wherry: Wherry, tree: Path) -> None:
    name = unique("readonly")
    wherry.out("run", "-d", "--name", name, "--read-only", "-v", "/data", BUSYBOX, "sleep", "1000")
    done = wherry.run("cp", str(tree / "sub/run"), f"{name}:/tmp")
    assert done.returncode == 1 and b"read-only" in done.stderr
    wherry.run("cp", str(tree / "sub/run"), f"{name}:/data", check=True)
    wherry.run("rm", "-fv", name, check=True)


def test_cp_with_the_containers_user(wherry: Wherry, tree: Path) -> None:
    name = unique("user")
    wherry.out("run", "-d", "--name", name, "-u", "1234:77", BUSYBOX, "sleep", "1000")
    wherry.run("cp", "-a", str(tree / "sub/run"), f"{name}:/tmp", check=True)
    assert wherry.out("exec", name, "stat", "-c", "%u:%g", "/tmp/run") == "1234:77"
    wherry.run("rm", "-f", name, check=True)


@pytest.mark.timeout(240)
def test_a_hundred_megabytes_go_through_in_flat_memory(wherry: Wherry, tmp_path: Path) -> None:
    name = unique("big")
    wherry.out("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    source, back = tmp_path / "big", tmp_path / "back"
    source.write_bytes(os.urandom(1 << 20) * 100)
    wherry.run("cp", str(source), f"{name}:/root", check=True, timeout=100)
    wherry.run("cp", f"{name}:/root/big", str(back), check=True, timeout=100)
    subprocess.run(["cmp", source, back], check=True)
    status = Path(f"/proc/{wherry.engine_pid()}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak) < 300_000, f"the engine's peak is {peak} kB"
    wherry.run("rm", "-f", name, check=True)


def test_input_that_nobody_reads_is_not_the_agents_end(wherry: Wherry, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(5_000_000))
    name = unique("unread")
    wherry.out("run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    console = wherry.home.machine("default").console_log
    before = console.read_text(errors="replace").count("agent ended")
    wherry.run("cp", str(big), f"{name}:/no/such/place")
    script = "exec <&-; sleep 0.3"
    wherry.run("run", "--rm", "-i", BUSYBOX, "sh", "-c", script, input=big.read_bytes())
    wherry.run("rm", "-f", name, check=True)
    assert console.read_text(errors="replace").count("agent ended") == before
