"""Files into and out of containers, and containers that would like them to go elsewhere."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest
from agent_machine import AgentMachine, agent_machine
from containers_harness import SPEC
from waiting import PATIENCE

from wherry.errors import AgentError
from wherry.link import StreamReset
from wherry_guest import entries
from wherry_guest.entries import END, Entry, encode

pytestmark = pytest.mark.guest

TIME = 1_500_000_001_123_456_789

Scenario = Callable[[AgentMachine], Coroutine[Any, Any, None]]


def drive(directory: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(110 * PATIENCE), agent_machine(directory) as machine:
            await scenario(machine)

    asyncio.run(main())


async def archive(
    machine: AgentMachine, op: str, path: str, data: bytes = b"", **options: Any
) -> tuple[dict[str, Any], bytes]:
    """(head, what follows it)."""
    stream = machine.link.open_stream()
    params = {"id": "c1", "layers": ["busybox"], "mounts": [], "op": op, "path": path}
    params |= {"stream": stream.id, **options}
    await machine.link.call("container.archive", params)

    async def feed() -> None:
        try:
            await stream.write(data)
            await stream.end()
        except StreamReset:
            pass

    feeding = asyncio.create_task(feed())
    answer = b""
    while piece := await stream.read():
        answer += piece
    feeding.cancel()
    length = int.from_bytes(answer[:4], "big")
    return json.loads(answer[4 : 4 + length]), answer[4 + length :]


async def read(machine: AgentMachine, path: str, **options: Any) -> dict[str, tarfile.TarInfo]:
    head, data = await archive(machine, "read", path, **options)
    assert "stat" in head, head
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar.getmembers()}


async def write(
    machine: AgentMachine, path: str, files: Iterable[tuple[Entry, bytes]], **options: Any
) -> dict[str, Any]:
    data = b"".join(encode(entry) + content for entry, content in files) + END
    head, _ = await archive(machine, "write", path, data, **options)
    return head


def file(name: str, content: bytes = b"new\n", **fields: Any) -> tuple[Entry, bytes]:
    return Entry(name.encode(), entries.FILE, size=len(content), **fields), content


def other(name: str, kind: str, **fields: Any) -> tuple[Entry, bytes]:
    return Entry(name.encode(), kind, **fields), b""


async def running(machine: AgentMachine, script: str = "", **options: Any) -> None:
    """Container c1, which has run `script` and goes on running."""
    spec = copy.deepcopy(SPEC)
    command = f"{script}\necho ready > /ready; exec sleep 1000"
    spec["process"]["args"] = ["sh", "-c", command]
    params = {"id": "c1", "spec": spec, "layers": ["busybox"], **options}
    await machine.link.call("container.start", params)
    async with asyncio.timeout(20 * PATIENCE):
        while "stat" not in (await archive(machine, "stat", "/ready"))[0]:
            await asyncio.sleep(0.02)


async def stopped(machine: AgentMachine) -> None:
    await machine.link.call("container.kill", {"id": "c1", "signal": 9})
    await machine.event("container.exit", id="c1")


def upper(tmp_path: Path) -> Path:
    return tmp_path / "data/containers/c1/upper"


@pytest.mark.parametrize("state", ["running", "stopped", "created"])
def test_files_go_in_and_come_out(tmp_path: Path, state: str) -> None:
    async def scenario(machine: AgentMachine) -> None:
        if state != "created":
            await running(machine)
        if state == "stopped":
            await stopped(machine)
        head = await write(
            machine,
            "/tmp",
            [
                other("d", entries.DIRECTORY, mode=0o2750, uid=5, gid=6, mtime_ns=10**18),
                file(
                    "d/a", b"hello", mode=0o4755, uid=7, gid=8, mtime_ns=1_500_000_001_123_456_789
                ),
                other("d/link", entries.SYMLINK, link=b"../../etc/passwd"),
                other("d/hard", entries.LINK, link=b"d/a"),
                other("d/pipe", entries.FIFO, mode=0o622),
                other("d/null", entries.CHARACTER, mode=0o666, device=(1, 3)),
                file("made/on/the/way", b"x"),
            ],
        )
        assert head == {"count": 7}
        head, data = await archive(machine, "read", "/tmp/d")
        assert (head["stat"]["name"], stat.S_IMODE(head["stat"]["mode"])) == ("d", 0o2750)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: member for member in tar.getmembers()}
            content = tar.extractfile("d/a")
            assert content is not None and content.read() == b"hello"
        assert list(members) == ["d", "d/a", "d/hard", "d/link", "d/null", "d/pipe"]
        assert (members["d"].uid, members["d"].gid, members["d"].mtime) == (5, 6, 10**9)
        assert (members["d/a"].mode, members["d/a"].uid) == (0o4755, 7)
        assert members["d/hard"].linkname == "d/a"
        assert members["d/link"].linkname == "../../etc/passwd"
        assert members["d/pipe"].isfifo() and members["d/null"].ischr()
        assert (upper(tmp_path) / "tmp/made/on/the/way").read_bytes() == b"x"
        assert (upper(tmp_path) / "tmp/d/a").stat().st_mtime_ns == TIME

    drive(tmp_path, scenario)


def test_paths_mean_what_they_mean_to_docker(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine, "mkdir -p /x/y; ln -s /x /to-x; ln -s /x/f /to-f; echo f > /x/f")
        head, _ = await archive(machine, "stat", "/to-x")
        assert stat.S_ISLNK(head["stat"]["mode"])
        assert (head["stat"]["name"], head["stat"]["link_target"]) == ("to-x", "/x")
        for path in ("/to-x/", "/to-x/.", "to-x/"):
            head, _ = await archive(machine, "stat", path)
            assert stat.S_ISDIR(head["stat"]["mode"]), path
        assert list(await read(machine, "/to-x")) == ["to-x"]
        assert list(await read(machine, "/to-x/")) == ["to-x", "to-x/f", "to-x/y"]
        assert list(await read(machine, "/to-x/.")) == [".", "./f", "./y"]
        assert list(await read(machine, "/x/../to-x/f")) == ["f"]
        names = list(await read(machine, "/"))
        assert ("/etc/passwd" in names and "/proc/1" not in names) or "/proc" in names
        for path, code in (("/nope", "not_found"), ("/nope/x", "not_found"), ("/x/f/", "invalid")):
            head, _ = await archive(machine, "stat", path)
            assert head["code"] == code, path
        assert (
            "Could not find the file /nope"
            in (await archive(machine, "stat", "/nope"))[0]["message"]
        )

    drive(tmp_path, scenario)


def test_what_is_in_the_way_is_replaced_unless_kinds_are_to_be_kept(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine, "mkdir -p /d/full/of/things; echo old > /d/f; ln -s /etc /d/l")
        for entry in (file("full"), other("f", entries.DIRECTORY)):
            head = await write(machine, "/d", [entry], keep_kind=True)
            assert "cannot overwrite" in head["message"], head
        assert await write(machine, "/d", [file("full"), file("f"), file("l")]) == {"count": 3}
        assert (upper(tmp_path) / "d/full").read_bytes() == b"new\n"
        assert not (upper(tmp_path) / "d/l").is_symlink()
        assert not (upper(tmp_path) / "etc/passwd").exists()  # the link was replaced, not followed
        assert await write(machine, "/d", [other("f", entries.DIRECTORY)]) == {"count": 1}

    drive(tmp_path, scenario)


def test_owners_may_be_the_containers_user(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine)
        await write(machine, "/tmp", [file("a", uid=5, gid=5)], user="web")
        await write(machine, "/tmp", [file("b", uid=5, gid=5)], user="0:staff")
        members = await read(machine, "/tmp")
        assert (members["tmp/a"].uid, members["tmp/a"].gid) == (1000, 1000)
        assert (members["tmp/b"].uid, members["tmp/b"].gid) == (0, 50)
        head = await write(machine, "/tmp", [file("a")], user="nobody-here")
        assert "unable to find user nobody-here" in head["message"]

    drive(tmp_path, scenario)


def test_what_is_mounted_can_be_overwritten_and_read_only_places_not(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine, files={"hosts": "old\n"})
        assert await write(machine, "/etc", [file("hosts", b"mine\n")]) == {"count": 1}
        assert (tmp_path / "run/c/c1/hosts").read_bytes() == b"mine\n"
        await stopped(machine)
        head = await write(machine, "/tmp", [file("x")], readonly=True)
        assert head == {"code": "invalid", "message": "container rootfs is marked read-only"}
        for content in (b"x", bytes(4_000_000)):
            head = await write(machine, "/etc/passwd", [file("x", content)])
            assert head["message"] == "extraction point is not a directory"

    drive(tmp_path, scenario)


def test_volumes_of_a_stopped_container_are_there(tmp_path: Path) -> None:
    mount = {"destination": "/etc", "type": "volume", "source": "v1", "options": ["copyup"]}
    place = {"destination": "/new/place", "type": "volume", "source": "v2", "options": ["ro"]}

    async def scenario(machine: AgentMachine) -> None:
        mounts = {"mounts": [mount, place]}
        assert await write(machine, "/etc", [file("x")], **mounts) == {"count": 1}
        data = tmp_path / "data/volumes/v1/_data"
        assert (data / "x").exists() and (data / "passwd").exists()
        assert not (upper(tmp_path) / "etc/x").exists()
        head = await write(machine, "/new/place", [file("x")], **mounts)
        assert head["message"] == "mounted volume is marked read-only"

    drive(tmp_path, scenario)


def test_sparse_files_and_attributes(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        sparse = Entry(
            b"sparse", entries.FILE, size=1 << 30, segments=((4096, 4), ((1 << 30) - 10, 4)),
            xattrs=((b"user.note", b"\x00\xff"), (b"trusted.overlay.opaque", b"y")),
        )  # fmt: skip
        assert await write(machine, "/tmp", [(sparse, b"abcdefgh")]) == {"count": 1}
        made = upper(tmp_path) / "tmp/sparse"
        assert made.stat().st_size == 1 << 30 and made.stat().st_blocks < 100
        assert os.getxattr(made, "user.note") == b"\x00\xff"
        assert "trusted.overlay.opaque" not in os.listxattr(made)
        with made.open("rb") as contents:
            contents.seek(4096)
            assert contents.read(4) == b"abcd"

    drive(tmp_path, scenario)


# Hostile containers and archives.


@pytest.mark.parametrize("name", ["../../x", "a/../../x", "..", "/../x"])
def test_names_that_lead_out_of_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    async def scenario(machine: AgentMachine) -> None:
        head = await write(machine, "/tmp/", [other("", entries.DIRECTORY), file(name)])
        if name.startswith("/"):
            assert (upper(tmp_path) / "tmp/x").exists() or head["code"] == "invalid"
        else:
            assert "outside of the directory" in head["message"], head
        head = await write(machine, "/tmp", [other("l", entries.LINK, link=b"../etc/passwd")])
        assert "outside of the directory" in head["message"], head

    drive(tmp_path, scenario)


LEADS = ["/proc/1/root", "../../../../../../../..", "/proc/self/root", "/proc/self/cwd/../.."]


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_no_link_leads_out_of_the_container(tmp_path: Path, lead: str, state: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "secret").write_text("secret\n")

    async def scenario(machine: AgentMachine) -> None:
        await running(machine, f"rm -rf /etc; ln -s {lead}{outside} /etc; ln -s {lead} /out")
        if state == "stopped":
            await stopped(machine)
        for path in ("/etc/secret", "/etc/", f"/out{outside}/secret", f"/out{outside}/"):
            head, data = await archive(machine, "read", path)
            assert b"secret\n" not in data and "stat" not in head, (path, head)
        for path in ("/etc", f"/out{outside}", "/"):
            names = ["evil", f"out{outside}/evil", "etc/evil"]
            await write(machine, path, [file(name) for name in names])
            assert [item.name for item in outside.iterdir()] == ["secret"]

    drive(tmp_path, scenario)


def test_an_archive_cannot_go_out_through_a_link_that_it_brings(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    async def scenario(machine: AgentMachine) -> None:
        await running(machine)
        link = f"../../../../../../../..{outside}".encode()
        for target in (link, str(outside).encode(), b"/proc/1/root" + str(outside).encode()):
            await write(machine, "/tmp", [other("l", entries.SYMLINK, link=target), file("l/evil")])
            assert list(outside.iterdir()) == []

    drive(tmp_path, scenario)


def test_a_container_that_swaps_directories_for_links_all_the_time(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    swap = (
        f"mkdir -p /d/real /d/x{outside}; echo inside > /d/real/secret; "
        f"(while :; do rm -rf /d/t; cp -r /d/real /d/t; rm -rf /d/t; "
        f"ln -s ../../../../../../..{outside} /d/t; done) 2>/dev/null &"
    )

    async def scenario(machine: AgentMachine) -> None:
        await running(machine, swap)
        for count in range(40):
            try:
                _, data = await archive(machine, "read", "/d")
                assert b"secret\n" not in data.replace(b"inside", b"")
                _, data = await archive(machine, "read", "/d/t/secret")
                assert b"secret\n" not in data
            except StreamReset:
                pass  # something was gone in the middle of it: refused, and nothing told
            try:
                await write(machine, "/d", [file("t/evil", b"x" * count), file("t/secret")])
            except StreamReset:
                pass
            assert [item.name for item in outside.iterdir()] == ["secret"]
            assert (outside / "secret").read_text() == "secret\n"

    drive(tmp_path, scenario)


def test_devices_and_pipes_are_neither_opened_nor_waited_for(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine, "mkdir /n; mkfifo /n/pipe; mknod /n/full c 1 7; mknod /n/zero c 1 5")
        members = await read(machine, "/n")
        assert members["n/pipe"].isfifo() and members["n/zero"].ischr()
        swap = "(while :; do rm -f /n/s; mkfifo /n/s; rm -f /n/s; echo x > /n/s; done) &"
        await machine.start("c2", "true")
        await machine.exec("c1", "e1", "sh", "-c", swap)
        for _ in range(30):
            try:
                await read(machine, "/n")
            except StreamReset:
                pass

    drive(tmp_path, scenario)


def test_an_archive_that_is_cut_short_is_no_success(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine)
        entry, content = file("a", b"x" * 1000)
        for data in (encode(entry) + content, encode(entry) + content[:10], b"\0\0", b"\xff" * 8):
            try:
                head, _ = await archive(machine, "write", "/tmp", data)
            except StreamReset as error:
                assert "cut short" in error.reason
            else:
                assert "too long" in head["message"]

    drive(tmp_path, scenario)


def test_removal_ends_what_goes_on(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine)
        await stopped(machine)
        stream = machine.link.open_stream()
        params = {"id": "c1", "layers": ["busybox"], "mounts": [], "op": "write", "path": "/tmp"}
        await machine.link.call("container.archive", {**params, "stream": stream.id})
        with pytest.raises(AgentError, match="files of container c1 are being copied"):
            await machine.start("c1", "true")
        await machine.link.call("container.remove", {"id": "c1"})
        with pytest.raises(StreamReset, match="removed"):
            while await stream.read():
                pass
        async with asyncio.timeout(20 * PATIENCE):
            while True:
                try:
                    await machine.start("c1", "true")
                    break
                except AgentError:  # its last process is being reaped
                    await asyncio.sleep(0.01)

    drive(tmp_path, scenario)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_start_waits_for_the_end_of_an_abandoned_copy(tmp_path: Path, operation: str) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await running(machine, "dd if=/dev/zero of=/big bs=1M count=8")
        await stopped(machine)
        stream = machine.link.open_stream()
        params = {"id": "c1", "layers": ["busybox"], "mounts": [], "op": operation, "path": "/"}
        await machine.link.call("container.archive", {**params, "stream": stream.id})
        if operation == "read":
            await stream.read()  # the rest does not fit into what is on its way
        stream.reset("the client is gone")
        await machine.start("c1", "true")

    drive(tmp_path, scenario)
