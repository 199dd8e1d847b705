"""The image store under several processes: nothing that one of them needs is removed by another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_fakes import FakeImage, FakeRegistry, Handler, digest, running, tar_of

from wherry.images.auth import Credentials
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

ROOTS = os.pathsep.join(sys.path)
PROCESS_SECONDS = 60.0


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def process(home: Home, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A process in which `store` is the image store, `args` the arguments; it prints JSON."""
    script = (
        "import json, sys\n"
        "from wherry.images.auth import Credentials\n"
        "from wherry.images.store import ImageStore\n"
        "from wherry.paths import Home\n"
        "from wherry.settings import Settings\n"
        "from pathlib import Path\n"
        "args = sys.argv[2:]\n"
        "store = ImageStore(Home(Path(sys.argv[1])), Settings())\n" + code
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(home.root), *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOTS, "DOCKER_CONFIG": str(home.root / "none")},
    )


def finished(child: subprocess.Popen[bytes]) -> object:
    output, _ = child.communicate(timeout=PROCESS_SECONDS)
    assert child.returncode == 0
    return json.loads(output or b"null")


PULL = "image = store.pull(args[0], auth=Credentials())\nprint(json.dumps(image.id))"
PRUNE = (
    "for _ in range(30):\n"
    "    store.upkeep.prune(store.list(), lambda _: True, tagged=True)\n"
    "    store.upkeep.prune_blobs()\n"
    "print(json.dumps(len(store.list())))"
)


def test_a_running_pull_loses_nothing_to_prunes_of_another_process(
    registry: FakeRegistry, home: Home
) -> None:
    """The pull has finished one layer and waits for the other while everything is pruned."""
    fake = FakeImage([tar_of({"a": b"1" * 1000}), tar_of({"b": b"2" * 1000})])
    name = registry.add("a", "1", fake)
    asked, go_on = threading.Event(), threading.Event()

    def late(handler: Handler) -> bool:
        asked.set()
        assert go_on.wait(PROCESS_SECONDS), "the test did not go on"
        return False

    registry.fault(digest(fake.layers[1])[7:], late, times=1)
    pull = process(home, PULL, name)
    assert asked.wait(PROCESS_SECONDS), "the pull did not ask for its second layer"
    assert finished(process(home, PRUNE)) == 0
    go_on.set()
    assert finished(pull) == fake.id
    store = ImageStore(home, Settings())
    assert store.upkeep.verify().damages == ()
    assert registry.fetched()[digest(fake.layers[0])] == 1
    store.close()


def test_pulls_tags_holds_and_prunes_of_many_processes_end_whole(
    registry: FakeRegistry, home: Home
) -> None:
    base = tar_of({"base": b"0" * 2000})
    images = [FakeImage([base, tar_of({f"own{n}": b"1" * 500})]) for n in range(3)]
    names = [registry.add(f"image{n}", "1", it) for n, it in enumerate(images)]
    use = (
        "for number in range(6):\n"
        "    holder = f'container:{args[1]}:{number}'\n"
        "    try:\n"
        "        image = store.pull(args[0], auth=Credentials())\n"
        "        store.hold(holder, image)\n"
        "    except ImageNotFound:  # pruned between the pull's end and the hold: nobody used it\n"
        "        continue\n"
        "    assert len(store.layer_files(image)) == 2\n"
        "    for file in store.layer_files(image):\n"
        "        assert file.path.exists(), file\n"
        "    store.release(holder)\n"
        "print(json.dumps('well'))"
    )
    code = "from wherry.errors import ImageNotFound\n" + use
    children = [process(home, code, name, str(n)) for n, name in enumerate(names)]
    children += [process(home, PRUNE) for _ in range(2)]
    assert [finished(child) for child in children[:3]] == ["well"] * 3
    for child in children[3:]:
        finished(child)
    store = ImageStore(home, Settings())
    assert store.upkeep.verify().damages == ()
    for name in names:
        store.pull(name, auth=Credentials())
    assert store.upkeep.verify().damages == ()
    assert len(store.list()) == 3
    store.close()


def test_what_a_killed_process_left_is_swept(registry: FakeRegistry, home: Home) -> None:
    """Killed in the middle of an import, which has a directory of its own."""
    code = (
        "def endless():\n"
        "    yield bytes(512)\n"
        "    print('null', flush=True)\n"
        "    sys.stdin.read()\n"
        "store.archives.import_rootfs(endless())\n"
    )
    child = process(home, code)
    assert child.stdout is not None
    child.stdout.readline()
    store = ImageStore(home, Settings())
    assert list(home.ingest.glob("spool-*"))
    store.upkeep.prune([], lambda _: True, tagged=False)
    assert list(home.ingest.glob("spool-*")), "what is in work was swept"
    child.kill()
    child.communicate(timeout=PROCESS_SECONDS)
    store.upkeep.prune([], lambda _: True, tagged=False)
    assert not list(home.ingest.glob("spool-*"))
    store.close()
