"""stats: what containers use, once or as it changes. The sums are those of Docker's client."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.output import print_rows
from wherry.errors import WherryError
from wherry.units import binary_size, human_size

_COLUMNS = {
    "Container": "CONTAINER ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
_SHORT_ID = 12
_CLEAR = "\033[H\033[J"
_NOTHING = "--"


@click.command("stats")
@click.option("-a", "--all", "show_all", is_flag=True, help="Stopped containers too.")
@click.option("--no-stream", is_flag=True, help="Once; do not go on.")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.argument("containers", nargs=-1)
@pass_app
def stats_command(
    app: App,
    show_all: bool,
    no_stream: bool,
    no_trunc: bool,
    format_: str | None,
    containers: tuple[str, ...],
) -> None:
    """Show what containers use: CPU, memory, network, disk, processes."""
    while True:
        ids = containers or _all(app, show_all)
        rows = _rows(app, ids, no_trunc, strict=bool(containers))
        if not no_stream and sys.stdout.isatty() and format_ != "json":
            click.echo(_CLEAR, nl=False)
        print_rows(rows, _COLUMNS, format=format_)
        if no_stream or (containers and not rows):
            return


def _all(app: App, show_all: bool) -> Sequence[str]:
    found = app.client.request("GET", "/containers/json", query={"all": show_all}).json()
    return [item["Id"] for item in found]


def _rows(app: App, ids: Sequence[str], no_trunc: bool, *, strict: bool) -> list[dict[str, Any]]:
    """A row each, in order, asked for all at once; `strict`: one that is not there is an error."""
    if not ids:
        threading.Event().wait(1.0)  # a second, as a sample takes
        return []
    answers: dict[str, Any] = {}

    def ask(id: str) -> None:
        try:
            client = app.client_of(app.machine)
            answers[id] = client.request(
                "GET", f"/containers/{id}/stats", query={"stream": False}
            ).json()
        except WherryError as error:
            answers[id] = error  # of this thread's: the main thread tells

    threads = [threading.Thread(target=ask, args=(id,), daemon=True) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = []
    for id in ids:
        answer = answers.get(id)
        if isinstance(answer, WherryError):
            if strict or answer.http_status != 404:
                raise answer
        elif answer is not None:
            rows.append(row(answer, no_trunc))
    return rows


def row(stats: Mapping[str, Any], no_trunc: bool = False) -> dict[str, Any]:
    """The cells of one container, from the API's object."""
    container_id = stats["id"] if no_trunc else stats["id"][:_SHORT_ID]
    names = {"ID": container_id, "Container": container_id, "Name": stats["name"].lstrip("/")}
    if not stats.get("memory_stats"):  # it does not run
        empty = dict.fromkeys(("CPUPerc", "MemPerc", "PIDs"), _NOTHING)
        pairs = dict.fromkeys(("MemUsage", "NetIO", "BlockIO"), f"{_NOTHING} / {_NOTHING}")
        return {**names, **empty, **pairs}
    used, limit = memory_used(stats), stats["memory_stats"].get("limit", 0)
    received, sent = _network(stats)
    read, written = _blocks(stats)
    return {
        **names,
        "CPUPerc": f"{cpu_percent(stats):.2f}%",
        "MemUsage": f"{binary_size(used)} / {binary_size(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "NetIO": f"{human_size(received)} / {human_size(sent)}",
        "BlockIO": f"{human_size(read)} / {human_size(written)}",
        "PIDs": str(stats["pids_stats"].get("current", 0)),
    }


def cpu_percent(stats: Mapping[str, Any]) -> float:
    """CPU time of the container per time of the machine between two samples, in CPUs."""
    now, before = stats["cpu_stats"], stats["precpu_stats"]
    used = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    if used <= 0 or passed <= 0:
        return 0.0
    return float(used / passed * (now.get("online_cpus") or 1) * 100)


def memory_used(stats: Mapping[str, Any]) -> int:
    """Usage without the page cache that nobody has used lately."""
    memory = stats["memory_stats"]
    usage, idle = memory.get("usage", 0), memory.get("stats", {}).get("inactive_file", 0)
    return int(usage - idle if idle < usage else usage)


def _network(stats: Mapping[str, Any]) -> tuple[int, int]:
    networks = (stats.get("networks") or {}).values()
    return sum(it["rx_bytes"] for it in networks), sum(it["tx_bytes"] for it in networks)


def _blocks(stats: Mapping[str, Any]) -> tuple[int, int]:
    entries = stats["blkio_stats"].get("io_service_bytes_recursive") or []
    totals = {"read": 0, "write": 0}
    for entry in entries:
        totals[entry["op"].lower()] += entry["value"]
    return totals["read"], totals["write"]
