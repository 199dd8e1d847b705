"""The power fails while a machine writes: what was acknowledged is there when it is back.

The state directory is an ext4 that stops at a random moment and loses what was not flushed. One
cut; with WHERRY_SOAK=1 thirty.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import fail_power, failing_disk, power_on
from faults import BUSYBOX, Ledger, container_state, new_home, qemu_of
from harness import Wherry
from soak_table import record
from waiting import eventually

from wherry.osutil import is_alive, kill

LONG = os.environ.get("WHERRY_SOAK") == "1"
ROUNDS = 30 if LONG else 1
START_SECONDS = 150.0

pytestmark = [
    pytest.mark.vm,
    pytest.mark.guest,
    pytest.mark.soak,
    pytest.mark.timeout(3600 if LONG else 300),
]


class Clerk:
    """Makes image tags, volumes and containers one after the other, and notes those that a command
    has acknowledged."""

    def __init__(self, wherry: Wherry, number: int) -> None:
        self.tags: list[str] = []
        self.volumes: list[str] = []
        self.containers: list[str] = []
        self._wherry = wherry
        self._number = number
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def ends(self) -> None:
        self._ends.set()
        self._thread.join(60)

    def _work(self) -> None:
        serial = 0
        while not self._ends.is_set():
            serial += 1
            name = f"n{self._number}-{serial}"
            for done, command in (
                (self.tags, ("tag", BUSYBOX, f"kept:{name}")),
                (self.volumes, ("volume", "create", name)),
                (self.containers, ("create", "--name", name, BUSYBOX, "true")),
            ):
                if self._wherry.run(*command).returncode:
                    return  # the power has failed
                done.append(name)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


@pytest.fixture
def wherry_on_disk(test_cache: Path, image: Path) -> Iterator[Wherry]:
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    with failing_disk(root, image, 2048):
        it = Wherry(new_home(root, test_cache))
        try:
            yield it
        finally:
            it.run("machine", "rm", "--force", timeout=60)
    root.rmdir()


def test_a_power_cut_loses_nothing_that_was_acknowledged(
    wherry_on_disk: Wherry, image: Path
) -> None:
    wherry = wherry_on_disk
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    print(f"seed {seed}")
    with Ledger(wherry, "ledger") as ledger:
        for number in range(ROUNDS):
            _round(wherry, image, ledger, number, moments.uniform(0.3, 3.0))
        record(
            "power cuts", ROUNDS, f"{ledger.check()} lines on the disk, none acknowledged is lost"
        )


def _round(wherry: Wherry, image: Path, ledger: Ledger, number: int, seconds: float) -> None:
    bystander = f"bystander-{number}"
    wherry.out("run", "-d", "--name", bystander, BUSYBOX, "sleep", "100000", timeout=START_SECONDS)
    clerk = Clerk(wherry, number)
    threading.Event().wait(seconds)
    cut(wherry, image, ledger, clerk)
    databases_are_sound(wherry)
    ledger.listen()
    wherry.out("machine", "start", timeout=START_SECONDS)
    ledger.goes_on(START_SECONDS)
    ledger.check()
    state = container_state(wherry, bystander)
    assert state["Status"] == "exited"
    assert "machine stopped" in str(state["Error"])
    there(clerk.tags, wherry.out("images", "--format", "{{.Tag}}"), "image tags")
    there(clerk.volumes, wherry.out("volume", "ls", "-q"), "volumes")
    there(clerk.containers, wherry.out("ps", "-a", "--format", "{{.Names}}"), "containers")
    if clerk.containers:
        assert wherry.run("start", "-a", clerk.containers[-1]).returncode == 0
    assert wherry.run("image", "verify").returncode == 0
    assert "EXT4-fs error" not in wherry.out("machine", "console")
    print(f"after {seconds:.2f} s: {ledger.heard} lines, {len(clerk.containers)} containers")


def there(wanted: list[str], listed: str, what: str) -> None:
    lost = set(wanted) - set(listed.split())
    assert not lost, f"{what} that were acknowledged are gone: {lost}"


def cut(wherry: Wherry, image: Path, ledger: Ledger, clerk: Clerk) -> None:
    """The power fails, also for clients, and comes back."""
    qemu, engine = qemu_of(wherry), wherry.engine_pid()
    fail_power(wherry.home.root)
    kill(qemu)
    subprocess.run(["kill", "-9", str(engine)], check=False)
    ledger.deafen()
    clerk.ends()
    eventually("QEMU is gone", lambda: not is_alive(qemu))
    power_on(wherry.home.root, image)


def databases_are_sound(wherry: Wherry) -> None:
    for path in (wherry.home.store_db, wherry.home.machine("default").state_db):
        connection = sqlite3.connect(path)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        finally:
            connection.close()
