"""Choose the accelerator by booting a probe in it; remember the answer per host and QEMU.

`/dev/kvm` can open and still be useless: nothing but a guest that ran tells. The probe uses the
processor model that machines use, so it dies of what they would die of.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import MachineError
from wherry.machine import payload
from wherry.machine.find import Qemu
from wherry.osutil import atomic_write
from wherry.osutil.host import processor
from wherry.osutil.jobs import no_window

ACCELERATORS = ("kvm", "hvf", "whpx", "tcg")

_PROBE_SECONDS = 4.0
"""A good one answers within 0.1 s; a broken one, with the start of QEMU, costs less than 5 s."""

_PARALLEL_TCG = (8, 1, 0)
"""Before it a page could be translated while another processor patched it (fixed by QEMU's commit
deba78709a, "Always lock pages before translation"): guests with several processors then die now and
then of a stale breakpoint ("Oops: int3") in code that Linux patches as it runs. Nor did older ones
keep in all accesses, on an arm64 host, the order of memory that x86 guests rely on (f86e8f3d13 and
97e1576957, in 8.1 too)."""

_TCG_CACHE_MIB = 256
"""Translated code; QEMU's default of 1 GiB fills with time and makes nothing quicker here."""

_KVM = Path("/dev/kvm")

_HARDWARE = {"linux": "kvm", "darwin": "hvf", "win32": "whpx"}

_REMEDIES = {"whpx": "turn the Windows feature HypervisorPlatform on and restart"}
"""What may make an accelerator work."""

_HOST_ARCH = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class AccelChoice:
    """An accelerator, and one line for the user when it is not what he might expect (else None).

    The line is given once: not when the answer came from the cache.
    """

    name: str
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    works: bool
    detail: str
    """Why not, in one line."""


def host_arch() -> str:
    """This host's architecture in Debian's terms: amd64 or arm64."""
    machine = processor()
    try:
        return _HOST_ARCH[machine]
    except KeyError:
        raise MachineError(f"hosts of architecture {machine} are not supported") from None


def candidate(arch: str, *, system: str = sys.platform, host: str | None = None) -> str | None:
    """The hardware accelerator that this host may have for guests of `arch`; None: only tcg."""
    return _HARDWARE.get(system) if arch == (host or host_arch()) else None


def choose_accel(
    qemu: Qemu,
    requested: str,
    cache: Path,
    *,
    probe: Callable[[Qemu, str], ProbeResult] | None = None,
    hardware: str | None = None,
    device: Path = _KVM,
) -> AccelChoice:
    """The accelerator for machines of `qemu`.

    Args:
        requested: auto, or one of ACCELERATORS; one that is asked for must work.
        cache: the file that remembers probes.
        probe, hardware, device: replaced by tests.

    Raises:
        MachineError: unknown, or asked for and does not work.
    """
    if requested == "tcg":
        return AccelChoice("tcg")
    if requested not in ("auto", *ACCELERATORS):
        raise MachineError(
            f"unknown accelerator {requested!r}", hint=f"choose auto or {', '.join(ACCELERATORS)}"
        )
    hardware = hardware or candidate(qemu.arch)
    name = hardware if requested == "auto" else requested
    if name is None:
        return AccelChoice("tcg")
    result, fresh = _known_or_probed(qemu, name, cache, probe or run_probe, device)
    if result.works:
        return AccelChoice(name)
    remedy = _REMEDIES.get(name)
    if requested != "auto":
        raise MachineError(
            f"{name} does not work here: {result.detail}",
            hint=(f"{remedy}, or " if remedy else "")
            + "set the accelerator to auto or tcg (WHERRY_ACCEL)",
        )
    note = f"{name} does not work here ({result.detail}): using software emulation (tcg)"
    note += f"; to have it, {remedy}" if remedy else ""
    return AccelChoice("tcg", note if fresh else None)


def run_probe(qemu: Qemu, accel: str) -> ProbeResult:
    """Boot the probe program: 0.1 s when it works, at most _PROBE_SECONDS when it does not."""
    with tempfile.TemporaryDirectory(prefix="wherry-probe-") as directory:
        program = Path(directory, "program")
        program.write_bytes(payload.amd64_rom() if qemu.arch == "amd64" else payload.arm64_image())
        argv = [*qemu.command(), *_probe_arguments(qemu, accel, program)]
        try:
            done = subprocess.run(
                argv,
                env=qemu.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_SECONDS,
                creationflags=no_window(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ProbeResult(False, f"a test guest hung for {_PROBE_SECONDS:.0f} s")
        except OSError as error:
            return ProbeResult(False, f"{qemu.binary}: {error.strerror}")
    if qemu.arch == "amd64":
        works = done.returncode == payload.AMD64_EXIT_STATUS
    else:
        works = done.returncode == 0 and done.stdout == payload.ARM64_OUTPUT
    return ProbeResult(True, "") if works else ProbeResult(False, _reason(done))


def cpu_model(arch: str, accel: str) -> str:
    """The `-cpu` of machines and probes.

    Software emulation gets all that it can emulate (images may be built for x86-64-v3), but no
    five-level page tables and no pointer authentication: both cost on every access or call. Nor
    does it claim that `rep movsb` is quick: QEMU copies a byte at a time there, and a Linux that
    believes it moves half as much through pipes and files as with its own loops.
    """
    if accel in ("kvm", "hvf"):
        return "host"
    if arch == "amd64":
        return "max,la57=off,erms=off,fsrm=off" if accel == "tcg" else "max"
    return "max,pauth=off" if accel == "tcg" else "host"


def kernel_options(arch: str, accel: str) -> str:
    """What the guest's kernel is told besides (Linux, admin-guide/kernel-parameters.rst).

    Emulated processors speculate nothing, and every retpoline is translated code that runs: without
    the mitigations a guest does the same with less. And on a busy host an emulated timer can be too
    late for the kernel's trial of the IO-APIC, which then panics.
    """
    if accel != "tcg":
        return ""
    return "mitigations=off no_timer_check" if arch == "amd64" else "mitigations=off"


def accel_option(qemu: Qemu, accel: str) -> str:
    """The `-accel` of machines and probes.

    Emulation has a thread per processor only where that is safe. Hyper-V's x86 guests need QEMU's
    own interrupt chips.
    """
    if accel == "tcg":
        thread = "multi" if qemu.version >= _PARALLEL_TCG else "single"
        return f"tcg,thread={thread},tb-size={_TCG_CACHE_MIB}"
    if accel == "whpx" and qemu.arch == "amd64":
        return "whpx,kernel-irqchip=off"
    return accel


def _probe_arguments(qemu: Qemu, accel: str, program: Path) -> list[str]:
    cpu = cpu_model(qemu.arch, accel)
    common = ["-accel", accel_option(qemu, accel), "-cpu", cpu, "-m", "64"]
    common += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    if qemu.arch == "amd64":
        port = f"isa-debug-exit,iobase={payload.AMD64_EXIT_PORT:#x},iosize=1"
        return ["-M", "q35", *common, "-bios", os.fspath(program), "-device", port]
    return ["-M", "virt", *common, "-kernel", os.fspath(program), "-serial", "stdio"]


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "warning" not in line]
    if errors:
        return errors[0].rpartition("qemu-system-")[2].partition(": ")[2] or errors[0]
    return f"a test guest ended QEMU with status {done.returncode}"


def _known_or_probed(
    qemu: Qemu,
    accel: str,
    cache: Path,
    probe: Callable[[Qemu, str], ProbeResult],
    device: Path,
) -> tuple[ProbeResult, bool]:
    """The result, and whether it is news."""
    if accel == "kvm":
        if not device.exists():
            return ProbeResult(False, f"there is no {device}"), False
        if not os.access(device, os.R_OK | os.W_OK):
            hint = "add yourself to the group kvm"
            return ProbeResult(False, f"{device} is not yours to open; {hint}"), True
    key = _cache_key(qemu, accel)
    entries = _read_cache(cache)
    entry = entries.get(key)
    if isinstance(entry, dict) and isinstance(entry.get("works"), bool):
        return ProbeResult(entry["works"], str(entry.get("detail", ""))), False
    result = probe(qemu, accel)
    entries[key] = {"accel": accel, "works": result.works, "detail": result.detail}
    cache.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(cache, json.dumps(entries, indent=1, sort_keys=True).encode())
    return result, True


def _cache_key(qemu: Qemu, accel: str) -> str:
    status = qemu.binary.stat()
    host = platform.uname()
    parts = (
        accel,
        cpu_model(qemu.arch, accel),
        os.fspath(qemu.binary),
        str(status.st_size),
        str(status.st_mtime_ns),
        host.system,
        host.node,
        host.release,
        host.machine,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_cache(cache: Path) -> dict[str, object]:
    try:
        data = json.loads(cache.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # a damaged cache only costs a probe
    return data if isinstance(data, dict) else {}
