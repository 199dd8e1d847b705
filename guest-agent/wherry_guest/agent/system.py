"""The machine's own calls: what it is, its one setup per boot, its clock.

Rule: before `setup` has given the kernel the host's clock and entropy, nothing here opens an inet
socket or draws random numbers: two machines that were restored from one template would draw the
same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import wherry_guest
from wherry_guest.agent import renew
from wherry_guest.agent.calls import Answer, Params, one_line
from wherry_guest.agent.children import run_program
from wherry_guest.agent.disk import DiskError, mount_data_disk
from wherry_guest.agent.kernel import write_atomically
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.tasks import Promise, run
from wherry_guest.channel import CallError
from wherry_guest.core import netlink
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop
from wherry_guest.zygote import Zygote

_os: Final[Any] = os
_time: Final[Any] = time

NFT_RULES: Final = Path("/etc/wherry/nftables.conf")
NFT_TIMEOUT: Final = 30.0
MODULE_TIMEOUT: Final = 30.0
INTERFACE: Final = "eth0"
RESOLV_CONF: Final = Path("/etc/resolv.conf")

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""uname's machine in OCI's words."""


_LEVELS: Final = (
    ("v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
    ("v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("v2", "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2"),
)
"""x86-64 psABI, table 3.1, in the words of /proc/cpuinfo (abm: LZCNT, pni: SSE3)."""


@cache
def cpu_variant(machine: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The level of an x86-64 processor (v2, v3, v4; "" is v1, and any other processor)."""
    if machine != "x86_64":
        return ""
    text = cpuinfo.read_text(encoding="ascii", errors="replace")
    flags = set(text.partition("\nflags")[2].partition("\n")[0].split())
    reached = ""
    for level, needed in reversed(_LEVELS):
        if not flags.issuperset(needed.split()):
            break
        reached = level
    return reached


class System:
    """The state of this machine's setup.

    Args:
        digest: this agent's, as in its HELLO.
    """

    def __init__(
        self, loop: Loop, kernel: Kernel, paths: Paths, zygote: Zygote, digest: str
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._paths = paths
        self._zygote = zygote
        self._digest = digest
        self._guarded = False
        self._setup: Promise[dict[str, Any]] | None = None
        if paths.setup.exists():
            self._setup = Promise()
            self._setup.resolve(json.loads(paths.setup.read_text(encoding="utf-8")))

    @property
    def ready(self) -> bool:
        """Whether this boot's setup is done: the data disk is there."""
        return self._setup is not None and self._setup.settled

    def info(self, params: Params) -> Answer:
        """`system.info`."""
        uname = _os.uname()
        pid1 = self._zygote.info()
        uptime_ns = _time.clock_gettime_ns(_time.CLOCK_BOOTTIME)
        info = {
            "kernel": uname.release,
            "arch": ARCHITECTURES.get(uname.machine, uname.machine),
            "variant": cpu_variant(uname.machine),
            "agent": {"version": wherry_guest.__version__, "digest": self._digest},
            "pid1": {"version": pid1.version, "digest": pid1.digest},
            "memory_bytes": _os.sysconf("SC_PHYS_PAGES") * _os.sysconf("SC_PAGE_SIZE"),
            "cpus": os.cpu_count(),
            "boot_ns": time.time_ns() - uptime_ns,
            "uptime_ns": uptime_ns,
            "boot_id": self._boot_id(),
        }
        if params.flag("figures"):
            from wherry_guest.agent.figures import machine  # here: for tests and doctors only

            info["figures"] = machine(self._paths.cgroups)
        return info

    def _boot_id(self) -> str:
        """Of this boot alone, and drawn only once it was set up; before that empty."""
        if not self.ready:
            return ""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def set_time(self, params: Params) -> Answer:
        """`system.set_time`."""
        renew.set_clock(params.number("time_ns"))
        return None

    def resume(self, params: Params) -> Answer:
        """`system.resume`: it goes on where it was saved, later, and perhaps for a second time."""
        time_ns, entropy = params.number("time_ns"), _entropy(params)
        renew.set_clock(time_ns)
        renew.add_entropy(entropy)
        return None

    async def prepare(self, params: Params) -> Answer:
        """`system.prepare`: what is the same for every machine, before a template is saved.

        Raises:
            CallError: `conflict` after `system.setup`, when the machine is one of a kind.
        """
        if self._setup is not None:
            raise CallError("conflict", "the machine is set up: it is nobody's template any more")
        await self._close_loopback()
        return None

    async def setup(self, params: Params) -> Answer:
        """`system.setup`; a repeat, also of one that is under way, is answered as the first one.

        Raises:
            CallError: `failed`, with the phase's name; the next call tries again.
        """
        if self._setup is None:
            self._setup = run(self._do_setup(_Setup(params)))
        attempt = self._setup
        try:
            return await attempt
        except (OSError, DiskError) as error:
            if self._setup is attempt:
                self._setup = None
            raise CallError("failed", f"set the machine up: {one_line(error)}") from error

    async def _do_setup(self, wanted: _Setup) -> dict[str, Any]:
        phases = _Phases(self._loop)
        with phases.measure("clock"):
            renew.set_clock(wanted.time_ns)
        with phases.measure("entropy"):
            renew.add_entropy(wanted.entropy)
        self._kernel.sethostname(wanted.hostname)
        if wanted.machine_id:
            renew.write_machine_id(wanted.machine_id)
        disk = run(self._disk(wanted, phases))
        network = run(self._network(wanted, phases))
        # Both to their ends, whichever fails: a second try must not meet a first one that still
        # goes on.
        await _settled(network)
        await _settled(disk)
        network.result()
        if wanted.balloon:
            run(self._load_balloon())
        answer = {"disk": disk.result(), "timings": phases.timings}
        write_atomically(self._paths.setup, json.dumps(answer))
        return answer

    async def _disk(self, wanted: _Setup, phases: _Phases) -> str:
        with phases.measure("disk"):
            return await mount_data_disk(
                self._loop, self._kernel, wanted.disk_serial, self._paths.data
            )

    async def _load_balloon(self) -> None:
        """The kernel tells the host of memory that it does not use; nobody has to wait for that."""
        finished = await run_program(self._loop, ("modprobe", "virtio_balloon"), MODULE_TIMEOUT)
        if finished.code:
            sys.stderr.write(f"wherry: agent: no memory goes back: {finished.complaint}\n")

    async def _network(self, wanted: _Setup, phases: _Phases) -> None:
        """First the rules, then the address: at no moment is the host's loopback open."""
        with phases.measure("firewall"):
            await self._close_loopback()
        with phases.measure("network"):
            requests = [netlink.link_up(netlink.LOOPBACK_INDEX)]
            if wanted.address is not None:
                requests += _interface_requests(_interface_index(), wanted)
            self._kernel.netlink(requests)
            if wanted.dns:
                RESOLV_CONF.write_text(f"nameserver {wanted.dns}\n", encoding="utf-8")

    async def _close_loopback(self) -> None:
        """Once per boot: a template has the rules already."""
        if self._guarded:
            return
        finished = await run_program(self._loop, ("nft", "-f", str(NFT_RULES)), NFT_TIMEOUT)
        if finished.code:
            raise OSError(f"close the host's loopback: {finished.complaint}")
        self._guarded = True


class _Setup:
    """The checked parameters of `system.setup`."""

    def __init__(self, params: Params) -> None:
        self.disk_serial = params.text("disk_serial")
        self.time_ns = params.number("time_ns")
        self.hostname = params.text("hostname")
        self.balloon = params.flag("balloon")
        self.entropy = _entropy(params)
        self.machine_id = renew.checked_machine_id(params.optional_text("machine_id"))
        network = params.optional_mapping("network")
        self.address: str | None = None
        self.prefix = 0
        self.gateway: str | None = None
        self.dns: str | None = None
        self.mac = ""
        if network is not None:
            values = Params(network)
            self.address, _, prefix = values.text("address").partition("/")
            if not prefix.isdecimal():
                raise CallError("invalid", "network.address must be ADDRESS/PREFIX")
            self.prefix = int(prefix)
            self.gateway = values.text("gateway") if values.given("gateway") else None
            self.dns = values.text("dns") if values.given("dns") else None
            self.mac = renew.checked_mac(values.optional_text("mac"))


def _entropy(params: Params) -> bytes:
    try:
        return bytes.fromhex(params.text("entropy"))
    except ValueError as error:
        raise CallError("invalid", "entropy must be hex digits") from error


class _Phases:
    """How long each phase took, in milliseconds."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.timings: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = self._loop.time()
        yield
        self.timings[name] = round((self._loop.time() - start) * 1000, 1)


async def _settled(promise: Promise[Any]) -> None:
    """Wait, whatever comes of it."""
    done: Promise[None] = Promise()
    promise.when_settled(lambda: done.resolve(None))
    await done


def _interface_index() -> int:
    """Not by if_nametoindex(3), which opens a socket of its own."""
    return int(Path("/sys/class/net", INTERFACE, "ifindex").read_text())


def _interface_requests(index: int, wanted: _Setup) -> list[bytes]:
    requests = [netlink.set_mac(index, wanted.mac)] if wanted.mac else []
    requests += [
        netlink.link_up(index),
        netlink.add_address(index, str(wanted.address), wanted.prefix),
    ]
    if wanted.gateway is not None:
        requests.append(netlink.add_route(wanted.gateway, index))
    return requests
