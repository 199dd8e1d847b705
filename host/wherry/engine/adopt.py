"""Bringing rows and guest into agreement: after adopting a running machine, after every boot, and
when the machine goes away.

State is asked for, never guessed from events: the agent's lists say what runs now and how what
ended has ended. Only what was known *before* the question may be called lost, since a container may
start while the answer is on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from wherry.engine.execs import Execs
from wherry.engine.ports import LinkPort
from wherry.engine.registry import LOST_CODE, Entry, Exit, Registry
from wherry.errors import LinkError

log = logging.getLogger(__name__)

LOST = "the machine was restarted while the container ran"


async def reconcile(link: LinkPort, registry: Registry, execs: Execs) -> None:
    """Ask the guest and correct what is known.

    Raises:
        LinkError: the guest did not answer, or not what it should.
    """
    before = {entry.container.id: entry.container.started_ns for entry in registry.running()}
    execs_before = execs.running()
    told = _by_id((await link.call("container.list", {})).get("containers"), "id")
    for container_id, item in told.items():
        entry = registry.get(container_id)
        if entry is None:
            log.info("the guest has a container that is none of ours: %s", container_id)
        elif not entry.starting:
            _apply(registry, entry, item)
    for container_id, started_ns in before.items():
        entry = registry.get(container_id)
        unchanged = entry is not None and entry.container.started_ns == started_ns
        if entry is not None and unchanged and entry.container.running and container_id not in told:
            registry.exited(entry, Exit.lost(LOST))
    await _reconcile_execs(link, execs, execs_before)


def machine_gone(registry: Registry, execs: Execs, reason: str) -> None:
    """QEMU is gone, and everything that ran in it."""
    execs.lost()
    for entry in registry.running():
        registry.exited(entry, Exit.lost(reason))


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
        registry.started(entry, pid=None, started_ns=exit.started_ns)
    if entry.container.running:
        registry.exited(entry, exit)


def _apply(registry: Registry, entry: Entry, item: Mapping[str, Any]) -> None:
    if item.get("status") == "exited":
        if item.get("exit") is not None:
            container_exited(registry, {**item["exit"], "id": entry.container.id})
        return
    started_ns, pid = item.get("started_ns"), item.get("pid")
    if not isinstance(started_ns, int) or not isinstance(pid, int):
        raise LinkError("the guest sent a container without its fields")
    if not entry.container.running or entry.container.started_ns != started_ns:
        registry.started(entry, pid=pid, started_ns=started_ns)


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
