"""Volumes as the engine tells them: rows, names, who uses them, what the guest is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_fakes import World, image, play, until

from wherry.engine.volumes import ANONYMOUS_LABEL
from wherry.errors import Conflict, InvalidInput, NotFound, NotImplementedYet


def volumes(world: World) -> list[str]:
    return [volume.name for volume in world.engine.volumes.list()]


async def removed(world: World, name: str) -> None:
    await until(lambda: {"name": name} in world.agent.asked("volume.remove"), f"{name}'s removal")


def test_volumes_are_made_and_listed_while_the_machine_is_off(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        made = world.engine.volumes.create("data", {"k": "v"})
        assert (made.name, made.labels, made.anonymous) == ("data", {"k": "v"}, False)
        assert world.engine.volumes.create("data", {"other": ""}) == made
        nameless = world.engine.volumes.create()
        assert len(nameless.name) == 64 and ANONYMOUS_LABEL in nameless.labels
        assert world.engine.volumes.mount_point("data") == "/var/lib/wherry/volumes/data/_data"
        assert sorted(volumes(world)) == sorted(["data", nameless.name])
        await world.kill_engine()
        assert world.engine.volumes.get("data") == made
        assert world.machine.link is None
        world.engine.volumes.remove("data")
        with pytest.raises(NotFound, match="get data: no such volume"):
            world.engine.volumes.get("data")
        with pytest.raises(NotFound):
            world.engine.volumes.remove("data")
        world.engine.volumes.remove("data", force=True)
        assert world.machine.link is None

    play(tmp_path, scene)


@pytest.mark.parametrize("name", ["a", "../x", "-ab", "a b", "x" * 119, ".ab"])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(InvalidInput):
            world.engine.volumes.create(name)
        with pytest.raises(InvalidInput):
            await world.create(Binds=[f"{name}:/x"])
        assert not list(world.engine._registry)
        assert not world.store.holders()

    play(tmp_path, scene)


def test_drivers_and_options_that_there_are_not(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        create = world.engine.volumes.create
        with pytest.raises(InvalidInput, match='plugin "nfs" not found') as error:
            create("data", driver="nfs")
        assert error.value.http_status == 404
        with pytest.raises(NotImplementedYet, match=r"DriverOpts\.type"):
            create("data", options={"type": "tmpfs", "device": "tmpfs"})
        with pytest.raises(InvalidInput, match='invalid option: "foo"'):
            create("data", options={"foo": "bar"})
        assert not volumes(world)

    play(tmp_path, scene)


def test_a_container_brings_its_volumes_along(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", Binds=["data:/x:ro", "/anonymous"])
        assert [mount.destination for mount in container.mounts] == ["/x", "/anonymous"]
        anonymous = container.mounts[1].volume
        assert sorted(volumes(world)) == sorted(["data", anonymous])
        spec = world.agent.asked("container.start")[0]["spec"]
        sources = {mount["destination"]: mount["source"] for mount in spec["mounts"]}
        assert (sources["/x"], sources["/anonymous"]) == ("data", anonymous)
        again = await world.create("again", Binds=["data:/y"])
        assert again.mounts[0].volume == "data"
        with pytest.raises(Conflict, match=rf"volume is in use - \[{container.id}, {again.id}\]"):
            world.engine.volumes.remove("data")
        world.agent.exit(container.id)
        await until(lambda: "die" in world.events(), "the exit")
        told = [(event.action, event.actor_id) for event in world.all_events()]
        assert [item for item in told if item[1] == "data"] == [
            ("create", "data"), ("mount", "data"), ("unmount", "data"),
        ]  # fmt: skip

    play(tmp_path, scene)


def test_removing_a_container_with_its_volumes_spares_named_and_shared_ones(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", Binds=["data:/x", "/one", "/two"])
        one, two = (mount.volume for mount in container.mounts if mount.anonymous)
        friend = await world.create("friend", Binds=[f"{two}:/x"])
        world.agent.exit(container.id)
        await until(lambda: "die" in world.events(), "the exit")
        await world.engine.containers.remove("box", volumes=True)
        assert sorted(volumes(world)) == sorted(["data", two])
        await removed(world, one)
        await world.engine.containers.remove(friend.id, volumes=True)
        assert sorted(volumes(world)) == sorted(["data", two])  # it was named by the friend

    play(tmp_path, scene)


def test_without_v_anonymous_volumes_stay(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box", Binds=["/x"])
        await world.engine.containers.remove("box")
        assert len(volumes(world)) == 1

    play(tmp_path, scene)


def test_a_container_that_removes_itself_takes_its_anonymous_volumes_along(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", AutoRemove=True, Binds=["data:/x", "/y"])
        anonymous = container.mounts[1].volume
        world.agent.exit(container.id)
        await removed(world, anonymous)
        assert volumes(world) == ["data"]

    play(tmp_path, scene)


def test_volumes_from_keep_an_anonymous_volume_alive(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.create("first", Binds=["/x"])
        second = await world.create("second", VolumesFrom=["first"])
        assert second.mounts[0].volume == first.mounts[0].volume
        await world.engine.containers.remove("first", volumes=True)
        assert volumes(world) == [first.mounts[0].volume]
        await world.engine.containers.remove("second", volumes=True)
        assert not volumes(world)

    play(tmp_path, scene)


def test_the_images_volumes_are_anonymous_ones(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.store.images.append(image("db", Volumes={"/var/lib/db": {}}))
        config = {"Image": "db", "Cmd": ["true"]}
        container = await world.engine.containers.create("box", config, {})
        assert [(mount.destination, mount.anonymous) for mount in container.mounts] == [
            ("/var/lib/db", True)
        ]

    play(tmp_path, scene)


def test_a_new_volume_of_a_removed_ones_name_has_a_directory_of_its_own(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = world.engine.volumes.create("data")
        world.engine.volumes.remove("data")
        second = world.engine.volumes.create("data")
        assert first.directory == "data"
        assert second.directory.startswith("data.")
        await world.kill_engine()
        await world.run("box", Binds=["data:/x"])  # the machine starts, what waits is done
        await removed(world, "data")
        spec = world.agent.asked("container.start")[0]["spec"]
        assert second.directory in [mount["source"] for mount in spec["mounts"]]
        await until(lambda: not world.engine._state.volume_removals(), "the removal's row")
        third = world.engine.volumes.create("other")
        assert third.directory == "other"

    play(tmp_path, scene)


def test_pruning_takes_anonymous_volumes_that_nobody_uses(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box", Binds=["used:/x", "/used-too"])
        world.engine.volumes.create("named", {"k": "v"})
        nameless = world.engine.volumes.create().name
        world.agent.volumes = {nameless: 4096, "named": 100, "used": 5}
        assert await world.engine.volumes.usage() == world.agent.volumes
        assert await world.engine.volumes.prune({}) == ([nameless], 4096)
        assert await world.engine.volumes.prune({"all": ["1"], "label!": ["k=v"]}) == ([], 0)
        assert await world.engine.volumes.prune({"all": ["1"]}) == (["named"], 100)
        assert len(volumes(world)) == 2
        with pytest.raises(InvalidInput, match="invalid filter 'until'"):
            await world.engine.volumes.prune({"until": ["1"]})

    play(tmp_path, scene)


def test_filters(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box", Binds=["used:/x"])
        world.engine.volumes.create("free", {"a": "1", "b": ""})

        def found(**filters: list[str]) -> list[str]:
            return [volume.name for volume in world.engine.volumes.list(filters)]

        assert found(name=["re"]) == ["free"]
        assert found(label=["a=1", "b"]) == ["free"]
        assert found(label=["a=2"]) == []
        assert found(dangling=["true"]) == ["free"]
        assert found(dangling=["0"]) == ["used"]
        assert found(driver=["local"]) == ["free", "used"]
        assert found(driver=["nfs"]) == []
        with pytest.raises(InvalidInput, match="invalid filter 'size'"):
            found(size=["1"])

    play(tmp_path, scene)


def test_containers_are_found_by_their_volumes(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box", Binds=["data:/x"])
        await world.create("other")
        for value in ("data", "/x"):
            found = world.engine.containers.list(all=True, filters={"volume": [value]})
            assert [container.name for container in found] == ["box"]

    play(tmp_path, scene)
