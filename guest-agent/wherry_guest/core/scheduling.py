"""`process.scheduler`, `process.ioPriority` and `linux.personality`: values, parsing, steps.

Rules: parsing is pure; the steps run while the process still has its rights (CAP_SYS_NICE), and
what they set survives the exec. sched(7), ioprio_set(2), personality(2).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.fields import Fields, SpecError

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

POLICIES: Final = {
    # uapi/linux/sched.h
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4,
    "SCHED_IDLE": 5, "SCHED_DEADLINE": 6,
}  # fmt: skip
SCHEDULER_FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20, "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
"""uapi/linux/ioprio.h"""

DOMAINS: Final = {"LINUX": 0x0000, "LINUX32": 0x0008}
"""uapi/linux/personality.h"""

_IO_CLASS_SHIFT: Final = 13
_IO_PRIORITIES: Final = 8
_SCHED_ATTR_SIZE: Final = 48  # SCHED_ATTR_SIZE_VER0, uapi/linux/sched/types.h


@dataclass(frozen=True, slots=True)
class Scheduler:
    """`process.scheduler`; times are nanoseconds, `flags` the kernel's bits."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0

    def attributes(self) -> bytes:
        """struct sched_attr, uapi/linux/sched/types.h."""
        head = struct.pack("=IIQ", _SCHED_ATTR_SIZE, POLICIES[self.policy], self.flags)
        times = (self.runtime, self.deadline, self.period)
        return head + struct.pack("=iIQQQ", self.nice, self.priority, *times)


@dataclass(frozen=True, slots=True)
class IoPriority:
    """`process.ioPriority`; priority 0 is the highest, 7 the lowest."""

    kind: str
    priority: int

    def value(self) -> int:
        """The kernel's number: class and priority in one."""
        return IO_CLASSES[self.kind] << _IO_CLASS_SHIFT | self.priority


def parse_scheduler(scheduler: Fields) -> Scheduler | None:
    """`process.scheduler`; None where it is absent."""
    policy = scheduler.get("policy", str, "")
    if not policy:
        scheduler.finish()
        return None
    if policy not in POLICIES:
        raise SpecError(f"{scheduler.name('policy')} {policy!r} is not a scheduling policy")
    flags = 0
    for name in scheduler.strings("flags"):
        if name not in SCHEDULER_FLAGS:
            raise SpecError(f"{scheduler.name('flags')} has {name!r}, which is no flag")
        flags |= SCHEDULER_FLAGS[name]
    parsed = Scheduler(
        policy,
        nice=scheduler.integer("nice", 0, -20, 19),
        priority=scheduler.integer("priority", 0, 0, 99),
        flags=flags,
        runtime=scheduler.integer("runtime", 0, 0),
        deadline=scheduler.integer("deadline", 0, 0),
        period=scheduler.integer("period", 0, 0),
    )
    scheduler.finish()
    return parsed


def parse_io_priority(item: Fields) -> IoPriority | None:
    """`process.ioPriority`; None where it is absent."""
    kind = item.get("class", str, "")
    if not kind:
        item.finish()
        return None
    if kind not in IO_CLASSES:
        raise SpecError(f"{item.name('class')} {kind!r} is not a class of I/O priorities")
    parsed = IoPriority(kind, item.integer("priority", 0, 0, _IO_PRIORITIES - 1))
    item.finish()
    return parsed


def parse_personality(item: Fields) -> str | None:
    """`linux.personality`'s domain; None where it is absent."""
    domain = item.get("domain", str, "")
    if item.strings("flags"):
        raise SpecError(f"{item.name('flags')} is not supported: the specification has none yet")
    item.finish()
    if domain and domain not in DOMAINS:
        raise SpecError(f"{item.name('domain')} {domain!r} is neither LINUX nor LINUX32")
    return domain or None


@dataclass(frozen=True, slots=True)
class SetScheduler:
    scheduler: Scheduler

    def describe(self) -> str:
        return f"set the scheduler to {self.scheduler.policy} (process.scheduler)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.sched_setattr(self.scheduler.attributes())


@dataclass(frozen=True, slots=True)
class SetIoPriority:
    priority: IoPriority

    def describe(self) -> str:
        it = self.priority
        return f"set the I/O priority to {it.kind} {it.priority} (process.ioPriority)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.ioprio_set(self.priority.value())


@dataclass(frozen=True, slots=True)
class SetPersonality:
    domain: str

    def describe(self) -> str:
        return f"set the execution domain to {self.domain} (linux.personality)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.personality(DOMAINS[self.domain])
