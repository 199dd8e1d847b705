"""User namespaces: who gets which ids, who shares them, what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import World, play
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine.model import Container, IdRange
from wherry.engine.userns import SIZE, check_userns, free_range, id_range, user_namespace
from wherry.errors import Conflict, InvalidInput, WherryError
from wherry.settings import load_settings

MINE = IdRange(2 * SIZE, SIZE)


def container(name: str, ids: IdRange | None = None, **host_config: Any) -> Container:
    return Container(
        id=name, name=name, created_ns=1, image="i", image_id="i", manifest_digest="", config={},
        host_config=host_config, layers=(), id_range=ids,
    )  # fmt: skip


def ids_of(default: str = "host", *others: Container, **host_config: Any) -> IdRange | None:
    known = {it.name: it for it in others}
    return id_range(host_config, default, known.__getitem__, others)


@pytest.mark.parametrize(
    ("mode", "default", "size"),
    [
        ("", "host", None),
        ("host", "private", None),
        ("", "private", SIZE),
        ("private", "host", SIZE),
        ("auto", "host", SIZE),
        ("auto:size=2000", "host", 2000),
    ],
)
def test_a_mode_says_how_many_ids(mode: str, default: str, size: int | None) -> None:
    found = ids_of(default, UsernsMode=mode)
    assert (found and found.size) == size


def test_two_containers_have_no_id_in_common() -> None:
    first = ids_of(UsernsMode="private")
    second = ids_of("host", container("a", first), UsernsMode="private")
    assert first is not None and second is not None
    assert second.first >= first.first + first.size


@given(st.lists(st.integers(1024, 300_000), max_size=12), st.integers(0, 11))
def test_ranges_never_meet_and_gaps_are_used_again(sizes: list[int], gone: int) -> None:
    taken: list[IdRange] = []
    for size in sizes:
        taken.append(free_range(taken, size))
    if taken:
        freed = taken.pop(gone % len(taken))
        assert free_range(taken, freed.size).first <= freed.first
        taken.append(free_range(taken, freed.size))
    spans = sorted((it.first, it.first + it.size) for it in taken)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(first >= SIZE for first, _ in spans)


def test_an_end_of_all_ids_is_said() -> None:
    with pytest.raises(Conflict, match="no ids left"):
        free_range([IdRange(SIZE, 2**31 - SIZE)], SIZE)


def test_who_joins_a_container_has_its_user_namespace() -> None:
    other = container("a", MINE)
    assert ids_of("host", other, NetworkMode="container:a") == MINE
    assert ids_of("private", container("b"), PidMode="container:b") is None
    assert ids_of("host", other, NetworkMode="container:a", UsernsMode="host") is None
    joined = container("c", MINE, IpcMode="container:a")
    (item,), mappings = user_namespace(joined)
    assert item == {"type": "user", "path": "container:a"}
    assert mappings["uidMappings"] == [{"containerID": 0, "hostID": MINE.first, "size": SIZE}]
    assert user_namespace(container("d")) == ([], {})


def test_user_namespaces_that_differ_cannot_both_be_joined() -> None:
    a, b = container("a", MINE), container("b", replace(MINE, first=3 * SIZE))
    with pytest.raises(Conflict, match="their user namespaces differ"):
        ids_of("host", a, b, NetworkMode="container:a", PidMode="container:b")
    with pytest.raises(Conflict, match="it has none"):
        ids_of("host", container("n"), NetworkMode="container:n", UsernsMode="private")


@pytest.mark.parametrize(
    ("host_config", "words"),
    [
        ({"UsernsMode": "remap"}, "invalid USER mode: remap"),
        ({"UsernsMode": "auto:size=10"}, "a size is 1024 to"),
        ({"UsernsMode": "auto:uidmapping=0:1:2"}, "invalid USER mode"),
        ({"UsernsMode": "private", "Privileged": True}, "privileged mode is incompatible"),
        ({"UsernsMode": "auto", "NetworkMode": "host"}, "the host's network namespace"),
        ({"UsernsMode": "auto", "PidMode": "host"}, "the host PID namespace"),
        ({"UsernsMode": "auto", "IpcMode": "host"}, "the host's IPC namespace"),
        ({"UsernsMode": "auto", "CgroupnsMode": "host"}, "the host's cgroup namespace"),
    ],
)
def test_what_cannot_be_is_refused(host_config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_userns(host_config)


def test_by_default_as_well_as_when_asked() -> None:
    with pytest.raises(InvalidInput, match="privileged mode is incompatible"):
        ids_of("private", Privileged=True)
    with pytest.raises(InvalidInput, match="privileged mode is incompatible"):
        ids_of("host", container("a", MINE), NetworkMode="container:a", Privileged=True)


@given(st.text(max_size=20))
def test_any_mode_is_understood_or_refused_in_one_line(mode: str) -> None:
    try:
        check_userns({"UsernsMode": mode})
    except WherryError as error:
        assert "invalid USER mode" in error.message


def test_a_range_is_kept_with_the_container_and_told_to_the_guest(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        made = await world.create(UsernsMode="private")
        await world.engine.containers.start(made.id)
        linux = world.agent.containers[made.id].params["spec"]["linux"]
        assert {"type": "user"} in linux["namespaces"]
        assert linux["uidMappings"] == linux["gidMappings"] != []
        await world.kill_engine()
        again = world.engine.containers.get(made.id)
        assert again.id_range == made.id_range is not None

    play(tmp_path, scene)


def test_the_setting_is_one_of_two_words(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("userns: private\n")
    assert load_settings(file, {}).userns == "private"
    file.write_text("userns: auto\n")
    with pytest.raises(InvalidInput, match="userns must be one of host, private"):
        load_settings(file, {})


def test_the_engine_says_whether_it_maps_by_default(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        assert not world.engine.containers.mapped_by_default

    play(tmp_path, scene)
