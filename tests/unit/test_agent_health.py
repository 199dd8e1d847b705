"""Health checks: when they run, and what their results make of a container. A fake clock."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fake_loop import FakeLoop

from wherry_guest.agent.health import KEEP_RESULTS, Check, Health, Monitor, Result
from wherry_guest.agent.probes import go_duration
from wherry_guest.channel import CallError


class Watched:
    """A monitored container: probes wait here for the results that a test gives them."""

    def __init__(self, **check: float) -> None:
        self.loop = FakeLoop()
        self.check = Check({}, **check)  # type: ignore[arg-type]  # retries is a float here
        self.health = Health()
        self.probes: list[tuple[float, Callable[[int, str], None]]] = []
        self.changes: list[str] = []
        self.reply: int | None = None
        self.start = self.loop.now
        self.monitor = Monitor(
            self.loop, self.check, self.health, 0.0, self._probe, self._on_result
        )

    def _probe(self, answer: Callable[[int, str], None]) -> None:
        self.probes.append((round(self.loop.now - self.start, 3), answer))
        if self.reply is not None:
            answer(self.reply, "")

    def _on_result(self, changed: bool) -> None:
        if changed:
            self.changes.append(self.health.status)

    def answer(self, code: int, output: str = "") -> None:
        self.probes[-1][1](code, output)

    def times(self) -> list[float]:
        return [when for when, _ in self.probes]

    def run(self, seconds: float, code: int) -> None:
        """Let time pass; each probe ends at once with `code`."""
        self.reply = code
        self.loop.advance(seconds)


def test_first_probe_comes_after_the_interval_and_the_next_after_the_result() -> None:
    it = Watched(interval=10)
    it.loop.advance(9.9)
    assert it.times() == []
    it.loop.advance(0.1)
    assert it.times() == [10]
    it.loop.advance(100)
    assert it.times() == [10], "a second probe began before the first one ended"
    it.answer(0)
    it.loop.advance(10)
    assert it.times() == [10, 120]


def test_one_success_is_healthy_and_retries_failures_are_unhealthy() -> None:
    it = Watched(interval=1, retries=3)
    it.run(1, 0)
    assert it.health.status == "healthy"
    it.run(2, 1)
    assert it.health.status == "healthy"
    assert it.health.failing_streak == 2
    it.run(1, 1)
    assert it.health.status == "unhealthy"
    it.run(1, 0)
    assert (it.health.status, it.health.failing_streak) == ("healthy", 0)
    assert it.changes == ["healthy", "unhealthy", "healthy"]
    assert it.health.changes == 3


def test_failures_in_the_start_period_do_not_count() -> None:
    it = Watched(interval=10, retries=2, start_period=5, start_interval=1)
    it.run(4.5, 1)
    assert it.times() == [1, 2, 3, 4]
    assert (it.health.status, it.health.failing_streak) == ("starting", 0)
    it.run(30, 1)
    # The one that waited when the period ended still comes after the start interval.
    assert it.times()[4:] == [5, 15, 25]
    assert it.health.status == "unhealthy"


def test_success_in_the_start_period_ends_it() -> None:
    it = Watched(interval=10, retries=1, start_period=100, start_interval=1)
    it.run(1, 0)
    assert it.health.status == "healthy"
    it.run(10, 1)
    assert it.times() == [1, 11]
    assert it.health.status == "unhealthy"


def test_stopped_monitor_probes_no_more_and_a_late_result_counts_for_nothing() -> None:
    it = Watched(interval=1)
    it.loop.advance(1)
    it.monitor.stop()
    it.answer(0)
    it.loop.advance(100)
    assert it.times() == [1]
    assert (it.health.status, it.health.log) == ("starting", [])


def test_last_five_results_are_kept() -> None:
    it = Watched(interval=1)
    for number in range(8):
        it.loop.advance(1)
        it.answer(0, str(number))
    assert [result.output for result in it.health.log] == ["3", "4", "5", "6", "7"]
    assert len(it.health.log) == KEEP_RESULTS


def test_a_new_run_is_starting_again_and_keeps_the_results() -> None:
    health = Health()
    health.take(Result(1, 2, 0, "ok"), Check({}), 1.0)
    health.restart()
    assert (health.status, health.failing_streak, health.changes) == ("starting", 0, 0)
    assert [result.output for result in health.log] == ["ok"]


def test_health_survives_an_agent() -> None:
    health = Health()
    health.take(Result(1, 2, 1, "no"), Check({}, retries=1), 1.0)
    again = Health.load(json.loads(json.dumps(health.as_json())))
    assert again.as_json() == health.as_json()


def test_zero_and_absent_mean_dockers_defaults() -> None:
    check = Check.read({"process": {}, "interval_ns": 0, "retries": 0})
    assert check == Check({}, 30.0, 30.0, 0.0, 5.0, 3)
    assert Check.read(None) is None


@pytest.mark.parametrize("values", [{}, {"process": {}, "interval_ns": -1}, {"process": "x"}])
def test_wrong_check_is_invalid(values: dict[str, object]) -> None:
    with pytest.raises(CallError) as caught:
        Check.read(values)
    assert caught.value.code == "invalid"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "500ms"), (30, "30s"), (1.5, "1.5s"), (90, "1m30s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
