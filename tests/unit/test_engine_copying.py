"""cp as the engine does it: archives in, what the guest says, who has to wait meanwhile."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fakes import World, play, until
from hypothesis import given
from hypothesis import strategies as st

from wherry.api.copying import go_mode, status_header
from wherry.engine import stillness
from wherry.engine.copying import PathStatus, send_entries
from wherry.errors import InvalidInput, LinkError, NotFound
from wherry.images.tar import LayerError
from wherry_guest import entries
from wherry_guest.entries import Entry, decode


def head(**fields: object) -> bytes:
    data = json.dumps(fields).encode()
    return len(data).to_bytes(4, "big") + data


STAT = {"name": "x", "size": 3, "mode": stat.S_IFREG | 0o644, "mtime_ns": 5, "link_target": ""}


def tar(*members: tarfile.TarInfo, content: bytes = b"abc") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info in members:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def chunks(data: bytes, size: int = 300) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def received(data: bytes) -> list[tuple[Entry, bytes]]:
    """What the guest would read."""
    found, position = [], 0
    while length := int.from_bytes(data[position : position + 4], "big"):
        entry = decode(data[position + 4 : position + 4 + length])
        position += 4 + length
        found.append((entry, data[position : position + entry.stored]))
        position += entry.stored
    assert data[position:] == entries.END
    return found


def sent(archive: bytes) -> list[tuple[Entry, bytes]]:
    out = bytearray()
    send_entries(chunks(archive), out.extend)
    return received(bytes(out))


def test_an_archive_becomes_entries() -> None:
    link = tarfile.TarInfo("d/link")
    link.type, link.linkname = tarfile.SYMTYPE, "../x"
    directory = tarfile.TarInfo("d")
    directory.type, directory.mode = tarfile.DIRTYPE, 0o2755
    file = tarfile.TarInfo("d/f\udcff")
    file.uid, file.gid, file.mtime, file.mode = 5, 6, 7, 0o4755
    null = tarfile.TarInfo("null")
    null.type, null.devmajor, null.devminor = tarfile.CHRTYPE, 1, 3
    archive = tar(directory, file, link, null)
    for packed in (archive, gzip.compress(archive)):
        found = sent(packed)
        assert [entry.kind for entry, _ in found] == ["directory", "file", "symlink", "character"]
        assert found[0][0].mode == 0o2755
        made, content = found[1]
        assert (made.name, made.uid, made.gid, content) == (b"d/f\xff", 5, 6, b"abc")
        assert made.mtime_ns == 7_000_000_000
        assert found[2][0].link == b"../x"
        assert found[3][0].device == (1, 3)


def test_an_archive_that_is_none_is_refused() -> None:
    for data, words in ((b"x" * 1024, "not a tar"), (tar(tarfile.TarInfo("a"))[:514], "cut short")):
        with pytest.raises(LayerError, match=words):
            sent(data)


@given(st.binary(max_size=3000))
def test_any_bytes_are_entries_or_a_clear_refusal(data: bytes) -> None:
    try:
        sent(data)
    except InvalidInput as error:
        assert "\n" not in error.message


def test_a_tar_comes_out_behind_its_status(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box", Binds=["data:/data:ro"], ReadonlyRootfs=True)
        world.agent.archive_reply = head(stat=STAT) + b"tar" * 100_000
        parts = [part async for part in world.engine.copying.read("box", "/x")]
        assert parts[0] == PathStatus("x", 3, stat.S_IFREG | 0o644, 5, "")
        assert b"".join(part for part in parts[1:] if isinstance(part, bytes)) == b"tar" * 100_000
        asked = world.agent.asked("container.archive")[0]
        assert (asked["op"], asked["path"], asked["readonly"]) == ("read", "/x", True)
        assert [mount["source"] for mount in asked["mounts"]] == ["data"]
        assert "archive-path" in world.events()
        assert await world.engine.copying.status("box", "/x") == parts[0]

    play(tmp_path, scene)


def test_refusals_of_the_guest_are_docker_s_answers(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        for code, kind in (("not_found", NotFound), ("invalid", InvalidInput), ("x", LinkError)):
            world.agent.archive_reply = head(code=code, message="Could not find the file /x")
            with pytest.raises(kind, match="Could not find the file /x"):
                await world.engine.copying.status("box", "/x")
        for reply in (b"", b"\0\0\0\x02{", head(stat={}), b"\0\0\0\x02[]", b"\xff" * 9):
            world.agent.archive_reply = reply
            with pytest.raises(LinkError):
                await world.engine.copying.status("box", "/x")

    play(tmp_path, scene)


def test_an_archive_goes_in(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        config = {"Image": "busybox", "Cmd": ["true"], "User": "web"}
        await world.engine.containers.create("box", config, {})
        world.agent.archive_reply = head(count=1)
        archive = tar(tarfile.TarInfo("f"))
        write = world.engine.copying.write
        await write("box", "/tmp", chunks(archive), keep_kind=True, as_user=True)
        asked = world.agent.asked("container.archive")[0]
        assert (asked["op"], asked["keep_kind"], asked["user"]) == ("write", True, "web")
        assert [
            entry.name
            for entry, _ in received(bytes(world.agent.streams[asked["stream"]].received))
        ] == [b"f"]
        assert "extract-to-dir" in world.events()
        await write("box", "/tmp", chunks(archive), keep_kind=False, as_user=False)
        assert world.agent.asked("container.archive")[1]["user"] == ""

    play(tmp_path, scene)


def test_a_refusal_in_the_middle_ends_the_sending(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        world.agent.archive_waits = False
        world.agent.archive_reply = head(code="not_found", message="Could not find the file /tmp")

        def endless() -> Iterator[bytes]:
            info = tarfile.TarInfo("big")
            info.size = 1 << 40
            yield info.tobuf()
            while True:
                yield bytes(1 << 16)

        with pytest.raises(NotFound, match="in container box"):
            await world.engine.copying.write(
                "box", "/tmp", endless(), keep_kind=False, as_user=False
            )

    play(tmp_path, scene)


def test_a_damaged_archive_is_the_clients_fault_and_never_a_success(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        world.agent.archive_reply = head(count=1)
        with pytest.raises(LayerError, match="cut short"):
            await world.engine.copying.write(
                "box", "/", chunks(tar(tarfile.TarInfo("a"))[:514]), keep_kind=False, as_user=False
            )
        asked = world.agent.asked("container.archive")[0]
        assert not world.agent.streams[asked["stream"]].input_ended

    play(tmp_path, scene)


def test_a_stopped_container_is_not_started_or_removed_meanwhile(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        world.agent.archive_reply = head(stat=STAT) + b"tar"
        reading = world.engine.copying.read("box", "/x")
        await anext(reading)
        starting = asyncio.ensure_future(world.engine.containers.start("box"))
        await asyncio.sleep(0)
        assert not world.agent.asked("container.start")
        async for _ in reading:
            pass
        await starting
        assert world.engine.containers.get("box").running
        reading = world.engine.copying.read("box", "/x")
        await anext(reading)  # it runs: nobody waits
        world.agent.exit(world.engine.containers.get("box").id)
        await until(lambda: "die" in world.events(), "the exit")
        await asyncio.wait_for(world.engine.containers.start("box"), 5)
        async for _ in reading:
            pass

    play(tmp_path, scene)


def test_a_copy_that_stands_still_gives_way_to_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stillness, "PATIENCE", 0.02)

    async def scene(world: World) -> None:
        await world.create("box")
        world.agent.archive_reply = head(stat=STAT) + b"tar"
        reading = world.engine.copying.read("box", "/x")
        await anext(reading)  # and its client asks for nothing more
        await asyncio.wait_for(world.engine.containers.start("box"), 10)
        assert world.engine.containers.get("box").running
        with pytest.raises(LinkError, match="stood still"):
            async for _ in reading:
                pass
        assert not world.engine.containers._registry.find("box").lock.locked()

    play(tmp_path, scene)


def test_a_copy_that_goes_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stillness, "PATIENCE", 0.05)

    async def scene(world: World) -> None:
        await world.create("box")
        world.agent.archive_reply = head(stat=STAT)
        world.agent.archive_open = True
        reading = world.engine.copying.read("box", "/x")
        await anext(reading)
        starting = asyncio.ensure_future(world.engine.containers.start("box"))
        stream = world.agent.streams[world.agent.asked("container.archive")[0]["stream"]]
        for _ in range(10):
            stream.send(b"tar")
            assert await anext(reading) == b"tar"
            await asyncio.sleep(0.02)
        assert not starting.done()
        stream.finish()
        async for _ in reading:
            pass
        await starting

    play(tmp_path, scene)


def test_gos_modes_are_not_the_kernels() -> None:
    assert go_mode(stat.S_IFDIR | 0o1777) == 1 << 31 | 1 << 20 | 0o777
    assert go_mode(stat.S_IFREG | 0o4755) == 1 << 23 | 0o755
    assert go_mode(stat.S_IFCHR | 0o600) == 1 << 26 | 1 << 21 | 0o600
    fields = json.loads(base64.b64decode(status_header(PathStatus("n", 1, 0o100644, 10**18, "/t"))))
    assert fields == {
        "name": "n", "size": 1, "mode": 0o644, "mtime": "2001-09-09T01:46:40Z", "linkTarget": "/t",
    }  # fmt: skip
