"""The states of a machine, and which may follow which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from wherry.machine.boot import RunningQemu
from wherry.machine.guest import LinkPort
from wherry.machine.layers import LayerPool
from wherry.machine.pausing import Pauses
from wherry.machine.vitals import Vitals


class MachineState(enum.StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


ALLOWED: Mapping[MachineState, frozenset[MachineState]] = {
    MachineState.STOPPED: frozenset({MachineState.STARTING, MachineState.RUNNING}),
    MachineState.STARTING: frozenset(
        {MachineState.RUNNING, MachineState.FAILED, MachineState.STOPPED}
    ),
    MachineState.RUNNING: frozenset(
        {MachineState.STOPPING, MachineState.STOPPED, MachineState.FAILED}
    ),
    MachineState.STOPPING: frozenset({MachineState.STOPPED}),
    MachineState.FAILED: frozenset({MachineState.STARTING}),
}


@dataclass(slots=True)
class Running:
    """What there is while a guest runs."""

    vm: RunningQemu
    link: LinkPort
    layers: LayerPool
    pauses: Pauses
    vitals: Vitals = field(init=False)
    guest_ended: str | None = None
    """Why, in QEMU's word (ShutdownCause), once it has."""

    def __post_init__(self) -> None:
        self.vitals = Vitals(self.vm.qmp, self.vm.record.identity, self.link)
