"""Where the figures come from: one line about this host."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import wherry
from wherry.machine.accel import choose_accel, host_arch
from wherry.machine.find import find_qemu
from wherry.osutil import total_memory

from . import ROOT


def described(rounds: int, probes: Path) -> str:
    """Date, version, host, QEMU with its accelerator, Python and rounds.

    Args:
        probes: where the machine keeps what it found out about accelerators.
    """
    qemu = find_qemu(host_arch(), None)
    version = ".".join(str(part) for part in qemu.version)
    accel = choose_accel(qemu, "auto", probes).name
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with Wherry {wherry.__version__}{_commit()}: "
        f"{_processor()}, {os.cpu_count()} CPUs, {total_memory() / (1 << 30):.0f} GiB, "
        f"Linux {platform.release()}, QEMU {version} ({accel}), "
        f"Python {platform.python_version()}; {rounds} rounds."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
