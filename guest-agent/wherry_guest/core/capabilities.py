"""Linux capabilities: names, masks, and the steps that give a process its five sets.

Order matters (capabilities(7)): the bounding set is dropped while CAP_SETPCAP is still there; the
user is changed with keepcaps, so that permitted survives; then the final sets are put, and ambient
last, because it may hold only what is permitted and inheritable.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.syscalls import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
)

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

NAMES: Final = (
    # uapi/linux/capability.h, in the order of their numbers
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
    "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
    "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
_NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}


@dataclass(frozen=True, slots=True)
class CapabilitySets:
    """`process.capabilities` as masks: bit n is capability number n."""

    bounding: int = 0
    effective: int = 0
    inheritable: int = 0
    permitted: int = 0
    ambient: int = 0


def mask_of(names: Iterable[str]) -> int:
    """The mask of capability names (CAP_CHOWN …); KeyError for a name that is none."""
    mask = 0
    for name in names:
        mask |= 1 << _NUMBERS[name]
    return mask


@dataclass(frozen=True, slots=True)
class DropBounding:
    """Leave only `keep` in the bounding set."""

    keep: int

    def describe(self) -> str:
        return "limit the capability bounding set"

    def execute(self, kernel: Kernel, state: State) -> None:
        for number in range(len(NAMES)):
            if self.keep >> number & 1:
                continue
            try:
                kernel.prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # this kernel has no capability of this number, nor any above
                raise


@dataclass(frozen=True, slots=True)
class SetCapabilities:
    """Put the final sets; after the user was changed.

    `kept` stays permitted for a later step, who gives it up.
    """

    sets: CapabilitySets
    kept: int = 0

    def describe(self) -> str:
        return "set capabilities (process.capabilities)"

    def execute(self, kernel: Kernel, state: State) -> None:
        sets = self.sets
        kernel.capset(sets.effective, sets.permitted | self.kept, sets.inheritable)
        kernel.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(len(NAMES)):
            if sets.ambient >> number & 1:
                kernel.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
