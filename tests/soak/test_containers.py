"""Containers back to back, and many at once: nothing of them stays behind.

Thirty rounds; 500 with WHERRY_SOAK=1. The figures are the guest's own (`system.info`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Wherry
from waiting import eventually

from wherry.client import Client

pytestmark = [pytest.mark.vm, pytest.mark.soak]

BUSYBOX = "localhost/busybox"
SOAK = os.environ.get("WHERRY_SOAK") == "1"
ROUNDS = 500 if SOAK else 30
LOOKS = 30
"""So often the guest must look the same, 20 ms and more apart, to be at rest."""
AT_ONCE = 100 if SOAK else 25

OURS = ("agent", "pid1")

GROWTH = 2 << 20
"""Bytes that PID 1 and agent may grow by: Python's arenas fill up unevenly."""

PER_CONTAINER = 3 << 20
"""Bytes that an idle container may cost beyond its own process."""


@pytest.fixture
def client(wherry: Wherry) -> Iterator[Client]:
    wherry.run("machine", "start", check=True, timeout=120)
    it = Client(wherry.home, "default")
    yield it
    it.close()


def figures(client: Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.request("GET", "/wherry/v1/machine/guest").json()["figures"]
    return answer


def counts(client: Client) -> dict[str, int]:
    it = figures(client)
    return {
        "mounts": it["mounts"],
        "cgroups": it["cgroups"],
        "agent": it["agent"]["descriptors"],
        "pid1": it["pid1"]["descriptors"],
    }


def create(client: Client, *command: str, check: bool = False) -> str:
    body: dict[str, Any] = {"Image": BUSYBOX, "Cmd": list(command)}
    if check:
        body["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": 1_000_000_000}
    return str(client.request("POST", "/containers/create", body=body).json()["Id"])


def one(client: Client) -> None:
    """A container from its creation to its removal."""
    id = create(client, "sh", "-c", "echo out; exit 3", check=True)
    client.request("POST", f"/containers/{id}/start")
    answer = b"".join(client.stream("POST", f"/containers/{id}/wait"))
    assert b'"StatusCode": 3' in answer
    client.request("DELETE", f"/containers/{id}")


@pytest.mark.timeout(1800 if SOAK else 240)
def test_containers_back_to_back_leave_nothing_behind(client: Client) -> None:
    for _ in range(10):
        one(client)  # what is allocated once is allocated now
    at_rest(client)
    before, memory = counts(client), figures(client)
    for number in range(1, ROUNDS + 1):
        one(client)
        if number % 100 == 0 or number == ROUNDS:
            print(
                f"after {number}:",
                *(f"{who} {grown(client, memory, who) >> 10} KiB" for who in OURS),
            )
    settled(client, lambda: counts(client) == before)
    for who in OURS:
        more = grown(client, memory, who)
        assert more < GROWTH, f"{who} grew by {more} bytes in {ROUNDS} containers"


def grown(client: Client, before: dict[str, Any], who: str) -> int:
    """Bytes that one of ours has more than `before`.

    Not its share (PSS) of them: that falls whenever PID 1 has just forked.
    """
    return int(figures(client)[who]["rss_bytes"] - before[who]["rss_bytes"])


@pytest.mark.timeout(1800 if SOAK else 240)
def test_many_run_at_once_and_cost_little(client: Client) -> None:
    one(client)
    at_rest(client)
    before, memory = counts(client), figures(client)
    ids = [create(client, "sleep", "100000") for _ in range(AT_ONCE)]
    try:
        for id in ids:
            client.request("POST", f"/containers/{id}/start")
        running = client.request("GET", "/containers/json").json()
        assert {item["Id"] for item in running} >= set(ids)
        cost = sum(grown(client, memory, who) for who in OURS) / AT_ONCE
        print(f"{cost / 1024:.0f} KiB of agent and PID 1 for each of {AT_ONCE} idle containers")
        assert cost < PER_CONTAINER
        one(client)
    finally:
        for id in ids:
            client.request("DELETE", f"/containers/{id}", query={"force": True})
    settled(client, lambda: counts(client) == before)


def at_rest(client: Client) -> None:
    """Until nothing of what was removed is left, and what the next start finds ready is there."""
    latest: list[dict[str, int]] = []

    def unchanged() -> bool:
        latest.append(counts(client))
        return len(latest) > LOOKS and all(it == latest[-1] for it in latest[-LOOKS:])

    settled(client, lambda: True)
    eventually("the guest is at rest", unchanged, seconds=60)


def settled(client: Client, condition: Callable[[], bool]) -> None:
    """Removals go on after their answers: until the guest has none of ours, and `condition`."""

    def done() -> bool:
        return condition() and figures(client)["cgroups"] <= 2

    eventually("the guest has let go of what was removed", done, seconds=60)
