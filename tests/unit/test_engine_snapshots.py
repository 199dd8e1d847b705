"""What is in a container: read from the guest while layers and files are kept, stored as images."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import FakeStream, World, image, play, until

from wherry.engine.snapshots import ChangeKind, CommitRequest, PathChange, parse_changes
from wherry.errors import InvalidInput, LinkError, NotFound
from wherry.images.committing import Commit
from wherry.images.store import Image

LAYER = [b"one", b"two"]


def answering(world: World, call: str, *chunks: bytes, end: bool = True) -> list[dict[str, Any]]:
    """Let the agent answer a call with these chunks; the parameters that it got."""
    calls: list[dict[str, Any]] = []

    async def answer(**params: Any) -> dict[str, Any]:
        calls.append(params)
        stream: FakeStream = world.agent.streams[params["stream"]]
        for chunk in chunks:
            stream.send(chunk)
        if end:
            stream.finish()
        return {}

    setattr(world.agent, f"_container_{call}", answer)
    return calls


def storing(world: World) -> list[tuple[Any, ...]]:
    """Let the store take commits; (parent, bytes, Commit, name) of each."""
    taken: list[tuple[Any, ...]] = []

    def commit(
        parent: Image | None, chunks: Iterator[bytes], new: Commit, name: str | None = None
    ) -> Image:
        taken.append((parent, b"".join(chunks), new, name))
        return image("made:1")

    world.store.commit = commit  # type: ignore[attr-defined]  # a stand-in's method
    return taken


def test_changes_are_told_and_nothing_stays_plugged_in(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box")
        calls = answering(world, "changes", b"A/new\xff\0C", b"/etc\0D/old\0")
        assert await world.engine.snapshots.changes("box") == [
            PathChange(ChangeKind.ADDED, "/new\udcff"),
            PathChange(ChangeKind.CHANGED, "/etc"),
            PathChange(ChangeKind.DELETED, "/old"),
        ]
        assert calls[0]["layers"] == list(container.layers)
        assert world.machine.attached == list(container.layers)
        assert world.machine.pins == {}

    play(tmp_path, scene)


@pytest.mark.parametrize("data", [b"A/torn", b"X/what\0", b"\0"])
def test_a_list_that_is_none_is_the_guests_fault(data: bytes) -> None:
    with pytest.raises(LinkError):
        parse_changes(data)


def test_a_reset_names_the_container_and_the_reason(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        answering(world, "changes", b"A/x\0", end=False)
        reading = asyncio.ensure_future(world.engine.snapshots.changes("box"))
        await until(lambda: bool(world.agent.streams), "the stream")
        list(world.agent.streams.values())[-1].cut("the disk is gone")
        with pytest.raises(LinkError, match=r"container box: the disk is gone"):
            await reading
        assert world.machine.pins == {}

    play(tmp_path, scene)


def test_an_unknown_container_starts_no_machine(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(NotFound):
            await world.engine.snapshots.changes("nobody")
        with pytest.raises(NotFound):
            world.engine.snapshots.export("nobody")
        assert world.machine.boots == 0

    play(tmp_path, scene)


def test_the_guest_keeps_the_files_of_a_removed_container_until_they_are_read(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.exit(container.id)
        await until(lambda: not world.engine.containers.get("box").running, "the exit")
        answering(world, "export", *LAYER, end=False)
        parts = world.engine.snapshots.export("box")
        assert await anext(parts) == b"one"
        await world.engine.containers.remove("box")
        assert await anext(parts) == b"two"
        removals = [method for method, _ in world.agent.calls if method == "container.remove"]
        assert removals == []
        list(world.agent.streams.values())[-1].finish()
        assert [part async for part in parts] == []
        await until(
            lambda: any(method == "container.remove" for method, _ in world.agent.calls),
            "the removal in the guest",
        )

    play(tmp_path, scene)


def test_a_commit_has_the_containers_settings_with_the_changes(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box")
        calls = answering(world, "layer", *LAYER)
        taken = storing(world)
        request = CommitRequest(
            name="made:1",
            config={"User": "nobody"},
            changes=['CMD ["top"]', "ENV A=b"],
            author="me",
            comment="why",
            pause=False,
        )
        made = await world.engine.snapshots.commit("box", request)
        assert made.tags == ("made:1",)
        ((parent, data, new, name),) = taken
        assert (parent.id, parent.diff_ids) == (container.image_id, container.layers)
        assert data == b"onetwo"
        assert name == "docker.io/library/made:1"
        assert new.config["Cmd"] == ["top"]
        assert new.config["User"] == "nobody"
        assert "A=b" in new.config["Env"]
        assert not {"Image", "OpenStdin", "Hostname"} & set(new.config)
        assert (new.created_by, new.comment, new.author) == ("true", "why", "me")
        assert calls[0]["pause"] is False
        await until(lambda: "commit" in world.events(), "the event")

    play(tmp_path, scene)


def test_a_wrong_change_or_name_is_said_before_the_guest_is_asked(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        for request in (CommitRequest(changes=["RUN true"]), CommitRequest(name="Not A Name")):
            with pytest.raises(InvalidInput):
                await world.engine.snapshots.commit("box", request)
        assert world.machine.boots == 0

    play(tmp_path, scene)


def test_a_client_that_goes_away_ends_the_commit(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        answering(world, "layer", *LAYER, end=False)
        taken = storing(world)
        work = asyncio.ensure_future(world.engine.snapshots.commit("box", CommitRequest()))
        await until(lambda: bool(world.agent.streams), "the stream")
        stream = list(world.agent.streams.values())[-1]
        await until(lambda: not stream._chunks, "the thread that reads")
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert stream.reset_reason == "nobody reads on"
        assert taken == []
        assert world.machine.pins == {}

    play(tmp_path, scene)
