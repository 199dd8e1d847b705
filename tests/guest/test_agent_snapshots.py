"""What a container changed, its layer and its tree, with real overlays, as streams of the agent."""

from __future__ import annotations

import asyncio
import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from agent_machine import AgentMachine, agent_machine, read_all
from waiting import PATIENCE

from wherry.link import StreamReset

pytestmark = pytest.mark.guest

Scenario = Callable[[AgentMachine], Coroutine[Any, Any, None]]


def drive(directory: Path, scenario: Scenario, prepare: Callable[[Path], None] | None = None):
    async def main() -> None:
        async with asyncio.timeout(60 * PATIENCE), agent_machine(directory) as machine:
            if prepare is not None:
                prepare(machine.setting.paths.layers / "0")
            await scenario(machine)

    asyncio.run(main())


async def stream_of(machine: AgentMachine, call: str, id: str = "c1", **options: Any) -> bytes:
    stream = machine.link.open_stream()
    params = {"id": id, "layers": ["busybox"], "stream": stream.id, **options}
    await machine.link.call(f"container.{call}", params)
    return await read_all(stream)


async def changes(machine: AgentMachine) -> list[str]:
    data = await stream_of(machine, "changes")
    found = [item.decode() for item in data.split(b"\0")[:-1]]
    return [f"{item[0]} {item[1:]}" for item in found]


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def some_files(layer: Path) -> None:
    for name in (
        "full/a",
        "full/b",
        "full/deep/c",
        "gone/x",
        "kept/y",
        "opaque/old",
        "opaque/same",
    ):
        path = layer / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (layer / "renamed").write_text("renamed")
    (layer / "meta").write_text("meta")
    (layer / "turned").mkdir()
    (layer / "turned" / "inner").write_text("inner")


async def ran(machine: AgentMachine, script: str) -> None:
    code, _, errors = await machine.run("c1", "sh", "-ec", script)
    assert code == 0, errors


def test_a_container_that_did_nothing_changed_nothing(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        files = {"hosts": "10.0.0.1 a\n", "resolv.conf": "", "hostname": "h\n"}
        await machine.run("c1", "true", files=files)
        assert await changes(machine) == []
        assert names(await stream_of(machine, "layer")) == []

    drive(tmp_path, scenario)


def test_added_changed_and_deleted_are_told_as_docker_does(tmp_path: Path) -> None:
    script = """
        echo new > /full/new; echo more >> /full/a; rm /full/b
        rm -r /gone
        mv /renamed /moved
        chmod 600 /meta
        touch /kept/tmp; rm /kept/tmp
        mkdir /fresh; mkdir /fresh/sub; echo x > /fresh/sub/x
        rm -r /opaque; mkdir /opaque; echo same > /opaque/same
        rm -r /turned; echo file > /turned
    """

    async def scenario(machine: AgentMachine) -> None:
        await ran(machine, script)
        assert sorted(await changes(machine)) == sorted(
            [
                "A /fresh",
                "A /fresh/sub",
                "A /fresh/sub/x",
                "C /full",
                "C /full/a",
                "D /full/b",
                "A /full/new",
                "D /gone",
                "C /meta",
                "A /moved",
                "C /opaque",
                "D /opaque/old",
                "C /opaque/same",
                "D /renamed",
                "C /turned",
            ]
        )

    drive(tmp_path, scenario, some_files)


def test_a_layer_has_whiteouts_links_devices_and_attributes(tmp_path: Path) -> None:
    script = """
        rm /full/b; rm -r /opaque; mkdir /opaque; echo 1 > /opaque/new
        mkdir /l; echo linked > /l/one; ln /l/one /l/two; ln -s /nowhere /l/sym; mkfifo /l/pipe
        chown 12:34 /l/one; chmod 4755 /l/one
        dd if=/dev/zero of=/l/sparse bs=1 count=1 seek=300000 2>/dev/null
    """

    async def scenario(machine: AgentMachine) -> None:
        await ran(machine, script)
        data = await stream_of(machine, "layer")
        assert data == await stream_of(machine, "layer", pause=True)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: member for member in tar}
            sparse = tar.extractfile(members["l/sparse"])
            assert sparse is not None
            assert sparse.read() == bytes(300001)
        assert list(members) == [
            "full",
            "full/.wh.b",
            "l",
            "l/one",
            "l/pipe",
            "l/sparse",
            "l/sym",
            "l/two",
            "opaque",
            "opaque/.wh..wh..opq",
            "opaque/new",
        ]
        one, two = members["l/one"], members["l/two"]
        assert (one.uid, one.gid, one.mode) == (12, 34, 0o4755)
        assert two.islnk() and two.linkname == "l/one"
        assert members["l/sym"].linkname == "/nowhere"
        assert members["l/pipe"].isfifo()

    drive(tmp_path, scenario, some_files)


def test_an_export_is_what_tar_packs_inside(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await ran(machine, "rm -r /gone; echo more >> /full/a; ln /full/a /full/z")
        data = await stream_of(machine, "export")
        listing = {name for name in names(data) if name != "."}
        root = tmp_path / "unpacked"
        root.mkdir()
        subprocess.run(["tar", "-C", root, "-xf", "-"], input=data, check=True)
        layer = machine.setting.paths.layers / "0"
        assert not (root / "gone").exists()
        assert (root / "full" / "a").read_text() == "full/amore\n"
        assert (root / "full" / "a").samefile(root / "full" / "z")
        busybox = "bin/busybox"
        assert (root / busybox).read_bytes() == (layer / busybox).read_bytes()
        expected = {str(path.relative_to(root)) for path in root.rglob("*")}
        assert listing == expected

    drive(tmp_path, scenario, some_files)


def test_a_running_container_stands_still_and_goes_on(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "i=0; while :; do i=$((i+1)); echo $i > /a; cp /a /b; done"
        await machine.start("c1", "sh", "-c", script)
        while len(await changes(machine)) < 2:
            pass
        for _ in range(5):
            data = await stream_of(machine, "layer", pause=True)
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                assert {"a", "b"} <= set(tar.getnames())
        freeze = machine.setting.paths.container("c1").cgroup / "cgroup.freeze"
        assert freeze.read_text() == "0\n"
        await machine.link.call("container.kill", {"id": "c1", "signal": 9})
        await machine.event("container.exit", id="c1", exit_code=137)

    drive(tmp_path, scenario)


def test_a_killed_agent_leaves_no_container_frozen(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; echo made; sleep 1000"
        await machine.start("c1", "sh", "-c", script)
        output, _ = await machine.attach("c1")
        await output.read()
        stream = machine.link.open_stream()
        params = {"id": "c1", "layers": ["busybox"], "stream": stream.id, "pause": True}
        await machine.link.call("container.layer", params)
        freeze = machine.setting.paths.container("c1").cgroup / "cgroup.freeze"
        await stream.read()
        assert freeze.read_text() == "1\n"
        await machine.kill_agent()
        async with asyncio.timeout(20 * PATIENCE):
            while freeze.read_text() != "0\n":
                await asyncio.sleep(0.01)

    drive(tmp_path, scenario)


def test_a_name_that_would_be_a_whiteout_is_refused(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await ran(machine, "echo x > /etc/.wh.passwd")
        with pytest.raises(StreamReset, match=r"/etc/\.wh\.passwd"):
            await stream_of(machine, "layer")

    drive(tmp_path, scenario)


def test_removing_the_container_ends_its_streams(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await ran(machine, "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null")
        stream = machine.link.open_stream()
        params = {"id": "c1", "layers": ["busybox"], "stream": stream.id}
        await machine.link.call("container.layer", params)
        await stream.read()
        await machine.link.call("container.remove", {"id": "c1"})
        with pytest.raises(StreamReset, match="removed"):
            while await stream.read():
                pass

    drive(tmp_path, scenario)


def test_a_big_file_arrives_whole(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sha256sum /big"
        _, output, _ = await machine.run("c1", "sh", "-c", script)
        with tarfile.open(fileobj=io.BytesIO(await stream_of(machine, "layer"))) as tar:
            big = tar.extractfile("big")
            assert big is not None
            assert hashlib.sha256(big.read()).hexdigest() == output.decode().split()[0]

    drive(tmp_path, scenario)
