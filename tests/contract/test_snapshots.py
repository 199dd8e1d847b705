"""diff, commit and export, by Docker's own command line, and read by other people's tools."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Wherry
from needs import require
from registry import RunningRegistry, skopeo

pytestmark = [pytest.mark.contract, pytest.mark.vm]

BUSYBOX = "localhost/busybox"
SCRIPT = """
    echo new > /new; mkdir -p /a/b; echo deep > /a/b/c; ln /new /a/hard; ln -s /nowhere /a/sym
    rm /bin/vi; rm -r /var/www; chmod 700 /home; echo more >> /etc/passwd
    mkfifo /a/pipe; dd if=/dev/zero of=/a/zeros bs=1000 count=700 2>/dev/null
    chown 1:2 /a/b/c; chmod 4711 /a/b/c
"""
CHANGES = """\
A /a
A /a/b
A /a/b/c
A /a/hard
A /a/pipe
A /a/sym
A /a/zeros
C /bin
D /bin/vi
C /etc
C /etc/passwd
C /home
A /new
C /var
D /var/www
"""


@pytest.fixture(scope="module")
def changed(wherry: Wherry) -> Iterator[str]:
    """A stopped container of busybox in which SCRIPT ran."""
    require("docker.io", "docker")
    name = f"changed-{uuid.uuid4().hex[:8]}"
    wherry.run("run", "--name", name, BUSYBOX, "sh", "-ec", SCRIPT, check=True, timeout=180)
    yield name
    wherry.run("rm", name)


def members_of(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def layers(wherry: Wherry, image: str) -> list[str]:
    found: list[str] = json.loads(wherry.out("inspect", "--type", "image", image))[0]["RootFS"][
        "Layers"
    ]
    return found


def test_docker_diff_tells_what_changed(wherry: Wherry, changed: str) -> None:
    assert wherry.docker("diff", changed, check=True).stdout.decode() == CHANGES
    assert wherry.out("diff", changed) == CHANGES.strip()


def test_a_running_container_is_told_as_it_is(wherry: Wherry) -> None:
    id = wherry.out("run", "-d", BUSYBOX, "sh", "-c", "echo 1 > /one; sleep 1000")
    try:
        wherry.run("exec", id, "sh", "-c", "until test -s /one; do :; done; mv /one /two")
        assert wherry.docker("diff", id, check=True).stdout == b"A /two\n"
        image = wherry.docker("commit", id, check=True).stdout.decode().strip()
        assert wherry.out("exec", id, "cat", "/two") == "1"
        assert wherry.out("run", "--rm", image, "cat", "/two") == "1"
    finally:
        wherry.run("rm", "-f", id)


def test_a_paused_container_is_committed_and_stays_paused(wherry: Wherry) -> None:
    id = wherry.out("run", "-d", BUSYBOX, "sh", "-c", "echo 1 > /one; sleep 1000")
    try:
        wherry.run("exec", id, "sh", "-c", "until test -s /one; do :; done")
        wherry.docker("pause", id, check=True)
        image = wherry.docker("commit", id, check=True).stdout.decode().strip()
        state = wherry.docker("inspect", "-f", "{{.State.Status}}", id, check=True).stdout
        assert state == b"paused\n"
        wherry.docker("unpause", id, check=True)
        assert wherry.out("run", "--rm", image, "cat", "/one") == "1"
    finally:
        wherry.run("rm", "-f", id)


def test_docker_commit_makes_an_image_that_runs(wherry: Wherry, changed: str) -> None:
    change = ["-c", "ENV GREETING=hello", "-c", 'CMD ["sh", "-c", "echo $GREETING; cat /new"]']
    words = ["-a", "somebody", "-m", "a comment", *change]
    id = wherry.docker("commit", *words, changed, "made:1", check=True).stdout.decode().strip()
    assert wherry.out("run", "--rm", "made:1") == "hello\nnew"
    script = "stat -c '%u %g %a' /a/b/c; ls /var; test ! -e /bin/vi; stat -c %h /new"
    assert wherry.out("run", "--rm", id, "sh", "-ec", script).split("\n") == [
        "1 2 4711",
        "tmp",
        "2",
    ]
    history = wherry.docker("history", "--no-trunc", "made:1", check=True).stdout
    assert b"a comment" in history
    assert b"mkfifo" in history


def test_the_same_files_are_the_same_layer(wherry: Wherry, changed: str) -> None:
    wherry.run("commit", changed, "same:1", check=True)
    wherry.docker("commit", "-m", "another", changed, "same:2", check=True)
    first, second = layers(wherry, "same:1"), layers(wherry, "same:2")
    assert first == second
    assert len(first) == 2


def test_what_changed_nothing_adds_no_layer(wherry: Wherry) -> None:
    name = f"idle-{uuid.uuid4().hex[:8]}"
    wherry.run("run", "--name", name, BUSYBOX, "true", check=True)
    assert wherry.out("diff", name) == ""
    wherry.run("commit", "-c", "LABEL a=b", name, "idle:1", check=True)
    assert layers(wherry, "idle:1") == layers(wherry, BUSYBOX)
    wherry.run("rm", name)


def test_a_container_that_never_ran_can_be_committed_and_exported(wherry: Wherry) -> None:
    name = f"fresh-{uuid.uuid4().hex[:8]}"
    wherry.run("create", "--name", name, BUSYBOX, check=True)
    wherry.run("commit", name, "fresh:1", check=True)
    data = wherry.run("export", name, check=True).stdout
    assert "bin/busybox" in members_of(data)
    wherry.run("rm", name)


def test_an_export_is_what_tar_packs_inside(wherry: Wherry, changed: str, tmp_path: Path) -> None:
    exported = members_of(wherry.docker("export", changed, check=True).stdout)
    wherry.run("export", "-o", str(tmp_path / "mine.tar"), changed, check=True)
    assert members_of((tmp_path / "mine.tar").read_bytes()).keys() == exported.keys()
    wherry.run("commit", changed, "packed:1", check=True)
    command = "tar -c -C / -f - a bin etc/passwd home new root usr var"
    packed = members_of(wherry.run("run", "--rm", "packed:1", "sh", "-c", command).stdout)
    assert len(packed) > 250
    for name, theirs in packed.items():
        ours = exported[name]
        assert (ours.mode, ours.uid, ours.gid) == (theirs.mode, theirs.uid, theirs.gid), name
        assert (ours.size, ours.mtime) == (theirs.size, theirs.mtime) or ours.islnk(), name
        if not (ours.islnk() or theirs.islnk()):  # which name is the link's is the packer's choice
            assert (ours.type, ours.linkname) == (theirs.type, theirs.linkname), name


def test_umoci_and_tar_unpack_the_committed_image(
    wherry: Wherry, changed: str, tmp_path: Path
) -> None:
    umoci = require("umoci", "umoci")
    wherry.run("commit", changed, "unpacked:1", check=True)
    layout = tmp_path / "layout"
    skopeo("copy", f"oci:{wherry.home.store}:unpacked:1", f"oci:{layout}:latest")
    bundle = tmp_path / "bundle"
    subprocess.run(
        [umoci, "unpack", "--image", f"{layout}:latest", str(bundle)], check=True, timeout=60
    )
    root = tmp_path / "exported"
    root.mkdir()
    data = wherry.run("export", changed, check=True).stdout
    subprocess.run(["tar", "-C", str(root), "-xpf", "-"], input=data, check=True, timeout=60)
    mount_points = ["-x", "hosts", "-x", "hostname", "-x", "resolv.conf", "-x", "pipe"]
    difference = subprocess.run(
        ["diff", "-r", "--no-dereference", *mount_points, str(bundle / "rootfs"), str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert difference.stdout == ""


def test_a_committed_image_goes_through_a_registry(
    wherry: Wherry, changed: str, registry: RunningRegistry, tmp_path: Path
) -> None:
    name = f"{registry.host}/committed:1"
    wherry.run("commit", changed, name, check=True)
    wherry.run("push", name, check=True, timeout=120)
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/pulled:latest")
    facts = json.loads(skopeo("inspect", "--config", f"oci:{tmp_path}/pulled:latest"))
    assert facts["rootfs"]["diff_ids"] == layers(wherry, name)
    assert facts["history"][-1]["created_by"].startswith("sh -ec")


def test_what_is_not_there_is_said(wherry: Wherry) -> None:
    for words in (["diff", "nobody"], ["export", "nobody"], ["commit", "nobody", "x:1"]):
        done = wherry.run(*words)
        assert done.returncode == 1
        assert b"nobody" in done.stderr


def test_a_wrong_change_is_said_before_anything_is_read(wherry: Wherry, changed: str) -> None:
    done = wherry.run("commit", "-c", "RUN rm -rf /", changed, "never:1")
    assert done.returncode == 1
    assert b"RUN" in done.stderr
    assert wherry.run("inspect", "--type", "image", "never:1").returncode == 1
