"""Samples of containers' statistics: the texts of the guest's cgroup files. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wherry.errors import LinkError

_NS = 1_000_000_000
_NETWORK = ("bytes", "packets", "errors", "dropped")


@dataclass(frozen=True, slots=True)
class Sample:
    """One container's figures at a time. `files`: cgroup files' texts."""

    time_ns: int
    files: Mapping[str, str]
    networks: Mapping[str, Mapping[str, int]]
    system_ns: int
    cpus: int
    memory_bytes: int


def read_samples(answer: Mapping[str, Any]) -> dict[str, Sample]:
    """The agent's answer to `container.stats`, by container. Raises LinkError when it is none."""
    try:
        system_ns = _system_ns(answer["cpu"], answer["clock_ticks"])
        return {
            item["id"]: Sample(
                item["time_ns"],
                item["files"],
                _networks(item["net_dev"]),
                system_ns,
                answer["cpus"],
                answer["memory_bytes"],
            )
            for item in answer["samples"]
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LinkError("the guest sent statistics that are none") from error


def _networks(text: str) -> dict[str, dict[str, int]]:
    """/proc/PID/net/dev: after two lines of headings, eight figures received, eight sent."""
    networks = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        figures = [int(word) for word in rest.split()]
        if name.strip() == "lo":
            continue
        networks[name.strip()] = {
            f"{way}_{what}": figures[start + at]
            for way, start in (("rx", 0), ("tx", 8))
            for at, what in enumerate(_NETWORK)
        }
    return networks


def _system_ns(line: str, ticks: int) -> int:
    """The time of all CPUs: /proc/stat's first line up to softirq, as Docker adds it up."""
    words = line.split()
    if not words or words[0] != "cpu":
        raise ValueError(line)
    return sum(int(word) for word in words[1:8]) * _NS // ticks
