"""All checks, in the order in which a person would want to read of them."""

from __future__ import annotations

from wherry.doctor import host, network, processes, qemu, services, storage
from wherry.doctor.finding import Check, Status

DEEP_SECONDS = 3600.0

CHECKS = (
    Check("settings", host.settings_file),
    Check("state-directory", host.state_directory),
    Check("disk-space", host.disk_space),
    Check("socket-paths", host.socket_paths),
    Check("leftovers", host.leftovers),
    Check("qemu", qemu.qemu, seconds=25.0),
    Check("accelerator", qemu.accelerator, seconds=25.0),
    Check("engines", processes.engines, seconds=30.0),
    Check("machines", processes.machines, seconds=20.0),
    Check("services", services.services, seconds=150.0),
    Check("sockets", processes.stale_sockets),
    Check("other-qemu", processes.other_qemus),
    Check("machine.json", storage.machine_configurations),
    Check("disks", storage.data_disks, seconds=60.0),
    Check("databases", storage.databases, seconds=30.0),
    Check("vm-image", storage.vm_images),
    Check("images", storage.images, seconds=30.0),
    Check("proxy", network.proxies, seconds=9.0, late=Status.WARN),
    Check("dns", network.names, seconds=9.0, late=Status.WARN),
    Check("mirror", network.mirror, seconds=14.0, late=Status.WARN),
    Check("registry", network.registry, seconds=9.0, late=Status.WARN),
)
"""Of the network's, a slow answer is a warning: what is stored works without."""

NETWORK = frozenset({"proxy", "dns", "mirror", "registry"})
