"""The state directory takes nothing: what can be read is, room can be made, all else is one line.

No engine runs when a command comes, and no machine either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import memory_disk, resize
from harness import Wherry
from image_fakes import FakeImage, gz, tar_of, write_layout
from waiting import eventually

from wherry.client import Client
from wherry.doctor import host, processes, storage
from wherry.doctor.finding import Context, Status
from wherry.images.store import ImageStore
from wherry.osutil import lock_file, reserve
from wherry.paths import Home
from wherry.settings import Settings

pytestmark = pytest.mark.guest

SIZE = 40
"""MiB of the disk."""
LAYER = 3 << 20
IMAGE = "example.org/big:1"


@pytest.fixture
def wherry() -> Iterator[Wherry]:
    """A small disk with an image, two containers of it and a volume; no engine."""
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    with memory_disk(root, SIZE):
        it = Wherry(Home(root / "home"))
        fill_store(it.home)
        it.out("ps")  # an engine is there
        client = Client(it.home, "default")
        for name in ("one", "two"):
            client.request(
                "POST", "/containers/create", query={"name": name}, body={"Image": IMAGE}
            )
        client.request("POST", "/volumes/create", body={"Name": "vol"})
        client.close()
        end_engine(it)
        yield it
        subprocess.run(["mount", "-o", "remount,rw", root], check=True)
        resize(root, SIZE)
        end_engine(it)
    root.rmdir()


def fill_store(home: Home) -> None:
    fake = FakeImage([tar_of({"file": os.urandom(LAYER)})], compress=gz)
    with tempfile.TemporaryDirectory() as directory:
        write_layout(Path(directory, "layout"), fake)
        store = ImageStore(home, Settings())
        try:
            store.import_layout(Path(directory, "layout"), IMAGE)
        finally:
            store.close()


def end_engine(it: Wherry) -> None:
    client = Client(it.home, "default")
    if client.running():
        client.request("POST", "/wherry/v1/engine/stop")
    client.close()
    with lock_file(client.paths.engine_lock, timeout=30):
        pass


def fill(directory: Path) -> None:
    """Nothing is free any more."""
    with (directory / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    assert shutil.disk_usage(directory).free == 0


def reads_answer(it: Wherry) -> None:
    """A command starts an engine, this process is another client of it."""
    assert sorted(it.out("ps", "-a", "--format", "{{.Names}}").split()) == ["one", "two"]
    client = Client(it.home, "default")
    for path in ("/containers/one/json", f"/images/{IMAGE}/history", "/volumes/vol", "/version"):
        assert client.request("GET", path).status == 200
    client.close()


def one_line(it: Wherry, *command: str) -> str:
    """What a command says that cannot work: one line, and what to do."""
    done = it.run(*command)
    assert done.returncode != 0
    said = done.stderr.decode()
    assert "Traceback" not in said
    message, hint = said.splitlines()[-2:]
    assert message.startswith("wherry: ")
    assert hint.startswith("hint: "), said
    return hint


def doctor_blames_only_the_disk(it: Wherry) -> None:
    context = Context(it.home, Settings(), ("default",))
    found = [*host.state_directory(context), *storage.databases(context), *storage.images(context)]
    found += processes.engines(context)
    blamed = {finding.name for finding in found if finding.status is Status.FAIL}
    assert blamed <= {"state-directory"}, found


def test_a_full_disk_is_read_and_what_is_deleted_makes_room(wherry: Wherry) -> None:
    assert (wherry.home.root / reserve.NAME).exists()
    fill(wherry.home.root)
    reads_answer(wherry)
    doctor_blames_only_the_disk(wherry)
    wherry.out("rm", "one", "two")
    wherry.out("volume", "rm", "vol")
    wherry.out("image", "rm", IMAGE)
    assert shutil.disk_usage(wherry.home.root).free > LAYER


def test_with_no_room_at_all_an_image_goes_before_that_is_noted(wherry: Wherry) -> None:
    wherry.out("rm", "one", "two")
    end_engine(wherry)
    for directory in (wherry.home.root, wherry.home.machine("default").root):
        (directory / reserve.NAME).unlink()
    fill(wherry.home.root)
    assert "example.org/big" in wherry.out("images")
    assert "the disk is full" in one_line(wherry, "volume", "create", "other")
    doctor_blames_only_the_disk(wherry)
    wherry.out("image", "rm", IMAGE)
    assert shutil.disk_usage(wherry.home.root).free > LAYER
    assert wherry.out("images", "-q") == ""
    wherry.out("volume", "create", "other")


def test_a_directory_that_is_read_only_is_read(wherry: Wherry) -> None:
    mount = ["mount", "-o", "remount,ro", wherry.home.root.parent]

    def is_read_only() -> bool:
        return not subprocess.run(mount, capture_output=True, check=False).returncode

    eventually("nobody writes any more", is_read_only)
    assert sorted(wherry.out("ps", "-a", "--format", "{{.Names}}").split()) == ["one", "two"]
    for command in (["images"], ["inspect", "one"], ["system", "df"], ["machine", "ls"]):
        assert wherry.out(*command)
    doctor_blames_only_the_disk(wherry)
    for command in (
        ["rm", "one"], ["tag", IMAGE, "other"], ["machine", "start"], ["machine", "create", "dev"],
        ["machine", "rm", "-f"],
    ):  # fmt: skip
        assert "it cannot be written to" in one_line(wherry, *command), command
