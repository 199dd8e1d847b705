"""The agent's small parts: ids, parameters, archives, superblocks, promises, the trash."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest import identity
from wherry_guest.agent import bytecode, cpio, disk, oom, scsi
from wherry_guest.agent.calls import Params
from wherry_guest.agent.container import read_exit_code
from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.replace import unpack
from wherry_guest.agent.tasks import Promise, run
from wherry_guest.agent.trash import Trash
from wherry_guest.channel import CallError
from wherry_guest.loop import Loop

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}(/[a-z][a-z0-9_]{0,8}){0,3}", fullmatch=True)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        ".hidden",
        "-rf",
        "a\0b",
        "a\n",
        "ü",
        "a" * 129,
        7,
        None,
    ],
)
def test_id_that_is_no_name_is_invalid(hostile: object) -> None:
    assert not is_safe_name(hostile)
    with pytest.raises(CallError) as caught:
        Params({"id": hostile}).identifier("id")
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("good", ["a", "0" * 64, "web_1.2-x", "A"])
def test_docker_names_are_ids(good: str) -> None:
    assert Params({"id": good}).identifier("id") == good


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "number is missing"),
        ({"number": "1"}, "number must be of type int"),
        ({"number": True}, "number must be of type int"),
    ],
)
def test_wrong_parameter_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(CallError, match=message):
        Params(values).number("number")


def test_list_parameter_checks_its_items() -> None:
    assert Params({"luns": [1, 2]}).items("luns", int) == [1, 2]
    with pytest.raises(CallError, match="luns must hold ints only"):
        Params({"luns": [1, True]}).items("luns", int)


@given(st.dictionaries(names, st.binary(max_size=50), max_size=6))
def test_cpio_gives_back_what_was_packed(files: dict[str, bytes]) -> None:
    assert list(cpio.unpack(cpio.pack(files.items()))) == list(files.items())


@given(st.binary(max_size=300))
def test_garbage_is_no_cpio(data: bytes) -> None:
    with pytest.raises(cpio.CpioError):
        list(cpio.unpack(data))


@given(st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=3), st.data())
def test_cut_cpio_is_refused(files: dict[str, bytes], data: st.DataObject) -> None:
    archive = cpio.pack(files.items())
    end = archive.rindex(b"TRAILER!!!")
    cut = data.draw(st.integers(0, end - 1))
    with pytest.raises(cpio.CpioError):
        list(cpio.unpack(archive[:cut]))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_cpio_that_leaves_its_directory_is_refused(name: str) -> None:
    with pytest.raises(cpio.CpioError, match="not a relative name"):
        list(cpio.unpack(cpio.pack([(name, b"")])))


@pytest.mark.parametrize("name", ["wherry_guest/.ssh/x", "usr/wherry_guest/-x.py"])
def test_agent_archive_with_odd_names_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(cpio.CpioError, match="no file of wherry_guest"):
        unpack(cpio.pack([(name, b"")]), tmp_path)


def test_agent_is_taken_out_of_a_boot_archive(tmp_path: Path) -> None:
    files = [("init", b"#!"), ("etc/passwd", b""), ("usr/lib/wherry/wherry_guest/init.py", b"1")]
    unpack(cpio.pack(files), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        tmp_path / "wherry_guest" / "init.py"
    ]


def test_unpacked_agent_has_the_digest_of_the_packed_one(tmp_path: Path) -> None:
    parent = identity.package_parent()
    sources = sorted((parent / "wherry_guest").rglob("*.py"))
    archive = cpio.pack(
        (path.relative_to(parent).as_posix(), path.read_bytes()) for path in sources
    )
    unpack(archive, tmp_path)
    assert identity.digest(tmp_path) == identity.digest()
    (tmp_path / "wherry_guest" / "wire.py").write_bytes(b"")
    assert identity.digest(tmp_path) != identity.digest()


def test_byte_code_runs_without_its_source_being_looked_at(tmp_path: Path) -> None:
    source = tmp_path / "greeting.py"
    source.write_text("TEXT = 'compiled'\n")
    files = dict(cpio.unpack(bytecode.archive([source])))
    (name,) = files
    assert (
        name
        == str(tmp_path / "__pycache__").lstrip("/")
        + f"/greeting.{sys.implementation.cache_tag}.pyc"
    )
    marshal.loads(files[name][16:])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / Path(name).name).write_bytes(files[name])
    source.write_text("TEXT = 'changed'\n")
    shown = subprocess.run(
        [sys.executable, "-c", "import greeting; print(greeting.TEXT)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "compiled"


def test_loaded_modules_are_found_with_the_whole_package() -> None:
    package = identity.package_parent() / "wherry_guest"
    found = bytecode.loaded_sources(also=package)
    assert {package / "wire.py", package / "agent" / "power.py"} <= found
    assert any(path.name == "selectors.py" for path in found)


def test_erofs_uuid_stands_behind_the_magic() -> None:
    uuid = bytes(range(16))
    block = bytearray(4096)
    assert scsi.erofs_uuid(bytes(block)) is None
    block[1024:1028] = scsi.EROFS_MAGIC.to_bytes(4, "little")
    block[1024 + 48 : 1024 + 64] = uuid
    assert scsi.erofs_uuid(bytes(block)) == uuid.hex()


@pytest.mark.parametrize(
    ("state", "incompatible", "clean"),
    [(1, 0, True), (0, 0, False), (3, 0, False), (1, 4, False), (1, 0x2C2, True)],
)
def test_ext4_superblock_says_whether_it_is_clean(
    state: int, incompatible: int, clean: bool
) -> None:
    start = bytearray(4096)
    assert not disk.is_ext4(bytes(start))
    start[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
    start[1024 + 0x3A : 1024 + 0x3C] = state.to_bytes(2, "little")
    start[1024 + 0x60 : 1024 + 0x64] = incompatible.to_bytes(4, "little")
    assert disk.is_ext4(bytes(start))
    assert disk.is_clean(bytes(start)) is clean


def test_disk_is_found_by_the_20_bytes_that_virtio_shows(tmp_path: Path) -> None:
    for name, serial in (("vda", "other"), ("vdb", "wherry-data-0123456789"[:20])):
        (tmp_path / "block" / name).mkdir(parents=True)
        (tmp_path / "block" / name / "serial").write_text(serial)
    assert disk.find_disk("wherry-data-0123456789", tmp_path) == "vdb"
    assert disk.find_disk("missing", tmp_path) is None


def test_scsi_host_is_the_virtio_one(tmp_path: Path) -> None:
    for name, driver in (("host0", "ata_piix"), ("host3", "virtio_scsi")):
        (tmp_path / "class/scsi_host" / name).mkdir(parents=True)
        (tmp_path / "class/scsi_host" / name / "proc_name").write_text(driver + "\n")
    host = scsi.ScsiHost.find(tmp_path)
    assert host is not None
    assert host.number == 3
    assert host.disk(5) is None
    host.scan(5)
    assert (tmp_path / "class/scsi_host/host3/scan").read_text() == "0 0 5"
    (tmp_path / "bus/scsi/devices/3:0:0:5/block/sdb").mkdir(parents=True)
    assert host.disk(5) == "sdb"
    assert host.delete(6) is True


@pytest.mark.skipif(sys.platform == "win32", reason="wait statuses")
@pytest.mark.parametrize(
    ("status", "answer"), [(0, (0, None)), (3 << 8, (3, None)), (9, (137, 9)), (15, (143, 15))]
)
def test_exit_code_is_dockers(status: int, answer: tuple[int, int | None]) -> None:
    assert read_exit_code(status) == answer


def test_oom_kills_are_counted_in_memory_events(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert oom.oom_kills(events) == 0
    events.write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert oom.oom_kills(events) == 1


def test_coroutine_goes_on_where_its_promise_is_settled() -> None:
    promise: Promise[int] = Promise()
    steps: list[str] = []

    async def work() -> str:
        steps.append("began")
        value = await promise
        steps.append(f"got {value}")
        return "done"

    done = run(work())
    assert steps == ["began"]
    assert not done.settled
    promise.resolve(7)
    assert steps == ["began", "got 7"]
    assert done.result() == "done"


def test_rejection_is_raised_where_it_is_awaited() -> None:
    promise: Promise[int] = Promise()

    async def work() -> int:
        try:
            return await promise
        except OSError:
            return -1

    done = run(work())
    promise.reject(OSError("no"))
    promise.resolve(1)
    assert done.result() == -1


def run_until_idle(loop: Loop, rounds: int = 5000) -> None:
    for _ in range(rounds):
        if not loop._soon and not loop._timers:
            return
        loop._round()
    raise AssertionError("the loop still has work")


@pytest.mark.skipif(sys.platform == "win32", reason="paths that no process could name")
def test_trash_deletes_what_is_too_deep_to_name_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "link").symlink_to(outside)
    here = Path.cwd()
    os.chdir(victim)
    try:
        for _ in range(300):
            Path("d" * 20).mkdir()
            Path("d" * 20, "file").touch()
            os.chdir("d" * 20)
    finally:
        os.chdir(here)
    loop = Loop()
    trash = Trash(loop, tmp_path / "trash")
    trash.take(victim)
    assert not victim.exists()
    run_until_idle(loop)
    assert list((tmp_path / "trash").iterdir()) == []
    assert (outside / "precious").read_text() == "stays"
    trash.take(tmp_path / "never-there")
    loop.close()


def test_trash_goes_on_with_what_an_earlier_agent_left(tmp_path: Path) -> None:
    (tmp_path / "trash" / "1" / "inner").mkdir(parents=True)
    (tmp_path / "trash" / "1" / "file").touch()
    loop = Loop()
    Trash(loop, tmp_path / "trash").empty()
    run_until_idle(loop)
    assert list((tmp_path / "trash").iterdir()) == []
    loop.close()
