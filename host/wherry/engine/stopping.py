"""Ending containers: the stop signal, the wait, SIGKILL; and what a signal means for a policy.

A signal that ends a restart policy is sent as such, in one call: the agent, which carries the
policy out, sees either both or neither. A container that waits to be started again counts as
running until the agent says that it will not be.
"""

from __future__ import annotations

import asyncio
from typing import Any

from wherry.engine.events import EventBus, container_event
from wherry.engine.guest import Guest
from wherry.engine.model import WaitCondition
from wherry.engine.policies import NO, ends_policy, restart_policy
from wherry.engine.registry import Entry, Registry
from wherry.engine.signals import SIGKILL, SIGTERM, signal_number
from wherry.errors import AgentError, MachineError

DEFAULT_STOP_TIMEOUT = 10
"""Seconds between the stop signal and SIGKILL; Docker's."""

KILL_DEADLINE = 30.0
"""Seconds that a process may take to die of SIGKILL (it may be in the middle of disk I/O)."""


class Stopper:
    """Signals to the containers of one machine."""

    def __init__(self, registry: Registry, events: EventBus, guest: Guest) -> None:
        self._registry = registry
        self._events = events
        self._guest = guest

    async def stop(self, entry: Entry, number: int, timeout: int | None) -> None:
        """Ask it to end, and kill it after `timeout` seconds (negative: never; None: its own)."""
        if timeout is None:
            timeout = entry.container.config.get("StopTimeout")
        limit = DEFAULT_STOP_TIMEOUT if timeout is None else timeout
        entry.stopping = True
        try:
            await self._send(entry, number, final=True)
            if not await _ended(entry, None if limit < 0 else float(limit)):
                await self.kill_hard(entry)
        finally:
            entry.stopping = False

    async def signal(self, entry: Entry, number: int) -> None:
        """Send one signal; by SIGKILL it has ended when this returns."""
        if number == SIGKILL:
            await self.kill_hard(entry)
        else:
            own = signal_number(entry.container.config.get("StopSignal"), SIGTERM)
            await self._send(entry, number, final=ends_policy(entry.container, number, own))

    async def kill_hard(self, entry: Entry) -> None:
        """SIGKILL, and wait for the end. Raises MachineError when it does not come."""
        await self._send(entry, SIGKILL, final=True)
        if not await _ended(entry, KILL_DEADLINE):
            raise MachineError(
                f"container {entry.container.name} has not ended {KILL_DEADLINE:.0f} s after "
                "SIGKILL",
                hint="its process may wait for the disk: try again, or restart the machine",
            )

    async def _send(self, entry: Entry, number: int, *, final: bool) -> None:
        """Send a signal; none is needed where the process has just ended."""
        container = entry.container
        if restart_policy(container.host_config)[0] != NO:
            self._registry.stopped_by_user(entry)
        params = {"id": container.id, "signal": number, "final": final, "by_user": True}
        answer: dict[str, Any] = {}
        if container.alive:  # one that waits to be started again has nobody to send it to
            # Before the signal is: the end that it brings may be told before the call is answered.
            self._events.publish_late(container_event(container, "kill", signal=str(number)))
        try:
            answer = await self._guest.need_link().call("container.kill", params)
        except AgentError as error:
            if error.code not in ("not_found", "conflict"):
                raise
        if answer and answer.get("unpaused") is True:
            self._registry.paused(entry, False)


async def _ended(entry: Entry, seconds: float | None) -> bool:
    """Whether it has ended for good within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while entry.container.running and not entry.gone:
                # An exit that is followed by another start wakes, too: look again.
                await entry.wait(WaitCondition.NOT_RUNNING)
    except TimeoutError:
        return False
    return True
