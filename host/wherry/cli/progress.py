"""Progress of long work: live on a terminal (rich, imported only then), else a line per step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from wherry.cli.app import App
    from wherry.client import Client

_DONE = ("Pull complete", "Already exists", "Pushed", "Layer already exists", "Mounted from")


def ensure_machine(client: Client, *, quiet: bool = False) -> None:
    """Start the machine when it is off, and show how that goes (on standard error)."""
    state = client.request("GET", "/wherry/v1/machine").json()
    if state["state"] != "running":
        start_machine(client, quiet=quiet)


def start_machine(client: Client, *, quiet: bool = False, template: bool = True) -> dict[str, Any]:
    """Start the machine; its inspect. Raises as the client does.

    Args:
        template: restore a saved machine when there is a good one.
    """
    query = {"template": template}
    facts: dict[str, Any] = follow(
        client.lines("POST", "/wherry/v1/machine/start", query=query), "machine", quiet=quiet
    )
    for notice in facts.get("notices") or ():
        print(f"wherry: {notice}", file=sys.stderr)
    return facts


def fetch_emulators(client: Client, *, quiet: bool = False) -> None:
    """Have the emulators for images of other architectures, and show how that goes."""
    if not quiet:
        print("Fetching the emulators for images of other architectures", file=sys.stderr)
    follow(client.lines("POST", "/wherry/v1/machine/emulators"), "ready", quiet=quiet)


def follow(lines: Iterable[dict[str, Any]], result: str, *, quiet: bool) -> Any:
    """Show {"phase", "done", "total"} lines; return what the last line has under `result`."""
    found: Any = None
    live = sys.stderr.isatty() and not quiet
    bars = _bars() if live else None
    tasks: dict[str, Any] = {}
    last = ""
    if bars:
        bars.start()
    try:
        for line in lines:
            if result in line:
                found = line[result]
            elif "phase" in line and bars:
                phase = line["phase"]
                if phase not in tasks:
                    tasks[phase] = bars.add_task(phase, total=None)
                bars.update(tasks[phase], completed=line["done"], total=line["total"] or None)
            elif "phase" in line and not quiet and line["phase"] != last:
                last = line["phase"]
                print(f"wherry: {last}", file=sys.stderr, flush=True)
    finally:
        if bars:
            bars.stop()
    return found


def show_pull(
    lines: Iterable[dict[str, Any]], *, quiet: bool, results: list[Any] | None = None
) -> None:
    """Draw a pull or push as Docker does: a bar per layer on a terminal, else a line per event.

    Args:
        results: gets what stands under `aux`.
    """
    live = sys.stderr.isatty() and not quiet
    bars = _bars() if live else None
    tasks: dict[str, Any] = {}
    seen: set[tuple[str, str]] = set()
    if bars:
        bars.start()
    try:
        for line in lines:
            status, layer = line.get("status", ""), line.get("id", "")
            detail = line.get("progressDetail") or {}
            if "aux" in line:
                if results is not None:
                    results.append(line["aux"])
                continue
            if bars and layer:
                if layer not in tasks:
                    tasks[layer] = bars.add_task(layer, total=None)
                complete = status.startswith(_DONE)
                total = detail.get("total") or (1 if complete else None)
                done = total if complete else detail.get("current", 0)
                bars.update(
                    tasks[layer], description=f"{layer}: {status}", completed=done, total=total
                )
            elif bars:
                bars.console.print(status, highlight=False)
            elif not quiet and (layer, status) not in seen:
                seen.add((layer, status))
                print(f"{layer}: {status}" if layer else status, file=sys.stderr, flush=True)
    finally:
        if bars:
            bars.stop()


@contextmanager
def counting(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """What is called with each number of bytes that are done; a terminal shows a bar."""
    if quiet or not sys.stderr.isatty():
        yield lambda _count: None
        return
    with _bars() as bars:
        task = bars.add_task("", total=total)
        yield lambda count: bars.advance(task, count)


def pull(
    app: App, image: str, *, platform: str | None, quiet: bool, all_platforms: bool = False
) -> None:
    """Pull `image` and show how that goes."""
    from wherry.cli.logins import login_header  # here: `run` needs it only when it pulls

    name, tag = split_name(image)
    query = {
        "fromImage": name,
        "tag": tag,
        "platform": platform,
        "allPlatforms": all_platforms or None,
    }
    lines = app.client.lines("POST", "/images/create", query=query, headers=login_header(image))
    show_pull(lines, quiet=quiet)


def split_name(image: str) -> tuple[str, str]:
    """(repository, tag or digest); the tag is `latest` when there is none."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return image, "latest"
    return name, tag


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
