"""How big containers are: the walk in the guest, the figures of the engine."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from engine_fakes import World, play

from wherry.api.views import container_inspect, container_summary
from wherry.engine.sizes import Size
from wherry_guest.agent.sizes import content_size, disk_usage, send_sizes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="directories are opened as files are")


def test_a_file_with_two_names_counts_once_and_directories_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_bytes(bytes(1000))
    os.link(tmp_path / "a/file", tmp_path / "again")
    (tmp_path / "a/b/other").write_bytes(bytes(5))
    (tmp_path / "link").symlink_to("/etc")
    assert content_size(tmp_path) == 1005 + len("/etc")
    assert disk_usage(tmp_path) >= 1005


def test_a_wide_tree_needs_no_more_descriptors_than_it_is_deep(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    for number in range(300):
        (tmp_path / str(number)).mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        assert content_size(tmp_path) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_vanishes_is_left_out(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/x").write_bytes(bytes(7))
    trees = {"one": tmp_path / "one", "none": tmp_path / "none"}
    sending = threading.Thread(target=send_sizes, args=(writer, trees, content_size))
    sending.start()
    sending.join()
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert json.load(answer) == {"one": 7}


def test_a_container_is_its_image_and_what_it_wrote(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        made = await world.run("box")
        world.agent.written[made.id] = 11
        world.store.layer_sizes = dict.fromkeys(made.layers, 100)
        image = 100 * len(made.layers)
        assert (await world.engine.sizes.of([made]))[made.id] == Size(11, image + 11)
        world.machine.die()
        assert (await world.engine.sizes.of([made]))[made.id] == Size(None, image)

    play(tmp_path, scene)


def test_sizes_are_shown_where_they_are_asked_for(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        made = await world.create("box")
        for view in (container_inspect, container_summary):
            assert "SizeRootFs" not in view(made, str)
            shown = view(made, str, size=Size(5, 7))
            assert (shown["SizeRw"], shown["SizeRootFs"]) == (5, 7)
            assert "SizeRw" not in view(made, str, size=Size(None, 7))

    play(tmp_path, scene)
