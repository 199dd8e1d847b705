"""Names, ids, signals, and failures in Docker's words."""

from __future__ import annotations

import random

import pytest

from wherry.engine.failure import CONTAINER, start_failure
from wherry.engine.names import checked_name, find, new_id, random_name
from wherry.engine.signals import signal_number
from wherry.errors import AgentError, InvalidInput, NotFound


def test_ids_are_64_hex_digits() -> None:
    assert len(new_id()) == 64
    assert int(new_id(), 16) != int(new_id(), 16)


def test_random_names_are_valid_and_avoid_those_taken() -> None:
    source = random.Random(1)
    taken: set[str] = set()
    for _ in range(500):
        name = random_name(taken.__contains__, source)
        assert name not in taken
        assert checked_name(name) == name
        taken.add(name)


def test_a_random_name_is_found_when_all_pairs_are_taken() -> None:
    name = random_name(lambda name: not name[-1].isdigit(), random.Random(1))
    assert name[-1].isdigit()


@pytest.mark.parametrize("name", ["", "a", "-a", ".a", "a b", "a/b", "ä1", "/"])
def test_names_that_docker_refuses(name: str) -> None:
    with pytest.raises(InvalidInput):
        checked_name(name)


def test_a_name_wins_over_a_prefix_and_an_id_over_a_name() -> None:
    first, second = "ab" + "0" * 62, "cd" + "0" * 62
    by_id = {first: 1, second: 2}
    assert find("ab", by_id, {"ab": second}) == 2
    assert find("ab", by_id, {}) == 1
    assert find(first, by_id, {first: second}) == 1
    with pytest.raises(NotFound):
        find("AB", by_id, {})
    with pytest.raises(InvalidInput, match="empty"):
        find("", by_id, {})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), (2, 2), (None, 15), ("", 15),
        ("USR1", 10), ("CHLD", 17), ("SYS", 31), ("RTMIN", 34), ("RTMIN+1", 35), ("RTMAX-1", 63),
        ("RTMAX", 64), ("IOT", 6),
    ],
)  # fmt: skip
def test_signals_have_linuxs_numbers(text: str | int | None, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["NOPE", "0", "65", "RTMIN+99", "RTMIN-1", "SIG", "+1"])
def test_unknown_signals_are_errors(text: str) -> None:
    with pytest.raises(InvalidInput, match="Invalid signal"):
        signal_number(text)


@pytest.mark.parametrize(
    ("command", "data", "ending"),
    [
        ("nope", (127, 2), 'exec: "nope": executable file not found in $PATH'),
        ("/nope", (127, 2), 'exec: "/nope": stat /nope: no such file or directory'),
        ("/etc", (126, 13), 'exec: "/etc": permission denied'),
        ("/etc", (126, 21), 'exec: "/etc": is a directory'),
        ("/x", (126, 8), 'exec: "/x": exec format error'),
        ("/x", (126, 99), 'exec: "/x": step: E'),
        ("/x", (125, 1), "failed to create task for container: step: E"),
        ("/x", (3, 1), "failed to create task for container: step: E"),
    ],
)
def test_start_failures_read_like_dockers(command: str, data: tuple[int, int], ending: str) -> None:
    code, errno = data
    error = AgentError(
        "step: E", code="start_failed", data={"exit_code": code, "errno": errno, "step": "step"}
    )
    failure = start_failure(CONTAINER, command, error)
    assert failure.message.endswith(ending)
    assert failure.exit_code == (code if code in (126, 127) else 125)
    assert failure.http_status == (400 if code in (126, 127) else 500)
