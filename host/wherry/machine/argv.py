"""QEMU's command line as data: one short function per group of devices, each returns a list.

Pure: nothing is started or looked up here. How a chardev is reached is the caller's choice
(`wherry.machine.endpoints`): it says what stands behind `-chardev socket,id=NAME,`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.machine.accel import accel_option, cpu_model
from wherry.machine.find import Qemu
from wherry.machine.vsock import Vsock

AGENT_PORT = "wherry.agent"
"""The name of the agent's virtio-serial port; the guest finds it in /sys/class/virtio-ports."""

DATA_DISK_SERIAL = "wherry-data"

DATA_DISK_NODE = "data"
"""The data disk's block node."""

LAYER_BUS = "layers.0"
"""The SCSI bus whose target 0 holds every layer as a LUN."""

GUEST_ADDRESS = "10.0.2.15/24"
GUEST_GATEWAY = "10.0.2.2"
GUEST_DNS = "10.0.2.3"
"""QEMU's user network (docs/system/devices/net.rst)."""

_MEMORY = "ram"
_BALLOON = "virtio-balloon-pci"

_MACHINE_TYPE = {"amd64": "q35,vmport=off,smbus=off,sata=off", "arm64": "virt,gic-version=max"}
"""What the guest has no driver for is not there to be probed."""


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """Guest memory that is a mapped file of its size: `shared`: what the guest writes ends up in
    it; else the file is read only, page by page as the guest touches it, and stays as it is."""

    path: Path
    shared: bool


@dataclass(frozen=True, slots=True)
class VmSpec:
    """Everything that decides how QEMU is started.

    Attributes:
        data_disk: None: of a machine that is to be a template.
        disk_bytes: the disk's size; the guest of a template knows it.
        cpu: auto, or a model that was asked for.
        memory_file: None: memory as usual.
        incoming: do not boot, wait for a saved state.
        vsock: None: it has none.
        machine: the machine type with its version, of a saved state; empty: this QEMU's newest.
        balloon: the guest tells which memory it does not use, and the host gets it back.
        generation: this machine's for ACPI's VM generation id; auto: a random one.
    """

    name: str
    qemu: Qemu
    accel: str
    cpus: int
    memory_mib: int
    kernel: Path
    initrd: Path
    cmdline: str
    data_disk: Path | None
    disk_bytes: int
    cpu: str = "auto"
    memory_file: MemoryFile | None = None
    incoming: bool = False
    generation: str = "auto"
    vsock: Vsock | None = None
    machine: str = ""
    balloon: bool = False


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
        *_random(spec),
        *_vsock(spec.vsock),
        *_balloon(spec),
    ]


def _board(spec: VmSpec) -> list[str]:
    return [
        *("-name", f"wherry-{spec.name}"),
        *("-M", f"{_machine_type(spec)},memory-backend={_MEMORY}"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        "-S",
        *(("-incoming", "defer") if spec.incoming else ()),
    ]


def _machine_type(spec: VmSpec) -> str:
    newest, comma, options = _MACHINE_TYPE[spec.qemu.arch].partition(",")
    return f"{spec.machine or newest}{comma}{options}"


def _processor(spec: VmSpec) -> list[str]:
    model = cpu_model(spec.qemu.arch, spec.accel) if spec.cpu == "auto" else spec.cpu
    return [
        *("-accel", accel_option(spec.qemu, spec.accel)),
        *("-cpu", model),
        *("-smp", str(spec.cpus)),
        *("-m", str(spec.memory_mib)),
        *("-object", _memory(spec)),
    ]


def _memory(spec: VmSpec) -> str:
    """Of one name, however it is made: a saved state knows it by that."""
    file = spec.memory_file
    if file is None and spec.vsock is not None and spec.vsock.vhost is not None:
        return f"memory-backend-memfd,id={_MEMORY},size={spec.memory_mib}M,share=on"
    if file is None:
        return f"memory-backend-ram,id={_MEMORY},size={spec.memory_mib}M"
    path = os.fspath(file.path).replace(",", ",,")
    share = "on" if file.shared else "off"
    return f"memory-backend-file,id={_MEMORY},size={spec.memory_mib}M,mem-path={path},share={share}"


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
    """Without a data disk its device is there all the same, as large, on nothing."""
    file = {"driver": "file", "filename": os.fspath(spec.data_disk or ""), "discard": "unmap"}
    disk = {"driver": "qcow2", "discard": "unmap", "detect-zeroes": "unmap", "file": file}
    nothing = {"driver": "null-co", "size": spec.disk_bytes, "read-zeroes": True}
    node = {"node-name": DATA_DISK_NODE, **(nothing if spec.data_disk is None else disk)}
    return [
        *("-blockdev", json.dumps(node)),
        *("-device", f"virtio-blk-pci,drive={DATA_DISK_NODE},serial={DATA_DISK_SERIAL}"),
    ]


def _network() -> list[str]:
    """IPv4 only; no host port leads in, and the option ROM for network boot is left out."""
    user = f"user,id=net,ipv6=off,host={GUEST_GATEWAY},dns={GUEST_DNS}"
    return ["-netdev", user, "-device", "virtio-net-pci,netdev=net,romfile="]


def _random(spec: VmSpec) -> list[str]:
    """The generation id is in ACPI tables, which the arm64 guest does not get."""
    generation = ["-device", f"vmgenid,guid={spec.generation}"]
    return [
        *("-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"),
        *(generation if spec.qemu.arch == "amd64" else ()),
    ]


def _vsock(vsock: Vsock | None) -> list[str]:
    """docs/system/devices/vhost-user.rst: a daemon's device is all of vhost-user's."""
    if vsock is None:
        return []
    if vsock.vhost is None:
        return ["-device", f"vhost-vsock-pci,guest-cid={vsock.cid}"]
    path = os.fspath(vsock.vhost).replace(",", ",,")
    return [
        *("-chardev", f"socket,id=vhost,path={path}"),
        *("-device", "vhost-user-vsock-pci,chardev=vhost"),
    ]


def _balloon(spec: VmSpec) -> list[str]:
    """Never with memory that is a file: QEMU before 8.2 punches holes into the file for what the
    guest does not use (ram_block_discard_range, softmmu/physmem.c), also into one that others map;
    later ones refuse."""
    assert spec.memory_file is None or not spec.balloon, "a template's memory is nobody's to free"
    return ["-device", f"{_BALLOON},free-page-reporting=on"] if spec.balloon else []


def has_balloon(argv: Iterable[str]) -> bool:
    """Whether a machine of this command line has one."""
    return any(word.startswith(_BALLOON) for word in argv)


def _chardev(name: str, chardevs: Mapping[str, str]) -> list[str]:
    return ["-chardev", f"socket,id={name},{chardevs[name]}"]
