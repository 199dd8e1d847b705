"""QEMU's command line as data: one short function per group of devices, each returns a list.

Pure: nothing is started or looked up here. How a chardev is reached is the caller's choice
(`wherry.machine.endpoints`): it says what stands behind `-chardev socket,id=NAME,`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.machine.accel import accel_option, cpu_model
from wherry.machine.find import Qemu

AGENT_PORT = "wherry.agent"
"""The name of the agent's virtio-serial port; the guest finds it in /sys/class/virtio-ports."""

DATA_DISK_SERIAL = "wherry-data"

LAYER_BUS = "layers.0"
"""The SCSI bus whose target 0 holds every layer as a LUN."""

GUEST_ADDRESS = "10.0.2.15/24"
GUEST_GATEWAY = "10.0.2.2"
GUEST_DNS = "10.0.2.3"
"""QEMU's user network (docs/system/devices/net.rst)."""

_MACHINE_TYPE = {"amd64": "q35,vmport=off,smbus=off,sata=off", "arm64": "virt,gic-version=max"}
"""What the guest has no driver for is not there to be probed."""


@dataclass(frozen=True, slots=True)
class VmSpec:
    """Everything that decides how QEMU is started. `cpu`: auto, or a model that was asked for."""

    name: str
    qemu: Qemu
    accel: str
    cpus: int
    memory_mib: int
    kernel: Path
    initrd: Path
    cmdline: str
    data_disk: Path
    cpu: str = "auto"


def qemu_argv(spec: VmSpec, chardevs: Mapping[str, str]) -> list[str]:
    """The whole command line. The guest waits for QMP's `cont`.

    Args:
        chardevs: the options of qmp, rescue, agent and serial.
    """
    return [
        *spec.qemu.command(),
        *_board(spec),
        *_processor(spec),
        *_kernel(spec),
        *_monitors(chardevs),
        *_console(chardevs),
        *_agent_port(chardevs),
        *_layer_controller(),
        *_data_disk(spec),
        *_network(),
        *_random(),
    ]


def _board(spec: VmSpec) -> list[str]:
    return [
        *("-name", f"wherry-{spec.name}"),
        *("-M", _MACHINE_TYPE[spec.qemu.arch]),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        "-S",
    ]


def _processor(spec: VmSpec) -> list[str]:
    model = cpu_model(spec.qemu.arch, spec.accel) if spec.cpu == "auto" else spec.cpu
    return [
        *("-accel", accel_option(spec.qemu, spec.accel)),
        *("-cpu", model),
        *("-smp", str(spec.cpus)),
        *("-m", str(spec.memory_mib)),
    ]


def _kernel(spec: VmSpec) -> list[str]:
    return [
        *("-kernel", os.fspath(spec.kernel)),
        *("-initrd", os.fspath(spec.initrd)),
        *("-append", spec.cmdline),
    ]


def _monitors(chardevs: Mapping[str, str]) -> list[str]:
    """Two, since QMP serves one client per socket: the engine's, and one for people."""
    return [
        *_chardev("qmp", chardevs),
        *("-mon", "chardev=qmp,mode=control"),
        *_chardev("rescue", chardevs),
        *("-mon", "chardev=rescue,mode=control"),
    ]


def _console(chardevs: Mapping[str, str]) -> list[str]:
    """A socket, no file: what nobody reads is dropped, so a guest cannot fill the host's disk."""
    return [*_chardev("serial", chardevs), "-serial", "chardev:serial"]


def _agent_port(chardevs: Mapping[str, str]) -> list[str]:
    return [
        *_chardev("agent", chardevs),
        *("-device", "virtio-serial-pci,id=ports"),
        *("-device", f"virtserialport,bus=ports.0,chardev=agent,name={AGENT_PORT}"),
    ]


def _layer_controller() -> list[str]:
    """Without plug events: the agent scans the addresses that it is told.

    The event queue has eight places. When more layers come at once Linux hears "events missed", and
    scans all 256 possible targets: 8 s under emulation, with the host's scan lock held.
    """
    return ["-device", f"virtio-scsi-pci,id={LAYER_BUS.partition('.')[0]},hotplug=off"]


def _data_disk(spec: VmSpec) -> list[str]:
    node = {
        "driver": "qcow2",
        "node-name": "data",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {
            "driver": "file",
            "filename": os.fspath(spec.data_disk),
            "discard": "unmap",
        },
    }
    return [
        *("-blockdev", json.dumps(node)),
        *("-device", f"virtio-blk-pci,drive=data,serial={DATA_DISK_SERIAL}"),
    ]


def _network() -> list[str]:
    """IPv4 only; no host port leads in, and the option ROM for network boot is left out."""
    user = f"user,id=net,ipv6=off,host={GUEST_GATEWAY},dns={GUEST_DNS}"
    return ["-netdev", user, "-device", "virtio-net-pci,netdev=net,romfile="]


def _random() -> list[str]:
    return ["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"]


def _chardev(name: str, chardevs: Mapping[str, str]) -> list[str]:
    return ["-chardev", f"socket,id={name},{chardevs[name]}"]
