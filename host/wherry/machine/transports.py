"""What carries the link of a running machine: its serial port at first, then what was asked for.

The rule: the virtio-serial port is always there and is where everything begins, also for a later
engine: over it both ends tell each other the secrets and keys of the other way, then the link moves
and its session goes on. A way that cannot be had, or breaks, costs a notice, never the machine: the
link is back at the port, and tries again later.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from wherry.errors import InvalidInput, LinkError, WherryError
from wherry.link import Connect, Transport, local_socket
from wherry.link.vsock import Secrets
from wherry.machine.boot import RunningQemu
from wherry.machine.config import MachineConfig
from wherry.machine.guest import LinkPort
from wherry.machine.qmp import Qmp
from wherry.machine.ssh import SshAccess
from wherry.machine.vsock import check_vsock, connect_vsock
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)

VSOCK_PORT = 1024
"""The first one that is not reserved; a guest's ports are its own."""

SSH_PORT = "wherry.ssh"
_SSH_CHARDEV = "ssh"
_SSH_DEVICE = "ssh-port"

_MOVE_PATIENCE = 30.0
_TRIES = 3
"""Connections by a way that may come to nothing, one after the other, before it counts as gone."""

_AGAIN = (0.0, 5.0, 30.0, 300.0)
"""Seconds before another try after the link fell back: at once, as another agent may have come."""


def check_link(config: MachineConfig) -> None:
    """Raises InvalidInput where this host has no such way."""
    if config.link == "vsock":
        check_vsock()
    elif config.link == "ssh" and sys.platform == "win32":
        raise InvalidInput("on Windows machines are reached by their serial port only")


class Transports:
    """One machine's.

    Args:
        notice: told what the user should read once.
    """

    def __init__(self, paths: MachinePaths, ssh: SshAccess, notice: Callable[[str], None]) -> None:
        self._paths = paths
        self._ssh = ssh
        self._notice = notice
        self._serial = local_socket(paths.agent_socket)
        self._way: _Way | None = None
        self._tried: _Way | None = None
        self._again: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._told = ""

    @property
    def carried_by(self) -> str:
        """serial, vsock or ssh: what the link runs over now."""
        return self._way.kind if self._way is not None and self._way.taken else "serial"

    async def settle(self, vm: RunningQemu, link: LinkPort, config: MachineConfig) -> None:
        """Move the link to what the machine was started with; now, and whenever it has to be.

        Whatever goes wrong leaves it where it is.
        """
        self.forget()
        if config.link == "serial":
            return

        def replaced(_peer: dict[str, Any]) -> None:
            self._move_later(vm, link, config.link)

        def connected(_peer: dict[str, Any]) -> None:
            self._connected.set()
            if self._tried is not None:
                self._tried.answered()

        def event(name: str, data: Mapping[str, Any]) -> None:
            """A port knows no end of a connection; that the guest closed it is told by QEMU."""
            closed = name == "VSERPORT_CHANGE" and not data.get("open")
            if closed and data.get("id") == _SSH_DEVICE and self._way is not None:
                link.redirect(self._serial)
                self._move_later(vm, link, config.link)

        link.on_connect(connected)
        vm.qmp.on_event(event)
        await self._move(vm, link, config.link, 1)
        link.on_peer_restart(replaced)

    def forget(self) -> None:
        """The machine is gone, or let go of."""
        self._way = self._tried = None
        self._told = ""
        self._stop_trying()

    async def _move(self, vm: RunningQemu, link: LinkPort, kind: str, attempt: int) -> None:
        def fell_back() -> None:
            self._move_later(vm, link, kind)

        try:
            async with asyncio.timeout(_MOVE_PATIENCE):
                connect = await self._ways(vm.qmp, link, kind)
                way = self._tried = _Way(kind, connect, self._serial, fell_back)
                self._connected.clear()
                link.redirect(way.connect)
                await asyncio.shield(way.decided)
                await self._connected.wait()
        except (WherryError, OSError, TimeoutError) as error:
            link.redirect(self._serial)
            self._tell(kind, str(error) or f"no answer within {_MOVE_PATIENCE:g} s")
            self._move_later(vm, link, kind, attempt)
            return
        self._way = way
        self._told = ""

    def _tell(self, kind: str, reason: str) -> None:
        text = f"the machine is reached by its serial port, not by {kind}: {reason}"
        logger.warning("%s", text)
        if text != self._told:
            self._told = text
            self._notice(text)

    def _move_later(self, vm: RunningQemu, link: LinkPort, kind: str, attempt: int = 0) -> None:
        self._way = None
        self._stop_trying()
        if attempt < len(_AGAIN) and not vm.qmp.closed:
            self._again = asyncio.ensure_future(self._wait_and_move(vm, link, kind, attempt))

    def _stop_trying(self) -> None:
        again, self._again = self._again, None
        if again is not None and again is not asyncio.current_task():
            again.cancel()

    async def _wait_and_move(
        self, vm: RunningQemu, link: LinkPort, kind: str, attempt: int
    ) -> None:
        await asyncio.sleep(_AGAIN[attempt])
        await self._move(vm, link, kind, attempt + 1)

    async def _ways(self, qmp: Qmp, link: LinkPort, kind: str) -> Connect:
        """Have the guest listen; how it is reached then."""
        if kind == "vsock":
            known = Secrets.fresh()
            connect = connect_vsock(self._paths, VSOCK_PORT, known)
            params = {"secret": known.ours.hex(), "answer": known.answer.hex(), "port": VSOCK_PORT}
            await link.call("link.listen", {"kind": kind, **params})
            return connect
        from wherry.link.ssh.channel import ssh_channel

        host_key = await self._ssh.prepare(link)
        await self._plug_ssh_port(qmp)
        await link.call("link.listen", {"kind": kind, "port": SSH_PORT})
        return ssh_channel(self._paths.chardev(_SSH_CHARDEV), self._paths.ssh_key, host_key)

    async def _plug_ssh_port(self, qmp: Qmp) -> None:
        """Give the machine the port, unless an earlier engine did."""
        chardevs = await qmp.execute("query-chardev")
        if any(chardev["label"] == _SSH_CHARDEV for chardev in chardevs):
            return
        path = self._paths.chardev(_SSH_CHARDEV)
        path.unlink(missing_ok=True)
        address = {"type": "unix", "data": {"path": str(path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        await qmp.execute("chardev-add", {"id": _SSH_CHARDEV, "backend": backend})
        device = {"driver": "virtserialport", "bus": "ports.0", "chardev": _SSH_CHARDEV}
        await qmp.execute("device_add", {**device, "id": _SSH_DEVICE, "name": SSH_PORT})


class _Way:
    """A `connect` that prefers one way and falls back to another for good.

    Attributes:
        decided: settled by the first connection: an error when it was not by the way.
        taken: whether it is by the way now.
    """

    def __init__(
        self, kind: str, preferred: Connect, fallback: Connect, fell_back: Callable[[], None]
    ) -> None:
        self.kind = kind
        self.taken = True
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._preferred = preferred
        self._fallback = fallback
        self._fell_back = fell_back
        self._in_vain = 0

    def answered(self) -> None:
        """The agent has: the way is good."""
        self._in_vain = 0

    async def connect(self) -> Transport:
        if self.taken:
            try:
                if self._in_vain == _TRIES:
                    raise LinkError("the agent does not answer there")
                transport = await self._preferred()
                self._in_vain += 1
            except (OSError, LinkError) as error:
                logger.warning("not by %s: %s", self.kind, error)
                self.taken = False
                if self.decided.done():
                    self._fell_back()
                else:
                    self.decided.set_exception(error)
                    self.decided.exception()  # it may be that nobody waits any more
            else:
                if not self.decided.done():
                    self.decided.set_result(None)
                return transport
        return await self._fallback()
