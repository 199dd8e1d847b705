"""Configuration in, OCI runtime spec out; what the guest's own parser says to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wherry.engine.config import checked_host_config, merged_config
from wherry.engine.model import Container
from wherry.engine.spec import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    Facts,
    adjusted_capabilities,
    etc_files,
    exec_process,
    hostname,
    overridden,
    runtime_spec,
    start_params,
)
from wherry.errors import InvalidInput
from wherry_guest.core.spec import parse_process, parse_spec

ID = "0123456789ab" + "c" * 52
FACTS = Facts(hostname="vm")


def container(config: dict[str, Any] | None = None, **host_config: Any) -> Container:
    return Container(
        id=ID,
        name="web",
        created_ns=1,
        image="busybox",
        image_id="sha256:1",
        manifest_digest="sha256:2",
        config={"Cmd": ["sh"]} | (config or {}),
        host_config=host_config,
        layers=("sha256:a",),
    )


def test_the_default_spec() -> None:
    spec = runtime_spec(container(), FACTS)
    capabilities = list(DEFAULT_CAPABILITIES)
    assert spec["process"] == {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=0123456789ab",
        ],
        "cwd": "/",
        "capabilities": {
            kind: sorted(capabilities, key=ALL_CAPABILITIES.index)
            for kind in ("bounding", "effective", "permitted")
        },
        "rlimits": [],
        "noNewPrivileges": False,
        "oomScoreAdj": 0,
    }
    assert spec["root"] == {"path": "rootfs", "readonly": False}
    assert spec["hostname"] == "0123456789ab"
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert list(mounts) == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
    ]  # fmt: skip
    assert "ro" in mounts["/sys"]["options"]
    assert "ro" in mounts["/sys/fs/cgroup"]["options"]
    assert "size=67108864" in mounts["/dev/shm"]["options"]
    kinds = {namespace["type"] for namespace in spec["linux"]["namespaces"]}
    assert kinds == {"mount", "network", "uts", "pid", "ipc", "cgroup"}
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]
    assert set(spec["linux"]["resources"]) == {"devices"}


def test_docker_gives_fourteen_capabilities() -> None:
    assert len(DEFAULT_CAPABILITIES) == 14
    assert len(ALL_CAPABILITIES) == 41


def test_disks_cannot_be_opened() -> None:
    rules = runtime_spec(container(), FACTS)["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "b", "access": "m"} in rules
    assert not any(rule.get("type") == "b" and "r" in rule["access"] for rule in rules)


@pytest.mark.parametrize(
    ("config", "host_config"),
    [
        ({}, {}),
        ({"Tty": True, "User": "app:staff", "WorkingDir": "/srv"}, {"ConsoleSize": [24, 80]}),
        ({"Env": ["A=1"]}, {"Memory": 1 << 26, "MemorySwap": -1, "NanoCpus": 1, "PidsLimit": 5}),
        ({}, {"CpuShares": 512, "CpuQuota": 5000, "CpuPeriod": 10000, "CpusetCpus": "0-1"}),
        ({}, {"Privileged": True, "ReadonlyRootfs": True, "NetworkMode": "host"}),
        ({}, {"CapAdd": ["ALL"], "CapDrop": ["NET_RAW"], "Tmpfs": {"/t": "size=1m"}}),
        ({}, {"ShmSize": 1 << 20, "PidsLimit": -1, "NetworkMode": "none"}),
        ({"Domainname": "example.net"}, {"PidMode": "host", "CgroupnsMode": "host"}),
        ({}, {"IpcMode": "none", "UTSMode": "host", "SecurityOpt": ["no-new-privileges"]}),
        ({}, {"Ulimits": [{"Name": "core", "Soft": -1, "Hard": -1}], "OomScoreAdj": 500}),
        ({}, {"Sysctls": {"net.core.somaxconn": "9"}, "GroupAdd": ["audio", "44"]}),
        ({}, {"DeviceCgroupRules": ["c 42:* rm"], "Annotations": {"a": "b"}, "MaskedPaths": []}),
    ],
)
def test_the_guest_understands_every_spec(
    config: dict[str, Any], host_config: dict[str, Any]
) -> None:
    made = container(config, **host_config)
    parse_spec(start_params(made, ["sha256:a"], FACTS)["spec"])
    parse_process(exec_process(made, {"Cmd": ["true"], "Tty": True}, FACTS))


def test_limits_are_the_runtime_specs() -> None:
    limits = {"Memory": 64 << 20, "NanoCpus": 1_500_000_000, "PidsLimit": 100, "CpuShares": 512}
    made = container(**checked_host_config(limits))
    resources = runtime_spec(made, FACTS)["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert resources["cpu"] == {"period": 100_000, "quota": 150_000, "shares": 512}
    assert resources["pids"] == {"limit": 100}


def test_a_privileged_container_has_everything() -> None:
    spec = runtime_spec(container(Privileged=True), FACTS)
    assert spec["process"]["capabilities"]["effective"] == list(ALL_CAPABILITIES)
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert spec["linux"]["resources"]["devices"] == []


def test_a_terminal_has_a_type_and_a_size() -> None:
    made = container({"Tty": True}, ConsoleSize=[24, 80])
    params = start_params(made, ["sha256:a"], FACTS)
    assert params["tty"] is True
    assert params["size"] == {"rows": 24, "cols": 80}
    assert "TERM=xterm" in params["spec"]["process"]["env"]
    assert start_params(container({"Tty": True}), [], FACTS)["size"] is None


def test_the_users_environment_wins_over_the_engines() -> None:
    made = container({"Env": ["PATH=/bin", "HOSTNAME=mine", "A=1", "A=2"]})
    env = runtime_spec(made, FACTS)["process"]["env"]
    assert env == ["PATH=/bin", "HOSTNAME=mine", "A=2"]
    process = exec_process(made, {"Cmd": ["x"], "Env": ["A=3", "PATH"]}, FACTS)
    assert process["env"] == ["HOSTNAME=mine", "A=3"]
    assert overridden(["A=1"], ["B=2"], ["A"]) == ["B=2"]


def test_an_exec_takes_the_containers_user_and_directory() -> None:
    made = container({"User": "app", "WorkingDir": "/srv"})
    process = exec_process(made, {"Cmd": ["id"]}, FACTS)
    assert process["user"] == {"uid": 0, "gid": 0, "username": "app"}
    assert process["cwd"] == "/srv"
    other = exec_process(made, {"Cmd": ["id"], "User": "0", "Privileged": True}, FACTS)
    assert other["user"]["username"] == "0"
    assert other["capabilities"]["effective"] == list(ALL_CAPABILITIES)


def test_host_names_and_files() -> None:
    assert hostname(container({"Hostname": "web1"}), FACTS) == "web1"
    shared = container(NetworkMode="host")
    assert hostname(shared, FACTS) == "vm"
    assert {"type": "network"} not in runtime_spec(shared, FACTS)["linux"]["namespaces"]
    files = etc_files(container(), replace(FACTS, dns=("192.0.2.1",)))
    assert files["hostname"] == "0123456789ab\n"
    assert files["hosts"].startswith("127.0.0.1\tlocalhost\n")
    assert files["resolv.conf"] == "nameserver 192.0.2.1\n"


@pytest.mark.parametrize(
    ("add", "drop", "has", "lacks"),
    [
        (["net_admin"], [], "CAP_NET_ADMIN", "CAP_SYS_ADMIN"),
        ([], ["CAP_NET_RAW"], "CAP_CHOWN", "CAP_NET_RAW"),
        (["ALL"], ["SYS_ADMIN"], "CAP_BPF", "CAP_SYS_ADMIN"),
        (["CHOWN"], ["ALL"], "CAP_CHOWN", "CAP_KILL"),
    ],
)
def test_capabilities_are_added_and_dropped(
    add: list[str], drop: list[str], has: str, lacks: str
) -> None:
    capabilities = adjusted_capabilities(add, drop)
    assert has in capabilities
    assert lacks not in capabilities


def test_an_unknown_capability_is_an_error() -> None:
    with pytest.raises(InvalidInput, match='unknown capability: "FLY"'):
        adjusted_capabilities(["FLY"], [])


@pytest.mark.parametrize(
    ("own", "image", "argv"),
    [
        ({}, {"Cmd": ["sh"]}, (None, ["sh"])),
        ({"Cmd": ["ls"]}, {"Cmd": ["sh"]}, (None, ["ls"])),
        ({"Cmd": ["ls"]}, {"Entrypoint": ["e"], "Cmd": ["sh"]}, (["e"], ["ls"])),
        ({}, {"Entrypoint": ["e"], "Cmd": ["sh"]}, (["e"], ["sh"])),
        ({"Entrypoint": ["x"]}, {"Entrypoint": ["e"], "Cmd": ["sh"]}, (["x"], None)),
        ({"Entrypoint": [""], "Cmd": ["ls"]}, {"Entrypoint": ["e"]}, (None, ["ls"])),
        ({"Entrypoint": []}, {"Entrypoint": ["e"], "Cmd": ["sh"]}, ([], ["sh"])),
    ],
)
def test_entrypoint_and_command(own: dict[str, Any], image: dict[str, Any], argv: Any) -> None:
    merged = merged_config(own, image)
    assert (merged.get("Entrypoint"), merged.get("Cmd")) == argv


def test_what_is_empty_comes_from_the_image() -> None:
    merged = merged_config(
        {"Cmd": ["x"], "Env": ["A=mine"], "Labels": {"a": "mine"}, "User": "", "WorkingDir": ""},
        {
            "Env": ["A=image", "B=image"],
            "Labels": {"a": "image", "b": "image"},
            "User": "app",
            "WorkingDir": "/srv",
            "StopSignal": "SIGINT",
            "ExposedPorts": {"80/tcp": {}},
        },
    )
    assert merged["Env"] == ["A=mine", "B=image"]
    assert merged["Labels"] == {"a": "mine", "b": "image"}
    assert (merged["User"], merged["WorkingDir"], merged["StopSignal"]) == ("app", "/srv", "SIGINT")
    assert merged["ExposedPorts"] == {"80/tcp": {}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "no command specified"),
        ({"Cmd": ["x"], "WorkingDir": "srv"}, "needs to be an absolute path"),
        ({"Cmd": ["x"], "Env": ["=x"]}, "invalid environment variable"),
        ({"Cmd": ["x"], "StopSignal": "SIGNOPE"}, "Invalid signal"),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        merged_config(config, {})


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"Memory": 1 << 20}, "6MB"),
        ({"MemorySwap": 1 << 26}, "Memory limit"),
        ({"Memory": 1 << 26, "MemorySwap": 1 << 25}, "larger than memory"),
        ({"NanoCpus": 1, "CpuQuota": 1000}, "cannot both be set"),
        ({"CpuPeriod": 10}, "period"),
        ({"CpuQuota": 10}, "quota"),
        ({"ShmSize": -1}, "SHM"),
    ],
)
def test_contradicting_limits_are_refused(limits: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        checked_host_config(limits)
