"""Namespaces, devices, limits, kernel parameters, names: what HostConfig says and may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_fakes import World, play
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine.devices import device_params, device_rules
from wherry.engine.etc_files import hosts, resolv_conf
from wherry.engine.modes import namespaces
from wherry.engine.process_limits import rlimits
from wherry.engine.security import masked_paths, no_new_privileges
from wherry.engine.spec import check_isolation
from wherry.errors import Conflict, InvalidInput, NotFound, NotImplementedYet, WherryError


@pytest.mark.parametrize(
    ("config", "host_config", "words"),
    [
        ({}, {"IpcMode": "shared"}, "invalid IPC mode: shared"),
        ({}, {"PidMode": "container:"}, "invalid PID mode: container:"),
        ({}, {"UTSMode": "container:x"}, "invalid UTS mode"),
        ({}, {"CgroupnsMode": "x"}, "invalid cgroup namespace mode: x"),
        ({}, {"NetworkMode": "container:"}, "invalid container format"),
        ({"Hostname": "a"}, {"UTSMode": "host"}, "hostname and the UTS mode"),
        ({"Hostname": "a"}, {"NetworkMode": "container:x"}, "hostname and the network mode"),
        ({}, {"NetworkMode": "container:x", "Dns": ["192.0.2.1"]}, "dns and the network mode"),
        ({}, {"Devices": [{"PathOnHost": "fuse"}]}, "invalid device specification"),
        ({}, {"Devices": [{"PathOnHost": "/a", "CgroupPermissions": "x"}]}, "invalid device mode"),
        ({}, {"DeviceCgroupRules": ["c 1 rwm"]}, "invalid device cgroup rule format"),
        ({}, {"Ulimits": [{"Name": "files", "Soft": 1, "Hard": 1}]}, "invalid ulimit type: files"),
        ({}, {"Ulimits": [{"Name": "core", "Soft": 2, "Hard": 1}]}, "less than or equal to hard"),
        ({}, {"OomScoreAdj": 1001}, "range for oom score adj is [-1000, 1000]"),
        ({}, {"Sysctls": {"kernel.panic": "1"}}, "sysctl 'kernel.panic' is not allowed"),
        ({}, {"Sysctls": {"net.x": "1"}, "NetworkMode": "host"}, "own network namespace"),
        ({}, {"Sysctls": {"kernel.sem": "1"}, "IpcMode": "host"}, "own ipc namespace"),
        ({}, {"SecurityOpt": ["no-new-privileges:maybe"]}, "invalid --security-opt"),
        ({}, {"MaskedPaths": ["proc"]}, "not absolute"),
        ({"Hostname": "a\nb"}, {}, "invalid hostname format"),
        ({"Hostname": "a" * 65}, {}, "invalid hostname format"),
        ({}, {"Dns": ["dns.example"]}, "invalid IP address: dns.example"),
        ({}, {"DnsSearch": ["a b"]}, "not one word"),
        ({}, {"ExtraHosts": ["db"]}, 'bad format for add-host: "db"'),
        ({}, {"ExtraHosts": ["db:\n1"]}, "invalid IP address"),
        ({}, {"CapAdd": ["EVERYTHING"]}, "unknown capability"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    config: dict[str, Any], host_config: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        check_isolation(config, host_config)
    assert words in error.value.message


def test_what_is_not_implemented_names_its_field() -> None:
    for name, value in (
        ("SecurityOpt", ["apparmor=x"]),
        ("ExtraHosts", ["host.docker.internal:host-gateway"]),
    ):
        with pytest.raises(NotImplementedYet, match=f"HostConfig.{name}"):
            check_isolation({}, {name: value})


@given(
    st.dictionaries(
        st.sampled_from(["IpcMode", "PidMode", "UTSMode", "NetworkMode", "CgroupnsMode"]),
        st.sampled_from(["", "host", "private", "none", "container:x", "container:", "shareable"]),
    )
)
def test_any_modes_are_namespaces_or_a_clear_refusal(host_config: dict[str, str]) -> None:
    try:
        check_isolation({}, host_config)
    except WherryError as error:
        assert "\n" not in error.message
        return
    kinds = {item["type"]: item.get("path") for item in namespaces(host_config)}
    assert ("network" not in kinds) == (host_config.get("NetworkMode") == "host")
    assert kinds.get("pid", "gone") == {"host": "gone", "container:x": "container:x"}.get(
        host_config.get("PidMode", "")
    )


def test_ulimits_are_rlimits() -> None:
    limits = [{"Name": "nofile", "Soft": 10, "Hard": 20}, {"Name": "core", "Soft": -1, "Hard": -1}]
    assert rlimits({"Ulimits": limits}) == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]


def test_devices_and_their_rules() -> None:
    assert device_params({"Devices": [{"PathOnHost": "/dev/fuse"}]}) == [
        {"path": "/dev/fuse", "target": "/dev/fuse", "permissions": "rwm"}
    ]
    rules = device_rules({"DeviceCgroupRules": ["b 8:* r", "a *:* rwm"]})
    assert rules[-2:] == [
        {"allow": True, "type": "b", "major": 8, "access": "r"},
        {"allow": True, "type": "a", "access": "rwm"},
    ]
    assert device_rules({"Privileged": True}) == []


def test_paths_are_the_usual_ones_unless_some_are_given() -> None:
    assert "/proc/kcore" in masked_paths({})
    assert masked_paths({"MaskedPaths": []}) == []
    assert masked_paths({"MaskedPaths": ["/proc/x"]}) == ["/proc/x"]
    assert masked_paths({"Privileged": True}) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], False),
        (["no-new-privileges"], True),
        (["no-new-privileges:true"], True),
        (["no-new-privileges=false"], False),
        (["label=disable"], False),
    ],
)
def test_no_new_privileges(options: list[str], expected: bool) -> None:
    assert no_new_privileges({"SecurityOpt": options}) is expected


def test_names_are_written_to_the_files_in_etc() -> None:
    host_config = {
        "Dns": ["192.0.2.53"],
        "DnsSearch": ["a.example", "b.example"],
        "DnsOptions": ["ndots:2"],
        "ExtraHosts": ["db:192.0.2.7", "six:2001:db8::1"],
    }
    text = resolv_conf(host_config, ["10.0.2.3"])
    assert text == "nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:2\n"
    assert resolv_conf({"DnsSearch": ["."]}, ["10.0.2.3"]) == "nameserver 10.0.2.3\n"
    lines = hosts(host_config, "box").splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    assert lines[-2:] == ["192.0.2.7\tdb", "2001:db8::1\tsix"]


def test_a_container_that_joins_another_names_it_by_its_id(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        config = {"Image": "busybox", "Cmd": ["true"], "Hostname": "first"}
        create = world.engine.containers.create
        first = await create("first", config, {"IpcMode": "shareable"})
        mode = f"container:{first.id}"
        joined = await world.run(
            "second", NetworkMode="container:first", IpcMode="container:first", PidMode=mode
        )
        modes = ("NetworkMode", "IpcMode", "PidMode")
        assert [joined.host_config[name] for name in modes] == [mode] * 3
        assert joined.config["Hostname"] == "first"
        params = world.agent.asked("container.start")[0]
        paths = {item["type"]: item.get("path") for item in params["spec"]["linux"]["namespaces"]}
        assert paths == {
            "mount": None, "uts": None, "cgroup": None, "network": mode, "pid": mode, "ipc": mode,
        }  # fmt: skip
        shm = [item for item in params["spec"]["mounts"] if item["destination"] == "/dev/shm"]
        assert shm[0] | {"options": []} == {
            "destination": "/dev/shm", "type": "shm", "source": mode, "options": [],
        }  # fmt: skip
        assert (params["files"], params["files_of"]) == ({}, first.id)

    play(tmp_path, scene)


def test_a_neighbour_that_is_not_there_or_does_not_share(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("closed")
        with pytest.raises(Conflict, match="non-shareable IPC"):
            await world.create(IpcMode="container:closed")
        with pytest.raises(NotFound):
            await world.create(PidMode="container:nobody")
        assert len(world.store.holders()) == 1

    play(tmp_path, scene)


def test_what_the_agent_is_asked_for(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run(Privileged=True, Init=True, Devices=[{"PathOnHost": "/dev/fuse"}])
        params = world.agent.asked("container.start")[0]
        assert params["all_devices"]
        assert params["spec"]["annotations"] == {"io.wherry.init": "true"}
        assert params["devices"][0]["path"] == "/dev/fuse"

    play(tmp_path, scene)
