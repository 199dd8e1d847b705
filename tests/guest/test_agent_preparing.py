"""What the agent fills into a spec: volumes, devices, a shared /dev/shm, other containers."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import tarfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from agent_machine import AgentMachine, agent_machine, read_all, split_frames
from containers_harness import SPEC
from waiting import PATIENCE

from wherry.errors import AgentError

pytestmark = pytest.mark.guest

Scenario = Callable[[AgentMachine], Coroutine[Any, Any, None]]


def drive(directory: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(110 * PATIENCE), agent_machine(directory) as machine:
            await scenario(machine)

    asyncio.run(main())


async def start(
    machine: AgentMachine,
    id: str,
    script: str,
    *mounts: dict[str, Any],
    join: dict[str, str] | None = None,
    **options: Any,
) -> None:
    spec = copy.deepcopy(SPEC)
    spec["process"]["args"] = ["sh", "-c", script]
    taken = {mount["destination"] for mount in mounts}
    spec["mounts"] = [item for item in spec["mounts"] if item["destination"] not in taken]
    spec["mounts"] += mounts
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] in (join or {}):
            namespace["path"] = f"container:{(join or {})[namespace['type']]}"
    if "uts" in (join or {}):
        del spec["hostname"]
    spec["linux"]["resources"]["devices"] = options.pop("rules", [])
    spec["process"]["rlimits"] = options.pop("rlimits", [])
    if users := options.pop("users", None):
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["linux"] |= {"uidMappings": users, "gidMappings": users}
    params = {"id": id, "spec": spec, "layers": ["busybox"], **options}
    await machine.link.call("container.start", params)


async def run(machine: AgentMachine, id: str, script: str, *mounts: Any, **options: Any) -> str:
    await start(machine, id, script, *mounts, **options)
    stream, _ = await machine.attach(id)
    data = b"".join(payload for _, payload in split_frames(await read_all(stream)))
    await machine.event("container.exit", id=id)
    return data.decode()


def volume(name: str, destination: str = "/data", *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "volume",
        "source": name,
        "options": list(options),
    }


def test_a_volume_outlives_its_containers(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        assert await run(machine, "c1", "echo kept > /data/x; stat -c %a /data", volume("v1"))
        await machine.link.call("container.remove", {"id": "c1"})
        mount = volume("v1", "/elsewhere", "ro")
        text = await run(machine, "c2", "cat /elsewhere/x; touch /elsewhere/y", mount)
        assert text.startswith("kept\n") and "Read-only" in text
        assert (tmp_path / "data/volumes/v1/_data/x").read_text() == "kept\n"

    drive(tmp_path, scenario)


def test_a_volume_is_filled_at_the_first_start_only(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        mount = volume("v1", "/etc", "copyup")
        data = tmp_path / "data/volumes/v1/_data"
        assert "passwd" in await run(machine, "c1", "ls /etc; rm -rf /etc/*", mount)
        assert list(data.iterdir()) == []
        machine.events.clear()
        await run(machine, "c1", "true", mount)
        assert list(data.iterdir()) == []
        await run(machine, "c2", "true", mount)
        assert (data / "passwd").exists()

    drive(tmp_path, scenario)


def test_places_for_what_is_mounted_everywhere_are_not_made_in_each_container(
    tmp_path: Path,
) -> None:
    async def scenario(machine: AgentMachine) -> None:
        files = {"hosts": "127.0.0.1 here\n", "hostname": "box\n"}
        script = "cat /etc/hosts /etc/hostname; id -un; ls /etc; touch /etc/new"
        for id in ("c1", "c2"):
            text = await run(machine, id, script, files=files)
            assert text.startswith("127.0.0.1 here\nbox\nroot\n") and "passwd" in text
        changed = [path.name for path in (tmp_path / "data/containers/c1/upper").rglob("*")]
        assert sorted(changed) == ["etc", "new"]
        machine.events.clear()
        assert "new" in await run(machine, "c1", script, files=files)  # started again
        assert "hosts" not in await run(machine, "c3", "ls /etc")

    drive(tmp_path, scenario)


def test_a_volume_is_removed_and_its_size_known(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await run(machine, "c1", "dd if=/dev/zero of=/data/x bs=64k count=4; mkdir /data/d; "
                  "ln /data/x /data/d/y", volume("v1"))  # fmt: skip
        stream = machine.link.open_stream()
        names = {"names": ["v1", "none"], "stream": stream.id}
        await machine.link.call("volume.usage", names)
        sizes = json.loads(await read_all(stream))
        assert list(sizes) == ["v1"] and 262_144 <= sizes["v1"] < 300_000
        for _ in range(2):
            await machine.link.call("volume.remove", {"name": "v1"})
        assert not (tmp_path / "data/volumes/v1").exists()
        with pytest.raises(AgentError, match="not a volume's name"):
            await machine.link.call("volume.remove", {"name": "../containers"})

    drive(tmp_path, scenario)


def test_a_volume_whose_name_is_none_starts_nothing(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        for name in ("../x", "", ".x"):
            with pytest.raises(AgentError, match="not a volume's name"):
                await start(machine, "c1", "true", volume(name))
        assert (await machine.link.call("container.list", {}))["containers"] == []
        assert await run(machine, "c1", "echo fine", volume("v1")) == "fine\n"

    drive(tmp_path, scenario)


SHM = {"destination": "/dev/shm", "type": "shm", "options": ["size=1m", "mode=1777", "nosuid"]}


def test_containers_share_ipc_and_its_memory(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await start(machine, "c1", "echo one > /dev/shm/x; exec sleep 1000", SHM)
        script = "until cat /dev/shm/x; do sleep 0.1; done; df -k /dev/shm | tail -1"
        script += "; readlink /proc/1/ns/ipc"
        joined = {**SHM, "source": "container:c1", "options": ["nosuid"]}
        text = await run(machine, "c2", f"exec 2>/dev/null; {script}", joined, join={"ipc": "c1"})
        assert text.startswith("one\n") and " 1024 " in text
        pid = next(
            item["pid"]
            for item in (await machine.link.call("container.list", {}))["containers"]
            if item["id"] == "c1"
        )
        assert Path(f"/proc/{pid}/ns/ipc").readlink().as_posix() in text
        await machine.link.call("container.kill", {"id": "c1", "signal": 9})
        await machine.event("container.exit", id="c1")
        with pytest.raises(AgentError, match="does not share its own"):
            await start(machine, "c3", "true", joined)
        assert await run(machine, "c1", "ls /dev/shm", SHM) == ""  # it is a new one
        await machine.link.call("container.remove", {"id": "c1"})

    drive(tmp_path, scenario)


def test_network_and_files_of_another_container(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        files = {"hosts": "10.0.0.1 a\n", "hostname": "first\n"}
        await start(machine, "c1", "exec sleep 1000", files=files)
        text = await run(
            machine,
            "c2",
            "cat /etc/hosts /etc/hostname; readlink /proc/1/ns/net",
            join={"network": "c1", "uts": "c1"},
            files_of="c1",
        )
        assert text.startswith("10.0.0.1 a\nfirst\nnet:")
        await machine.link.call("container.kill", {"id": "c1", "signal": 9})
        await machine.event("container.exit", id="c1")
        for neighbour, words in (("c1", "c1 is not running"), ("c9", "has not been started")):
            with pytest.raises(AgentError, match=words) as error:
                await start(machine, "c2", "true", join={"network": neighbour})
            assert error.value.data["exit_code"] == 125

    drive(tmp_path, scenario)


def device(path: str, target: str, permissions: str = "rwm") -> dict[str, str]:
    return {"path": path, "target": target, "permissions": permissions}


def test_devices_come_with_their_numbers_and_rules(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        nodes = tmp_path / "nodes"
        nodes.mkdir()
        deny: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
        deny += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
        script = "stat -c '%n %t:%T' /dev/zap; head -c 3 /dev/zap | wc -c; head -c 1 /dev/full"
        text = await run(
            machine, "c1", script, rules=deny, devices=[device("/dev/zero", "/dev/zap", "r")]
        )
        assert text.startswith("/dev/zap 1:5\n3\n") and "not permitted" in text
        text = await run(
            machine,
            "c2",
            "ls /dev/all; echo x > /dev/all/full",
            rules=deny,
            devices=[device("/dev", "/dev/all", "rw")],
        )
        assert "zero\n" in text and "pts" not in text and "No space" in text

    drive(tmp_path, scenario)


def test_devices_that_there_are_not(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        for path, words in (("/dev/nope", "no such file"), ("/etc/passwd", "not a device node")):
            with pytest.raises(AgentError, match=f'custom device "{path}": {words}'):
                await start(machine, "c1", "true", devices=[device(path, "/dev/x")])
        with pytest.raises(AgentError, match="permissions"):
            await start(machine, "c1", "true", devices=[device("/dev/null", "/dev/x", "q")])

    drive(tmp_path, scenario)


def test_all_devices_of_the_machine(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        text = await run(machine, "c1", "ls /dev; ls /dev/pts", all_devices=True)
        assert "kmsg\n" in text or "fuse\n" in text
        assert text.count("ptmx\n") == 2

    drive(tmp_path, scenario)


RANGES = [{"containerID": 0, "hostID": 200_000, "size": 65536}]


def test_a_user_namespaces_volumes_files_and_devices_are_its_roots(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        mounts = [
            volume("mapped"),
            {"destination": "/dev/shm", "type": "shm", "options": ["size=1m", "mode=1777"]},
        ]
        text = await run(
            machine,
            "c1",
            "touch /data/x /dev/shm/x; stat -c '%u:%g %n' /data/x /dev/shm /etc/hosts;"
            "head -c 2 /dev/mine | wc -c; ulimit -Hn",
            *mounts,
            users=RANGES,
            rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 900}],
            files={"hosts": "127.0.0.1 me\n"},
            devices=[{"path": "/dev/zero", "target": "/dev/mine", "permissions": "rwm"}],
        )
        assert text.split("\n") == [
            "0:0 /data/x",
            "0:0 /dev/shm",
            "0:0 /etc/hosts",
            "2",
            "900",
            "",
        ]
        status = (tmp_path / "data/volumes/mapped/_data/x").stat()
        assert (status.st_uid, status.st_gid) == (0, 0)  # as any other container finds it

    drive(tmp_path, scenario)


def test_cp_sees_owners_as_a_user_namespace_does(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "echo x >/new; chown 5:6 /new; echo up; exec sleep 100"
        await start(machine, "c1", script, users=RANGES)
        stream, _ = await machine.attach("c1")
        await stream.read(65536)
        copied = machine.link.open_stream()
        params = {
            "id": "c1",
            "op": "read",
            "path": "/new",
            "stream": copied.id,
            "layers": ["busybox"],
        }
        await machine.link.call("container.archive", params)
        data = await read_all(copied)
        with tarfile.open(fileobj=io.BytesIO(data[4 + int.from_bytes(data[:4], "big") :])) as tar:
            (member,) = tar.getmembers()
        assert (member.name, member.uid, member.gid) == ("new", 5, 6)
        await machine.link.call("container.kill", {"id": "c1", "signal": 9})
        await machine.event("container.exit", id="c1")

    drive(tmp_path, scenario)
