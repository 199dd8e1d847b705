"""Volumes, mounts, cp and what isolates a container, by Docker's own command line and docker-py."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import docker.types
import pytest
from harness import Wherry
from needs import require
from waiting import eventually

pytestmark = [
    pytest.mark.contract,
    pytest.mark.vm,
    # docker-py leaves the sockets of hijacked connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BUSYBOX = "localhost/busybox"


@pytest.fixture(scope="module", autouse=True)
def docker_program() -> str:
    return require("docker.io", "docker")


@pytest.fixture(autouse=True)
def machine(wherry: Wherry) -> None:
    wherry.run("machine", "start", check=True, timeout=120)


@pytest.fixture
def py(wherry: Wherry) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=wherry.environment["DOCKER_HOST"])
    yield client
    client.close()
    gc.collect()


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def out(wherry: Wherry, *args: str, input: bytes = b"") -> str:
    return wherry.docker(*args, input=input, check=True).stdout.decode().strip()


def test_docker_volume(wherry: Wherry) -> None:
    name = unique("data")
    assert out(wherry, "volume", "create", "--label", "k=v", name) == name
    assert name in out(wherry, "volume", "ls", "-q", "--filter", "label=k=v").split()
    assert name in out(wherry, "volume", "ls", "-q", "--filter", "dangling=true").split()
    facts = json.loads(out(wherry, "volume", "inspect", name))[0]
    assert (facts["Driver"], facts["Labels"], facts["Scope"]) == ("local", {"k": "v"}, "local")
    container = unique("user")
    out(wherry, "create", "--name", container, "-v", f"{name}:/x", BUSYBOX)
    done = wherry.docker("volume", "rm", name)
    assert done.returncode == 1 and b"volume is in use" in done.stderr
    listed = out(wherry, "ps", "-a", "--filter", f"name={container}", "--format", "{{.Mounts}}")
    assert listed == name
    out(wherry, "rm", container)
    assert out(wherry, "volume", "rm", name) == name
    assert b"no such volume" in wherry.docker("volume", "inspect", name).stderr
    nameless = out(wherry, "volume", "create")
    assert nameless in out(wherry, "volume", "prune", "-f")
    for arguments, words in (
        (["--driver", "nfs", "x1"], b'plugin "nfs" not found'),
        (["-o", "type=tmpfs", "x1"], b"DriverOpts.type"),
        (["../x"], b"includes invalid characters"),
    ):
        done = wherry.docker("volume", "create", *arguments)
        assert done.returncode == 1 and words in done.stderr, done.stderr


def test_docker_run_with_volumes(wherry: Wherry) -> None:
    name = unique("data")
    mount = f"type=volume,source={name},target=/a,volume-label=k=v"
    out(wherry, "run", "--rm", "--mount", mount, BUSYBOX, "mkdir", "-p", "/a/b/c")
    assert json.loads(out(wherry, "volume", "inspect", name))[0]["Labels"] == {"k": "v"}
    mount = f"type=volume,source={name},target=/x,volume-subpath=b,readonly"
    assert out(wherry, "run", "--rm", "--mount", mount, BUSYBOX, "ls", "/x") == "c"
    holder = unique("holder")
    out(wherry, "create", "--name", holder, "-v", f"{name}:/a:ro", "-v", "/anon", BUSYBOX)
    facts = json.loads(out(wherry, "inspect", holder))[0]
    mounts = {item["Destination"]: item for item in facts["Mounts"]}
    assert mounts["/a"]["RW"] is False and mounts["/a"]["Name"] == name
    assert facts["Config"]["Volumes"] == {"/anon": {}}
    listed = out(
        wherry, "run", "--rm", "--volumes-from", holder, BUSYBOX, "ls", "-d", "/a/b", "/anon"
    )
    assert listed.split() == ["/a/b", "/anon"]
    anonymous = mounts["/anon"]["Name"]
    out(wherry, "rm", "-v", holder)
    assert anonymous not in out(wherry, "volume", "ls", "-q").split()
    assert name in out(wherry, "volume", "ls", "-q").split()
    out(wherry, "volume", "rm", name)


@pytest.mark.parametrize(
    ("flags", "command", "expected"),
    [
        (["--tmpfs", "/t:size=1m"], "df -k /t | tail -1 | awk '{print $2}'", "1024"),
        (
            ["--mount", "type=tmpfs,target=/t,tmpfs-size=1m"],
            "df -k /t | tail -1 | awk '{print $2}'",
            "1024",
        ),
        (["--ulimit", "nofile=64:128"], "ulimit -n; ulimit -Hn", "64\n128"),
        (["--sysctl", "net.core.somaxconn=99"], "cat /proc/sys/net/core/somaxconn", "99"),
        (["--add-host", "db:192.0.2.1"], "grep -w db /etc/hosts", "192.0.2.1\tdb"),
        (["--init"], "echo $PPID; cat /proc/1/comm", "1\nwherry-init"),
        (["--device", "/dev/full:/dev/mine"], "head -c 1 /dev/mine | wc -c", "1"),
        (["--group-add", "audio2", "--group-add", "7"], "", "unable to find group audio2"),
        (["--pid", "host"], "test -d /proc/2 && cat /proc/2/comm", "kthreadd"),
        (["--uts", "host", "--ipc", "host", "--cgroupns", "host"], "hostname", "default"),
    ],
)
def test_docker_run_flags(wherry: Wherry, flags: list[str], command: str, expected: str) -> None:
    done = wherry.docker("run", "--rm", *flags, BUSYBOX, "sh", "-c", command)
    if command:
        assert done.stdout.decode().strip() == expected, done.stderr
    else:
        assert done.returncode == 125 and expected in done.stderr.decode()


def test_docker_cp(wherry: Wherry, tmp_path: Path) -> None:
    name = unique("cp")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("hello\n")
    (source / "sub/link").symlink_to("../file")
    out(wherry, "run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    try:
        out(wherry, "cp", str(source), f"{name}:/tmp")
        out(wherry, "cp", f"{source}/.", f"{name}:/tmp/contents")
        listed = out(wherry, "exec", name, "find", "/tmp", "-type", "l")
        assert sorted(listed.split()) == ["/tmp/contents/sub/link", "/tmp/source/sub/link"]
        out(wherry, "cp", f"{name}:/tmp/source", str(tmp_path / "back"))
        assert (tmp_path / "back/file").read_text() == "hello\n"
        assert (tmp_path / "back/sub/link").readlink() == Path("../file")
        out(wherry, "cp", "-L", f"{name}:/tmp/source/sub/link", str(tmp_path / "followed"))
        assert (tmp_path / "followed").read_text() == "hello\n"
        out(wherry, "cp", f"{name}:/", str(tmp_path / "root"))
        assert (tmp_path / "root/etc/passwd").exists()
        archive = wherry.docker("cp", f"{name}:/tmp/source", "-", check=True).stdout
        out(wherry, "cp", "-", f"{name}:/root", input=archive)
        assert out(wherry, "exec", name, "cat", "/root/source/file") == "hello"
        done = wherry.docker("cp", f"{name}:/nope", str(tmp_path))
        assert done.returncode == 1 and b"Could not find the file /nope" in done.stderr
        done = wherry.docker("cp", str(source / "file"), f"{name}:/tmp/source/sub")
        assert done.returncode == 0
        done = wherry.docker("cp", str(source), f"{name}:/etc/passwd")
        assert done.returncode == 1
    finally:
        out(wherry, "rm", "-f", name)


def test_docker_py_volumes_and_mounts(py: docker.DockerClient) -> None:
    name = unique("data")
    volume = py.volumes.create(name, labels={"k": "v"})
    try:
        assert py.volumes.get(name).attrs["Labels"] == {"k": "v"}
        binds = {name: {"bind": "/data", "mode": "rw"}}
        py.containers.run(BUSYBOX, ["touch", "/data/x"], remove=True, volumes=binds)
        mounts = [
            docker.types.Mount("/data", name, read_only=True),
            docker.types.Mount("/t", None, type="tmpfs", tmpfs_size=1 << 20),
        ]
        script = "ls /data; df -k /t | tail -1 | awk '{print $2}'"
        output = py.containers.run(BUSYBOX, ["sh", "-c", script], remove=True, mounts=mounts)
        assert output == b"x\n1024\n"
        assert volume.name in [item.name for item in py.volumes.list(filters={"name": name})]
        eventually("it is not used any more", lambda: volume.remove() is None)
    finally:
        py.volumes.prune()
    with pytest.raises(docker.errors.NotFound):
        py.volumes.get(name)


def test_docker_py_isolation(py: docker.DockerClient) -> None:
    script = "ulimit -n; cat /proc/sys/net/core/somaxconn; grep -w db /etc/hosts; id -G; echo $PPID"
    output = py.containers.run(
        BUSYBOX,
        ["sh", "-c", script],
        remove=True,
        ulimits=[docker.types.Ulimit(name="nofile", soft=64, hard=64)],
        sysctls={"net.core.somaxconn": "99"},
        extra_hosts={"db": "192.0.2.1"},
        group_add=[44],
        init=True,
        tmpfs={"/t": "size=1m"},
        devices=["/dev/full:/dev/mine:r"],
        security_opt=["no-new-privileges"],
    )
    assert output.decode().split() == ["64", "99", "192.0.2.1", "db", "0", "44", "1"]


def test_docker_py_archives(py: docker.DockerClient) -> None:
    container = py.containers.create(BUSYBOX, ["cat", "/tmp/in/file"])
    try:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            info = tarfile.TarInfo("in/file")
            info.size, info.uid, info.mtime = 6, 7, 1_000_000_000
            tar.addfile(info, io.BytesIO(b"hello\n"))
        assert container.put_archive("/tmp", packed.getvalue())
        parts, status = container.get_archive("/tmp/in/file")
        assert (status["name"], status["size"], status["linkTarget"]) == ("file", 6, "")
        assert status["mtime"] == "2001-09-09T01:46:40Z"
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
            assert [(item.name, item.uid) for item in tar] == [("file", 7)]
        container.start()
        container.wait()
        assert container.logs() == b"hello\n"
        with pytest.raises(docker.errors.NotFound):
            container.get_archive("/nope")
        with pytest.raises(docker.errors.APIError, match="not a tar"):
            container.put_archive("/tmp", b"x" * 1024)
        with pytest.raises(docker.errors.APIError, match="not a directory"):
            container.put_archive("/etc/passwd", packed.getvalue())
    finally:
        container.remove(v=True)
