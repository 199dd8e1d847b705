"""Statistics: cgroup files as Docker's JSON, and what its client makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wherry.api.stats import docker_stats, empty_stats
from wherry.cli.stats import cpu_percent, memory_used, row
from wherry.engine.model import Container
from wherry.engine.stats import read_samples
from wherry.errors import LinkError

FILES = {
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n"
    "nr_periods 7\nnr_throttled 3\nthrottled_usec 900\n",
    "memory.current": "50000000\n",
    "memory.max": "104857600\n",
    "memory.stat": "anon 30000000\nfile 20000000\ninactive_file 8000000\n",
    "memory.events": "low 0\nhigh 0\nmax 1\noom 1\noom_kill 1\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n",
    "cpu.pressure": "some avg10=0.10 avg60=0.20 avg300=0.30 total=42\n",
}
NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:     999       9    0    0    0     0          0         0      999       9    0    0
  eth0:    1000      10    1    2    0     0          0         0     2000      20    3    4
"""
BOX = Container("1" * 64, "box", 1, "busybox", "sha256:1", "sha256:2", {}, {}, ())


def answer(files: dict[str, str], seconds: int) -> dict[str, Any]:
    item = {"id": BOX.id, "time_ns": seconds * 10**9, "files": files, "net_dev": NET_DEV}
    return {
        "samples": [item],
        "cpu": f"cpu  {100 * seconds} 0 {100 * seconds} 0 0 0 0 0 0 0",
        "clock_ticks": 100,
        "cpus": 2,
        "memory_bytes": 1 << 30,
    }


def stats() -> dict[str, Any]:
    earlier = {**FILES, "cpu.stat": "usage_usec 2000000\nuser_usec 0\nsystem_usec 0\n"}
    before = read_samples(answer(earlier, 10))[BOX.id]
    now = read_samples(answer(FILES, 11))[BOX.id]
    return docker_stats(BOX, now, before)


def test_the_object_is_dockers() -> None:
    it = stats()
    assert it["name"] == "/box"
    assert it["cpu_stats"]["cpu_usage"]["total_usage"] == 2_500_000_000
    assert it["cpu_stats"]["throttling_data"] == {
        "periods": 7,
        "throttled_periods": 3,
        "throttled_time": 900_000,
    }
    assert it["cpu_stats"]["system_cpu_usage"] - it["precpu_stats"]["system_cpu_usage"] == 2 * 10**9
    assert it["memory_stats"]["limit"] == 104857600
    assert it["memory_stats"]["stats"]["inactive_file"] == 8_000_000
    assert it["pids_stats"] == {"current": 3, "limit": 2**64 - 1}
    assert it["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 0, "op": "read", "value": 4096},
        {"major": 8, "minor": 0, "op": "write", "value": 8192},
    ]
    assert it["networks"] == {
        "eth0": {
            "rx_bytes": 1000, "rx_packets": 10, "rx_errors": 1, "rx_dropped": 2,
            "tx_bytes": 2000, "tx_packets": 20, "tx_errors": 3, "tx_dropped": 4,
        }
    }  # fmt: skip
    assert it["wherry"]["memory_events"]["oom_kill"] == 1
    assert it["wherry"]["pressure"]["cpu"]["some"]["total"] == 42
    assert (it["preread"], it["read"]) == ("1970-01-01T00:00:10Z", "1970-01-01T00:00:11Z")
    json.dumps(it)


def test_the_client_sums_as_dockers() -> None:
    it = stats()
    assert cpu_percent(it) == pytest.approx(50.0)  # half a second of a CPU in one second of two
    assert memory_used(it) == 42_000_000
    cells = row(it)
    assert cells["CPUPerc"] == "50.00%"
    assert cells["MemUsage"] == "40.05MiB / 100MiB"
    assert cells["MemPerc"] == "40.05%"
    assert cells["NetIO"] == "1kB / 2kB"
    assert cells["BlockIO"] == "4.1kB / 8.19kB"
    assert cells["PIDs"] == "3"


def test_a_container_without_a_limit_has_the_machines_memory() -> None:
    sample = read_samples(answer({**FILES, "memory.max": "max\n"}, 1))[BOX.id]
    assert docker_stats(BOX, sample, None)["memory_stats"]["limit"] == 1 << 30


def test_files_that_the_kernel_does_not_have_count_as_nothing() -> None:
    it = docker_stats(BOX, read_samples(answer({}, 1))[BOX.id], None)
    assert it["memory_stats"]["usage"] == 0
    assert it["blkio_stats"]["io_service_bytes_recursive"] is None
    assert row(it)["CPUPerc"] == "0.00%"


def test_one_that_does_not_run_has_no_figures() -> None:
    cells = row(empty_stats(BOX))
    assert cells["CPUPerc"] == "--"
    assert cells["MemUsage"] == "-- / --"
    assert cells["Name"] == "box"


@pytest.mark.parametrize("broken", [{}, {"cpu": "nonsense", "clock_ticks": 1, "samples": []}])
def test_what_is_no_sample_is_a_link_error(broken: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        read_samples(broken)
