"""pause, unpause, update, top."""

from __future__ import annotations

from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.containers import each
from wherry.cli.options import nano_cpus
from wherry.cli.output import print_table
from wherry.cli.policies import restart_policy
from wherry.errors import InvalidInput
from wherry.units import parse_size


@click.command("pause")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def pause_command(app: App, containers: tuple[str, ...]) -> None:
    """Stop all processes of containers where they are."""
    each(containers, lambda name: app.client.request("POST", f"/containers/{name}/pause"))


@click.command("unpause")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def unpause_command(app: App, containers: tuple[str, ...]) -> None:
    """Let paused containers go on."""
    each(containers, lambda name: app.client.request("POST", f"/containers/{name}/unpause"))


@click.command("update")
@click.option("--cpus", metavar="N", help="Number of CPUs, as in 1.5.")
@click.option("-c", "--cpu-shares", type=int, help="Relative CPU weight.")
@click.option("--cpu-period", type=int, metavar="US", help="The scheduler's period.")
@click.option("--cpu-quota", type=int, metavar="US", help="CPU time in each period.")
@click.option("--cpuset-cpus", metavar="LIST", help="CPUs to run on, as in 0-1.")
@click.option("--cpuset-mems", metavar="LIST", help="Memory nodes to use.")
@click.option("-m", "--memory", metavar="SIZE", help="Memory limit, as in 512m.")
@click.option("--memory-swap", metavar="SIZE", help="Memory and swap; -1: no limit.")
@click.option("--memory-reservation", metavar="SIZE", help="Memory that it keeps if it can.")
@click.option("--pids-limit", type=int, help="Number of processes; -1: no limit.")
@click.option("--blkio-weight", type=int, help="Relative weight of block I/O, 10 to 1000.")
@click.option("--restart", metavar="POLICY", help="no, always, unless-stopped, on-failure[:MAX].")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def update_command(app: App, containers: tuple[str, ...], **flags: Any) -> None:
    """Change the limits and the restart policy of containers."""
    body = _changes(flags)
    if not body:
        raise InvalidInput("nothing to update", hint="give at least one flag")

    def update(name: str) -> None:
        app.client.request("POST", f"/containers/{name}/update", body=body)

    each(containers, update)


def _changes(flags: dict[str, Any]) -> dict[str, Any]:
    """The body of an update request: what was given."""
    sizes = {
        "Memory": flags["memory"],
        "MemorySwap": flags["memory_swap"],
        "MemoryReservation": flags["memory_reservation"],
    }
    plain = {
        "CpuShares": flags["cpu_shares"],
        "CpuPeriod": flags["cpu_period"],
        "CpuQuota": flags["cpu_quota"],
        "CpusetCpus": flags["cpuset_cpus"],
        "CpusetMems": flags["cpuset_mems"],
        "PidsLimit": flags["pids_limit"],
        "BlkioWeight": flags["blkio_weight"],
    }
    body = {name: value for name, value in plain.items() if value is not None}
    for name, text in sizes.items():
        if text is not None:
            body[name] = -1 if text == "-1" else parse_size(text)
    if flags["cpus"] is not None:
        body["NanoCpus"] = nano_cpus(flags["cpus"])
    if flags["restart"] is not None:
        body["RestartPolicy"] = restart_policy(flags["restart"])
    return body


@click.command("top", context_settings={"ignore_unknown_options": True})
@click.argument("container")
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@pass_app
def top_command(app: App, container: str, ps_options: tuple[str, ...]) -> None:
    """Show the processes of a container, as `ps` with these options would."""
    query = {"ps_args": " ".join(ps_options)}
    answer = app.client.request("GET", f"/containers/{container}/top", query=query).json()
    print_table(answer["Titles"], answer["Processes"])
