"""Flags of run and create that mount something, or say what a container sees of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli.isolation import IsolationFlags, parse_device, parse_host, parse_ulimit
from wherry.cli.limits import LimitFlags
from wherry.cli.mounts import MountFlags, parse_mount
from wherry.cli.options import ContainerOptions, exposed_port
from wherry.cli.run import create_command
from wherry.errors import InvalidInput, WherryError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/x", {"Type": "volume", "Target": "/x"}),
        ("type=VOLUME,src=data,dst=/x,ro", {"Source": "data", "Target": "/x", "ReadOnly": True}),
        ("source=data,destination=/x,readonly=false", {"Target": "/x", "ReadOnly": False}),
        (
            "src=v1,target=/x,volume-nocopy,volume-subpath=a/b,volume-label=k=v,volume-label=l",
            {"VolumeOptions": {"NoCopy": True, "Subpath": "a/b", "Labels": {"k": "v", "l": ""}}},
        ),
        (
            "src=v1,target=/x,volume-driver=local,volume-opt=type=nfs,volume-opt=o=addr",
            {
                "VolumeOptions": {
                    "DriverConfig": {"Name": "local", "Options": {"type": "nfs", "o": "addr"}}
                }
            },
        ),
        (
            "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770",
            {"Type": "tmpfs", "TmpfsOptions": {"SizeBytes": 64 << 20, "Mode": 0o1770}},
        ),
        (
            "type=bind,src=/a,target=/b,bind-propagation=rslave,bind-nonrecursive=true",
            {"BindOptions": {"Propagation": "rslave", "NonRecursive": True}},
        ),
        (
            "type=bind,src=/a,target=/b,bind-recursive=readonly",
            {"BindOptions": {"ReadOnlyForceRecursive": True}},
        ),
        ('type=volume,"target=/with,comma"', {"Target": "/with,comma"}),
        ("type=bind,src=.,target=/b", {"Source": str(Path.cwd())}),
    ],
)
def test_mount_has_dockers_keys(text: str, expected: dict[str, Any]) -> None:
    assert parse_mount(text).items() >= expected.items()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=volume", "target is required"),
        ("target", "must be a key=value pair"),
        ("target=/x,colour=red", "unexpected key 'colour' in 'colour=red'"),
        ("target=/x,ro=perhaps", "invalid value for ro: perhaps"),
        ("type=tmpfs,target=/x,tmpfs-size=big", "invalid value for tmpfs-size: big"),
        ("type=tmpfs,target=/x,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
        ("type=tmpfs,target=/x,volume-nocopy", "cannot mix 'volume-*' options"),
        ("target=/x,bind-propagation=shared", "cannot mix 'bind-*' options"),
        ("type=bind,target=/x,bind-recursive=often", "invalid value for bind-recursive"),
        ('"target=/x', "invalid argument"),
        ("", "target is required"),
    ],
)
def test_a_mount_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_mount(text)
    assert words in error.value.message


def test_volumes_without_a_name_stand_in_config() -> None:
    flags = MountFlags(volume=("/a", "data:/b:ro", "./here:/c"), tmpfs=("/t", "/u:size=1m,ro"))
    assert flags.config() == {"Volumes": {"/a": {}}}
    host_config = flags.host_config()
    assert host_config["Binds"] == ["data:/b:ro", f"{Path.cwd()}/here:/c"]
    assert host_config["Tmpfs"] == {"/t": "", "/u": "size=1m,ro"}
    assert host_config["Mounts"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/fuse", ("/dev/fuse", "/dev/fuse", "rwm")),
        ("/dev/fuse:rw", ("/dev/fuse", "/dev/fuse", "rw")),
        ("/dev/fuse:/dev/f", ("/dev/fuse", "/dev/f", "rwm")),
        ("/dev/fuse:/dev/f:r", ("/dev/fuse", "/dev/f", "r")),
    ],
)
def test_a_device_has_a_place_and_permissions(text: str, expected: tuple[str, str, str]) -> None:
    assert tuple(parse_device(text).values()) == expected


@pytest.mark.parametrize("text", ["fuse", "/dev/a:b", "/dev/a:/b:/c", "/dev/a:/b:x", ""])
def test_a_device_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid device specification"):
        parse_device(text)


def test_ulimits() -> None:
    assert parse_ulimit("nofile=1024:2048") == {"Name": "nofile", "Soft": 1024, "Hard": 2048}
    assert parse_ulimit("core=-1") == {"Name": "core", "Soft": -1, "Hard": -1}
    for text in ("nofile", "nofile=", "nofile=a", "=1", "nofile=1:2:3"):
        with pytest.raises(InvalidInput, match="invalid ulimit argument"):
            parse_ulimit(text)


def test_hosts_may_be_written_both_ways() -> None:
    assert parse_host("db:192.0.2.1") == parse_host("db=192.0.2.1") == "db:192.0.2.1"
    assert parse_host("db=[2001:db8::1]") == parse_host("db:2001:db8::1") == "db:2001:db8::1"
    for text in ("db", "db:", ":192.0.2.1"):
        with pytest.raises(InvalidInput, match="add-host"):
            parse_host(text)


@given(st.text(alphabet="type=volumbindfs,rc/x:\"' ", max_size=40))
def test_any_text_is_a_mount_or_a_clear_refusal(text: str) -> None:
    for parse in (parse_mount, parse_device, parse_ulimit, parse_host):
        try:
            parse(text)
        except WherryError as error:
            assert "\n" not in error.message


def test_limits_of_devices() -> None:
    flags = LimitFlags(
        blkio_weight=300,
        blkio_weight_device=("/dev/vda:20",),
        device_read_bps=("/dev/vda:1mb",),
        device_write_iops=("/dev/vda:50",),
    )
    found = flags.host_config()
    assert found["BlkioWeight"] == 300
    assert found["BlkioWeightDevice"] == [{"Path": "/dev/vda", "Weight": 20}]
    assert found["BlkioDeviceReadBps"] == [{"Path": "/dev/vda", "Rate": 1 << 20}]
    assert found["BlkioDeviceWriteIOps"] == [{"Path": "/dev/vda", "Rate": 50}]
    for wrong in ("vda:5", "/dev/vda", "/dev/vda:", "/dev/vda:x"):
        with pytest.raises(InvalidInput):
            LimitFlags(device_read_iops=(wrong,)).host_config()


def test_ports_are_noted_and_labels_read(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("# of a team\nteam=core\n\ntier=back\n")
    options = ContainerOptions(
        "x", (), label=("tier=front",), label_file=(str(file),), expose=("80", "53/udp")
    )
    body = options.body(attach=True)
    assert body["Labels"] == {"team": "core", "tier": "front"}
    assert body["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    for wrong in ("0", "http", "80/icmp", "70000", "1-5"):
        with pytest.raises(InvalidInput, match="invalid port"):
            exposed_port(wrong)


def test_only_the_streams_that_are_named_are_attached() -> None:
    body = ContainerOptions("x", (), interactive=True, attach=("stderr",)).body(attach=True)
    assert (body["AttachStdin"], body["AttachStdout"], body["AttachStderr"]) == (False, False, True)


def test_no_flags_are_the_defaults_of_docker() -> None:
    body = ContainerOptions(image="x", command=()).body(attach=True)
    assert not body["Volumes"] and not body["Domainname"]
    set_by_us = IsolationFlags().host_config() | MountFlags().host_config()
    set_by_us |= LimitFlags().host_config()
    assert {key: value for key, value in set_by_us.items() if value} == {}


def test_every_flag_is_known_to_its_group() -> None:
    parameters = {parameter.name for parameter in create_command.params}
    assert {"volume", "mount", "device", "add_host", "init"} <= parameters
    help_text = CliRunner().invoke(create_command, ["--help"]).output
    assert "--volumes-from" in help_text
