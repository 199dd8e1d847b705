"""Bringing rows and guest into agreement: after adopting a running machine, after every boot, and
when the machine goes away.

State is asked for, never guessed from events: the agent's lists say what runs now and how what
ended has ended. What the agent has told before it answers is heard first, so that every turn of a
restart loop is seen. Only what was known *before* the question may be called lost, since a
container may start while the answer is on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from wherry.engine.execs import Execs
from wherry.engine.exits import LOST_CODE, Exit, read_health
from wherry.engine.model import Status
from wherry.engine.ports import LinkPort
from wherry.engine.registry import Entry, Registry
from wherry.errors import LinkError

log = logging.getLogger(__name__)

LOST = "the machine was restarted while the container ran"


async def reconcile(
    link: LinkPort,
    registry: Registry,
    execs: Execs,
    events_up_to: Callable[[int], Awaitable[None]],
) -> None:
    """Ask the guest and correct what is known.

    Args:
        events_up_to: waits until the agent's event of that id has been handled.

    Raises:
        LinkError: the guest did not answer, or not what it should.
    """
    before = {entry.container.id: entry.container.started_ns for entry in registry.running()}
    execs_before = execs.running()
    answer = await link.call("container.list", {})
    told = _by_id(answer.get("containers"), "id")
    after_event = answer.get("after_event")
    if isinstance(after_event, int) and after_event:
        await events_up_to(after_event)
    for container_id, item in told.items():
        entry = registry.get(container_id)
        if entry is None:
            log.info("the guest has a container that is none of ours: %s", container_id)
        elif not entry.starting:
            _apply(registry, entry, item)
    for container_id, started_ns in before.items():
        entry = registry.get(container_id)
        unchanged = entry is not None and entry.container.started_ns == started_ns
        if entry is not None and unchanged and container_id not in told:
            _lost(registry, entry, LOST)
    await _reconcile_execs(link, execs, execs_before)


def machine_gone(registry: Registry, execs: Execs, reason: str) -> None:
    """QEMU is gone, and everything that ran in it."""
    execs.lost()
    for entry in registry.running():
        _lost(registry, entry, reason)


def _lost(registry: Registry, entry: Entry, reason: str) -> None:
    container = entry.container
    if container.alive:
        registry.exited(entry, Exit.lost(reason))
    elif container.running:  # it waited to be started again: how it ended is known
        registry.not_restarted(entry, Exit(container.exit_code or 0, 0, error=container.error))


def container_exited(registry: Registry, payload: Mapping[str, Any]) -> None:
    """A `container.exit`: of the present run, of one that nobody saw start, or told before.

    Raises:
        LinkError: the guest sent something else.
    """
    exit = Exit.from_payload(payload)
    entry = registry.get(str(payload.get("id")))
    if entry is None:
        return  # removed meanwhile
    known = entry.container.started_ns
    if exit.started_ns is None or (
        known is not None and exit.started_ns < known and not entry.starting
    ):
        return  # an earlier run's (while one starts it is that one's, whatever the clock says)
    if known != exit.started_ns:
        count = 0 if entry.starting else (exit.restart_count or 0) - exit.restarting
        registry.started(entry, pid=None, started_ns=exit.started_ns, restart_count=max(0, count))
    if entry.container.alive:
        registry.exited(entry, exit)
    elif entry.container.status is Status.RESTARTING and not exit.restarting:
        registry.not_restarted(entry, exit)


def container_started(registry: Registry, payload: Mapping[str, Any]) -> None:
    """A `container.started`: a policy has started it again; once more is fine. Raises LinkError."""
    pid, started_ns, count = (payload.get(key) for key in ("pid", "started_ns", "restart_count"))
    if not (isinstance(pid, int) and isinstance(started_ns, int) and isinstance(count, int)):
        raise LinkError("the guest sent a start without its fields")
    entry = registry.get(str(payload.get("id")))
    if entry is not None and started_ns > (entry.container.started_ns or 0):
        registry.started(entry, pid=pid, started_ns=started_ns, restart_count=count)


def container_health(registry: Registry, payload: Mapping[str, Any]) -> None:
    """A `container.health`: its status has changed. Raises LinkError."""
    health, started_ns = read_health(payload), payload.get("started_ns")
    entry = registry.get(str(payload.get("id")))
    if entry is not None and health is not None and isinstance(started_ns, int):
        registry.health_changed(entry, started_ns, health)


def container_oom(registry: Registry, payload: Mapping[str, Any]) -> None:
    """A `container.oom`; once more is fine. Raises LinkError."""
    started_ns, kills = payload.get("started_ns"), payload.get("kills")
    if not (isinstance(started_ns, int) and isinstance(kills, int)):
        raise LinkError("the guest sent an OOM kill without its fields")
    entry = registry.get(str(payload.get("id")))
    if entry is not None:
        registry.oom(entry, started_ns, kills)


def _apply(registry: Registry, entry: Entry, item: Mapping[str, Any]) -> None:
    status = item.get("status")
    if status in ("exited", "restarting"):
        if item.get("exit") is not None:
            container_exited(registry, {**item["exit"], "id": entry.container.id})
        return
    started_ns, pid = item.get("started_ns"), item.get("pid")
    if not isinstance(started_ns, int) or not isinstance(pid, int):
        raise LinkError("the guest sent a container without its fields")
    container = entry.container
    if (container.started_ns or 0) > started_ns:
        return  # the answer is older than what has been told since
    ended = container.finished_ns is not None and container.log_bytes is not None
    if container.started_ns == started_ns and ended:
        return  # its exit was told since
    if not container.alive or container.started_ns != started_ns:
        count = item.get("restart_count")
        count = count if isinstance(count, int) else 0
        registry.started(entry, pid=pid, started_ns=started_ns, restart_count=count)
    registry.paused(entry, status == "paused")
    if (health := read_health(item.get("health"))) is not None:
        registry.health_changed(entry, started_ns, health)


async def _reconcile_execs(link: LinkPort, execs: Execs, before: list[str]) -> None:
    told = _by_id((await link.call("exec.list", {})).get("execs"), "exec_id")
    for exec_id, item in told.items():
        code = item.get("exit")
        if isinstance(code, Mapping):
            code = code.get("exit_code")
        if isinstance(code, int):
            execs.exited(exec_id, code)
        elif isinstance(item.get("pid"), int):
            execs.found(exec_id, item["pid"])
    for exec_id in before:
        if exec_id not in told:
            execs.exited(exec_id, LOST_CODE)


def _by_id(items: Any, key: str) -> dict[str, Mapping[str, Any]]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise LinkError("the guest's list is not a list of objects")
    return {str(item.get(key)): item for item in items}
