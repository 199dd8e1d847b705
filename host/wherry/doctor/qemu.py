"""Checks of QEMU and of what accelerates it, and why machines are emulated when they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from wherry.doctor.finding import Context, Finding, fail, ok, skipped, warn
from wherry.errors import QemuNotFound, WherryError
from wherry.machine.accel import candidate, host_arch, run_probe
from wherry.machine.config import read_config
from wherry.machine.diagnosis import Evidence, diagnose
from wherry.machine.find import Qemu, find_qemu

_MENDABLE = frozenset({"kvm-denied", "hvf-denied", "whpx-off", "library-missing"})
"""Causes that a user can do something about; with the others emulation is what there is."""

_NAMES = {
    "kvm": "KVM",
    "hvf": "Hypervisor.framework (hvf)",
    "whpx": "the Windows hypervisor (whpx)",
}


def qemu(context: Context) -> Iterator[Finding]:
    """For the architecture of every machine, and of this host."""
    for arch in _architectures(context):
        try:
            found = find_qemu(arch, context.settings.qemu)
        except QemuNotFound as error:
            yield fail("qemu", error.message, error.hint or "")
            continue
        version = ".".join(map(str, found.version))
        yield ok("qemu", f"QEMU {version} runs {arch} guests ({found.binary})")


def accelerator(context: Context) -> Iterator[Finding]:
    """Boots a guest of some hundred bytes that ends at once: nothing else tells."""
    arch = host_arch()
    wanted = context.settings.accel
    name = candidate(arch) if wanted == "auto" else wanted
    if wanted == "tcg":
        yield ok("accelerator", "software emulation (tcg), as the settings ask for")
        return
    if name is None:
        yield warn("accelerator", f"software emulation (tcg): none is known for {sys.platform}")
        return
    try:
        found = find_qemu(arch, context.settings.qemu)
    except QemuNotFound:
        yield skipped("accelerator", "without QEMU it cannot be tried")
        return
    yield _tried(found, name, asked_for=wanted != "auto")


def _tried(found: Qemu, name: str, *, asked_for: bool) -> Finding:
    called = _NAMES.get(name, name)
    reason = _not_usable(name)
    if reason is None:
        result = run_probe(found, name)
        if result.works:
            return ok("accelerator", f"{called} works")
        reason = result.detail
    cause = diagnose(Evidence("spawned", [reason]))
    why = f"{cause.sentence} ({reason})" if cause else reason
    fix = cause.remedy if cause else ""
    if asked_for:
        return fail("accelerator", f"{called} was asked for, but {why}", fix)
    mendable = cause is not None and cause.name in _MENDABLE
    return warn(
        "accelerator",
        f"software emulation (tcg), without {called}: {why}",
        fix if mendable else "",
    )


def _not_usable(name: str) -> str | None:
    """What can be said without trying."""
    if name != "kvm":
        return None
    if not Path("/dev/kvm").exists():
        return "there is no /dev/kvm: the processor, the firmware or the host of this host lacks it"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "Could not access KVM kernel module: Permission denied"
    return None


def _architectures(context: Context) -> list[str]:
    found = {host_arch()}
    for name in context.machines:
        try:
            config = read_config(context.home.machine(name).config)
        except WherryError:
            continue  # the check of the machine tells
        if config is not None:
            found.add(config.arch)
    return sorted(found)
