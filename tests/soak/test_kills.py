"""Whatever is killed with SIGKILL, at a random moment, while commands are under way: nothing that
was acknowledged is lost, every container's status is true, and no command is stuck.

One round for each victim; with WHERRY_SOAK=1 forty.
"""

from __future__ import annotations

import os
import random
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from faults import (
    AGENT,
    BUSYBOX,
    CRADLE,
    Ledger,
    container_state,
    kill_command,
    kill_container,
    kill_in_guest,
    kill_qemu,
)
from harness import Wherry
from soak_table import record
from waiting import eventually

LONG = os.environ.get("WHERRY_SOAK") == "1"
ROUNDS = 40 if LONG else 1
STUCK_SECONDS = 90.0
"""No command may take so long, whatever dies under it."""

pytestmark = [pytest.mark.vm, pytest.mark.soak, pytest.mark.timeout(3600 if LONG else 240)]

Command = subprocess.Popen[bytes]
Victim = Callable[[Wherry, Ledger, Command], None]

VICTIMS: dict[str, Victim] = {
    "engine": lambda wherry, _ledger, _command: wherry.kill_engine(),
    "agent": lambda wherry, _ledger, _command: kill_in_guest(wherry, AGENT),
    "cradle": lambda wherry, _ledger, _command: kill_in_guest(wherry, CRADLE),
    "container": lambda wherry, ledger, _command: kill_container(wherry, ledger.name),
    "command": lambda _wherry, _ledger, command: kill_command(command),
    "qemu": lambda wherry, _ledger, _command: kill_qemu(wherry),
}


@pytest.fixture(scope="module")
def ledger(wherry: Wherry) -> Iterator[Ledger]:
    with Ledger(wherry, f"ledger-{uuid.uuid4().hex[:8]}") as it:
        yield it


@pytest.fixture(scope="module")
def bystander(wherry: Wherry) -> Iterator[str]:
    """A container without a restart policy."""
    name = f"bystander-{uuid.uuid4().hex[:8]}"
    wherry.out("run", "-d", "--name", name, BUSYBOX, "sleep", "100000", timeout=STUCK_SECONDS)
    yield name
    wherry.run("rm", "--force", name)


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_loses_nothing_that_was_acknowledged(
    wherry: Wherry, ledger: Ledger, bystander: str, victim: str
) -> None:
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(ROUNDS):
        _round(wherry, ledger, bystander, victim, moments)
    record(
        f"kill -9: {victim}",
        ROUNDS,
        f"{ledger.check()} lines on the disk, none acknowledged is lost",
    )


def _round(
    wherry: Wherry, ledger: Ledger, bystander: str, victim: str, moments: random.Random
) -> None:
    before = container_state(wherry, bystander)
    brief = f"brief-{uuid.uuid4().hex[:8]}"
    commands = [
        wherry.popen("run", "--rm", "--name", brief, BUSYBOX, "sh", "-c", "sleep 0.2; echo done"),
        wherry.popen("exec", ledger.name, "sleep", "0.2"),
        wherry.popen("stats", "--no-stream"),
    ]
    try:
        with suppress(subprocess.TimeoutExpired):
            commands[0].wait(moments.uniform(0, 0.8))
        VICTIMS[victim](wherry, ledger, moments.choice(commands))
        for command in commands:
            command.communicate(timeout=STUCK_SECONDS)
    finally:
        for command in commands:
            kill_command(command)
            command.communicate()
    if victim == "qemu":
        wherry.out("machine", "start", timeout=STUCK_SECONDS)
    ledger.goes_on()
    ledger.check()
    after = container_state(wherry, bystander)
    if victim == "qemu":
        assert after["Status"] == "exited"
        assert "machine" in str(after["Error"])
        wherry.out("start", bystander)
    else:
        assert after == before
        assert wherry.out("exec", bystander, "echo", "here") == "here"

    def gone() -> bool:
        listed = wherry.out("ps", "-a", "--filter", f"name={brief}", "--format", "{{.State}}")
        # A command that dies between create and start leaves what it has created, as with docker.
        return listed in ("", "created")

    eventually("the brief container is gone", gone)
    wherry.run("rm", "--force", brief)
