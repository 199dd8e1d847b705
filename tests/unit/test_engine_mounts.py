"""What Binds, Mounts, Volumes, VolumesFrom and Tmpfs mean, and the words of what they may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_fakes import image
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine.model import Container, MountPoint
from wherry.engine.mounts import (
    checked_tmpfs_options,
    parse_bind,
    parse_mount,
    wanted_mounts,
)
from wherry.engine.spec_mounts import runtime_mounts
from wherry.errors import InvalidInput, NotFound, NotImplementedYet, WherryError


def container(*mounts: MountPoint, **host_config: Any) -> Container:
    picture = image()
    return Container(
        id="c" * 64,
        name="c",
        created_ns=1,
        image="x",
        image_id=picture.id,
        manifest_digest="",
        config={},
        host_config=host_config,
        layers=(),
        mounts=mounts,
    )


def nobody(ref: str) -> Container:
    raise NotFound(f"No such container: {ref}")


def mounts(config: dict[str, Any] | None = None, **host_config: Any) -> dict[str, MountPoint]:
    found = wanted_mounts(config or {}, host_config, nobody)
    return {mount.destination: mount for mount in found}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", MountPoint("volume", "/data", copy=True, anonymous=True)),
        ("data:/x", MountPoint("volume", "/x", "data", mode="z", copy=True)),
        ("data:/x:ro", MountPoint("volume", "/x", "data", writable=False, mode="ro", copy=True)),
        ("data:/x:rw,z", MountPoint("volume", "/x", "data", mode="rw,z", copy=True)),
        ("data:/x:nocopy", MountPoint("volume", "/x", "data", mode="nocopy")),
        ("data:/x/../y//:Z", MountPoint("volume", "/y", "data", mode="Z", copy=True)),
        ("data:/x:cached", MountPoint("volume", "/x", "data", mode="cached", copy=True)),
    ],
)
def test_a_bind_names_a_volume_a_place_and_a_mode(text: str, expected: MountPoint) -> None:
    assert parse_bind(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid volume specification: ''"),
        (":/x", "invalid volume specification"),
        ("data:ro", "invalid volume specification: 'data:ro'"),
        ("data:/a:/b", "invalid mode"),
        ("data:/a:ro:x", "invalid volume specification"),
        ("data:relative", "mount path must be absolute"),
        ("data:/", "destination can't be '/'"),
        ("data:/x:rw,ro", 'invalid mode: "rw,ro"'),
        ("data:/x:wx", 'invalid mode: "wx"'),
        ("data:/x:rshared", "propagation is for directories"),
    ],
)
def test_a_bind_that_is_none(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_bind(text)
    assert words in error.value.message


@pytest.mark.parametrize("text", ["/home/me:/x", "/home/me:/x:ro", "C:\\Users:/x", "c:/Users:/x"])
def test_a_directory_of_this_computer_is_a_501_that_names_the_field(text: str) -> None:
    with pytest.raises(NotImplementedYet, match=r"HostConfig\.Binds") as error:
        parse_bind(text)
    assert error.value.hint is not None and "volume" in error.value.hint


def test_mounts_of_the_three_kinds() -> None:
    assert parse_mount(
        {
            "Type": "volume",
            "Source": "data",
            "Target": "/x",
            "ReadOnly": True,
            "VolumeOptions": {"NoCopy": True, "Subpath": "a/b", "Labels": {"k": "v"}},
        }
    ) == MountPoint(
        "volume", "/x", "data", writable=False, mode="z", subpath="a/b", labels={"k": "v"}
    )
    assert parse_mount({"Target": "/x"}).anonymous
    tmpfs = {"SizeBytes": 65536, "Mode": 0o1770, "Options": [["exec"]]}
    found = parse_mount({"Type": "tmpfs", "Target": "/t", "TmpfsOptions": tmpfs})
    assert found == MountPoint("tmpfs", "/t", options=("mode=1770", "size=65536", "exec"))
    with pytest.raises(NotImplementedYet, match="Type=bind"):
        parse_mount({"Type": "bind", "Source": "/a", "Target": "/b"})
    with pytest.raises(NotImplementedYet, match="Type=image"):
        parse_mount({"Type": "image", "Source": "x", "Target": "/b"})


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"Type": "volume"}, 'invalid mount config for type "volume": field Target must not'),
        ({"Type": "paper", "Target": "/x"}, "mount type unknown"),
        ({"Target": "x"}, "mount path must be absolute"),
        ({"Target": "/x", "BindOptions": {"Propagation": "shared"}}, "field BindOptions must not"),
        ({"Target": "/x", "ReadOnly": True}, "must not set ReadOnly mode"),
        ({"Target": "/x", "VolumeOptions": {"Subpath": "a"}}, "anonymous"),
        ({"Source": "v1", "Target": "/x", "VolumeOptions": {"Subpath": "../a"}}, "within the vol"),
        ({"Source": "v1", "Target": "/x", "VolumeOptions": {"Subpath": "/a"}}, "within the volume"),
        ({"Type": "tmpfs", "Source": "v1", "Target": "/x"}, "field Source must not"),
        ({"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"Mode": "7"}}, "whole number"),
        (
            {"Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}},
            'plugin "nfs" not found',
        ),
    ],
)
def test_a_mount_that_is_none(item: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_mount(item)
    assert words in error.value.message


def test_what_is_named_twice_is_an_error() -> None:
    for config in (
        {"Binds": ["aa:/x", "bb:/x"]},
        {"Binds": ["aa:/x"], "Mounts": [{"Target": "/x/"}]},
        {"Binds": ["aa:/x"], "Tmpfs": {"/x": ""}},
    ):
        with pytest.raises(InvalidInput, match="Duplicate mount point: /x"):
            mounts(**config)


def test_the_images_volumes_give_way_to_what_a_client_names() -> None:
    found = mounts({"Volumes": {"/x": {}, "/y": {}, "/t": {}}}, Binds=["aa:/x"], Tmpfs={"/t": ""})
    assert found["/x"].volume == "aa"
    assert found["/y"].anonymous
    assert "/t" not in found


def test_volumes_from_another_container_are_its_volumes_and_not_filled_again() -> None:
    other = container(
        MountPoint("volume", "/a", "one", copy=True),
        MountPoint("volume", "/b", "two", writable=False),
        MountPoint("tmpfs", "/t"),
    )
    config = {"VolumesFrom": ["other:ro"], "Binds": ["mine:/b"]}
    found = {mount.destination: mount for mount in wanted_mounts({}, config, lambda ref: other)}
    assert found["/a"] == replace(other.mounts[0], writable=False, copy=False)
    assert found["/b"].volume == "mine"
    assert "/t" not in found
    with pytest.raises(InvalidInput, match="invalid mode"):
        mounts(VolumesFrom=["other:nocopy"])
    with pytest.raises(NotFound):
        mounts(VolumesFrom=["nobody"])


def test_mounts_come_in_the_order_of_their_depth() -> None:
    assert list(mounts(Binds=["aa:/x/y/z", "bb:/x", "cc:/x/y"])) == ["/x", "/x/y", "/x/y/z"]


def test_tmpfs_options_that_there_are_not() -> None:
    assert checked_tmpfs_options("size=64m,mode=1770,exec") == ("size=64m", "mode=1770", "exec")
    for text in ("foo", "size", "foo=1", "nosuid=1"):
        with pytest.raises(InvalidInput, match="invalid tmpfs option"):
            checked_tmpfs_options(text)


@given(st.text(alphabet="ab:/.,rozC\\ ", max_size=20))
def test_any_text_is_a_mount_or_a_clear_refusal(text: str) -> None:
    try:
        mount = parse_bind(text)
    except WherryError as error:
        assert "\n" not in error.message
    else:
        assert mount.destination.startswith("/") and mount.destination != "/"
        assert "/../" not in mount.destination and not mount.destination.endswith("/")


# The runtime spec.


def spec_mounts(*points: MountPoint, **host_config: Any) -> dict[str, dict[str, Any]]:
    found = runtime_mounts(container(*points, **host_config), lambda name: f"{name}.dir")
    return {mount["destination"]: mount for mount in found}


def test_volumes_become_mounts_of_their_directory() -> None:
    found = spec_mounts(MountPoint("volume", "/x", "data", writable=False, copy=True))
    assert found["/x"] == {
        "destination": "/x",
        "type": "volume",
        "source": "data.dir",
        "options": ["ro", "copyup"],
    }
    found = spec_mounts(MountPoint("volume", "/x", "data", subpath="a,b/c"))
    assert found["/x"]["options"] == ["rw", "subpath=a,b/c"]


def test_a_mount_takes_the_place_of_a_default() -> None:
    found = spec_mounts(MountPoint("tmpfs", "/dev/shm", options=("size=1m",)))
    assert "size=1m" in found["/dev/shm"]["options"]
    assert "mode=1777" not in found["/dev/shm"]["options"]
    found = spec_mounts(MountPoint("volume", "/dev", "data"))
    assert [path for path in found if path.startswith("/dev")] == ["/dev"]


def test_defaults_come_first_and_file_systems_in_memory_may_have_options() -> None:
    found = spec_mounts(MountPoint("volume", "/sys/fs/x", "data"), Tmpfs={"/a/b": "exec", "/c": ""})
    assert list(found)[-3:] == ["/c", "/a/b", "/sys/fs/x"]
    assert found["/a/b"]["options"] == ["noexec", "nosuid", "nodev", "exec"]


def test_a_read_only_root_makes_a_privileged_containers_sys_read_only() -> None:
    found = spec_mounts(Privileged=True, ReadonlyRootfs=True)
    assert "ro" in found["/sys"]["options"]
    assert "ro" not in found["/dev"]["options"]
