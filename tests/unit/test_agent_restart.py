"""Restart policies and their back-off: Docker's rules, without a clock."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest.agent.restart import LONGEST_DELAY, STABLE_AFTER, Policy, Restarts
from wherry_guest.channel import CallError


def restarts(name: str, maximum: int = 0) -> Restarts:
    return Restarts(Policy(name, maximum))


def test_delay_doubles_from_100_ms_to_a_minute() -> None:
    it = restarts("always")
    delays = [it.after_exit(1, ran=0.01) for _ in range(12)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    assert it.count == 12


def test_ten_seconds_of_running_reset_the_delay() -> None:
    it = restarts("always")
    assert [it.after_exit(1, ran=1) for _ in range(3)] == [0.1, 0.2, 0.4]
    assert it.after_exit(1, ran=9.99) == 0.8
    assert it.after_exit(1, ran=10) == 0.1


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("no", 1, False),
        ("always", 0, True),
        ("always", 137, True),
        ("unless-stopped", 0, True),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
    ],
)
def test_policy_decides_by_exit_code(policy: str, code: int, again: bool) -> None:
    assert (restarts(policy).after_exit(code, ran=1) is not None) is again


def test_on_failure_gives_up_after_its_maximum() -> None:
    it = restarts("on-failure", 2)
    assert [it.after_exit(1, ran=0) for _ in range(3)] == [0.1, 0.2, None]
    assert it.count == 2


def test_signal_of_a_user_ends_unless_stopped_only() -> None:
    always, unless = restarts("always"), restarts("unless-stopped")
    always.by_user = unless.by_user = True
    assert always.after_exit(0, ran=1) == 0.1
    assert unless.after_exit(0, ran=1) is None


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
def test_stop_ends_every_policy(policy: str) -> None:
    it = restarts(policy)
    it.ended = True
    assert it.after_exit(1, ran=1) is None


runs = st.lists(st.tuples(st.integers(0, 255), st.floats(0, 100)), max_size=30)


@given(st.sampled_from(["always", "unless-stopped", "on-failure"]), st.integers(0, 5), runs)
def test_state_survives_an_agent_at_any_point(
    name: str, maximum: int, history: list[tuple[int, float]]
) -> None:
    one = restarts(name, maximum if name == "on-failure" else 0)
    other = restarts(name, maximum if name == "on-failure" else 0)
    for code, ran in history:
        other = Restarts.load(json.loads(json.dumps(other.saved())))
        delay = one.after_exit(code, ran)
        assert other.after_exit(code, ran) == delay
        assert delay is None or 0.1 <= delay <= LONGEST_DELAY
        assert delay is None or ran < STABLE_AFTER or delay == 0.1
    assert one.count == other.count


@pytest.mark.parametrize(
    "values", [{"name": "sometimes"}, {"name": "always", "max": -1}, {}, {"name": 1}]
)
def test_wrong_policy_is_invalid(values: dict[str, object]) -> None:
    with pytest.raises(CallError) as caught:
        Policy.read(values)
    assert caught.value.code == "invalid"


def test_without_a_policy_nothing_restarts() -> None:
    assert Policy.read(None) == Policy("no")
    assert Restarts().after_exit(1, ran=1) is None
