"""The tables of system calls, compared with the kernel's own headers (package linux-libc-dev).

Debian's package has those of every architecture, and comes signed from where the VM's packages do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wherry_guest.core.syscall_numbers import numbers
from wherry_image.deb import data_members
from wherry_image.fetch import fetch_packages
from wherry_image.index import resolve_lock
from wherry_image.mirror import Mirror, mirrors

pytestmark = pytest.mark.contract

HEADERS = {
    "x86_64": "x86/asm/unistd_64.h",
    "x86": "x86/asm/unistd_32.h",
    "x32": "x86/asm/unistd_x32.h",
    "aarch64": "arm64/asm/unistd_64.h",
    "arm": "arm/asm/unistd-eabi.h",
}
DEFINITION = re.compile(
    r"#define __NR_(\w+)\s+\(?(?:__X32_SYSCALL_BIT|__NR_SYSCALL_BASE)?[ +]*(\d+)"
)
PRIVATE = re.compile(r"#define __ARM_NR_(\w+)\s+\(__ARM_NR_BASE\+(\d+)\)")
ARM_BASE = 0x0F0000
"""arch/arm/include/uapi/asm/unistd.h: __ARM_NR_BASE, above the calls of all architectures."""


@pytest.fixture(scope="module")
def headers(test_cache: Path) -> Mapping[str, str]:
    """The headers' texts, by their paths below uapi/."""

    def sources() -> list[Mirror]:
        return mirrors(None, lock.timestamp)

    lock = resolve_lock("amd64", ["linux-libc-dev"], mirrors(None, datetime.now(UTC))).lock
    files = fetch_packages(lock.packages, test_cache / "packages", sources)
    prefix = "/usr/lib/linux/uapi/"
    return {
        member.path.removeprefix(prefix): member.data.decode()
        for member in data_members(files["linux-libc-dev"].read_bytes())
        if member.path.startswith(prefix) and "unistd" in member.path and member.kind == "file"
    }


@pytest.mark.parametrize("architecture", list(HEADERS))
def test_every_call_has_the_number_that_the_kernel_gives_it(
    headers: Mapping[str, str], architecture: str
) -> None:
    text = headers[HEADERS[architecture]]
    kernels = {name: int(number) for name, number in DEFINITION.findall(text)}
    if architecture == "arm":
        private = PRIVATE.findall(headers["arm/asm/unistd.h"])
        kernels |= {name: ARM_BASE + int(number) for name, number in private}
    ours = numbers(architecture)
    assert len(kernels) > 300
    assert {name: ours.get(name) for name in kernels} == kernels
    newer = {name: number for name, number in ours.items() if name not in kernels}
    assert not set(newer.values()) & set(kernels.values()), newer
