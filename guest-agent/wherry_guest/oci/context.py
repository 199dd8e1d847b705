"""What every command gets: the store, the log, the kernel, how cgroups are to be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wherry_guest.core.plan import Layout

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel
    from wherry_guest.oci.log import Log
    from wherry_guest.oci.store import Store


@dataclass(frozen=True, slots=True)
class Context:
    """`cgroups`: False with `--cgroup-manager=disabled`."""

    store: Store
    log: Log
    kernel: Kernel
    cgroups: bool = True

    @property
    def layout(self) -> Layout:
        """A process gets what we have where its spec is silent, as the specification says."""
        return Layout(open_files=None, oom_score_adj=None, basic_devices=True)
