"""crun and runc in the very same VM: in a privileged container made of a Debian image.

A shell in it reads what to run from its standard input and answers with microseconds, one line per
run. Bundle and root file system are prepared and lie in a tmpfs; the shell first moves itself out
of the way, since a cgroup with processes may not give controllers to its children.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from wherry.engine.frames import FrameParser
from wherry.machine import LayerDisk

from .guest import GuestContainers, bundle_config, container
from .tars import below

ANSWER_SECONDS = 120.0
PACKAGES = ("crun", "runc", "busybox-static")

_SCRIPT = b"""\
set -eu
mount -t tmpfs -o mode=755 tmpfs /run
cp -a /bench/. /run/
cd /sys/fs/cgroup
mkdir shell
echo 0 > shell/cgroup.procs
echo +cpu +memory +pids > cgroup.subtree_control
cd /run
for runtime in crun runc; do
    $runtime run --detach --bundle /run/keeper kept-$runtime </dev/null >/run/said 2>&1 || {
        cat /run/said
        exit 1
    }
done
echo ready
number=0
while read -r runtime what count; do
    for ((i = 0; i < count; i++)); do
        number=$((number + 1))
        case $what in
            run) command=($runtime run --bundle /run/bundle b$number) ;;
            exec) command=($runtime exec kept-$runtime true) ;;
        esac
        begun=${EPOCHREALTIME/./}
        "${command[@]}" </dev/null >/dev/null
        ended=${EPOCHREALTIME/./}
        echo $((ended - begun))
    done
done
"""


class Reference:
    """The container with the other runtimes."""

    def __init__(self, guest: GuestContainers, layers: list[LayerDisk]) -> None:
        self._guest = guest
        self._layers = layers
        self._container = container("bash", "/bench/serve.sh", Privileged=True, OpenStdin=True)
        self._stream: Any = None
        self._parser = FrameParser()
        self._lines: list[str] = []
        self._rest = ""

    async def start(self) -> None:
        """Raises AssertionError, with what it wrote, when it does not come up."""
        await self._guest.start(self._container, self._layers)
        self._stream = self._guest.link.open_stream()
        await self._guest.link.call(
            "container.attach",
            {
                "id": self._container.id,
                "stream": self._stream.id,
                "stdin": True,
                "from": "start",
                "follow": True,
            },
        )
        line = await self._line()
        assert line == "ready", line

    async def measure(self, runtime: str, what: str, count: int) -> list[float]:
        """The seconds of `count` runs of `crun` or `runc`; `what`: run or exec."""
        await self._stream.write(f"{runtime} {what} {count}\n".encode())
        return [int(await self._line()) / 1e6 for _ in range(count)]

    async def end(self) -> None:
        await self._guest.end(self._container)

    async def _line(self) -> str:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not self._lines:
                data = await self._stream.read(65536)
                if not data:
                    raise AssertionError(f"the reference's shell has ended: {self._rest}")
                for frame in self._parser.feed(data):
                    self._rest += frame.payload.decode(errors="replace")
                *self._lines, self._rest = self._rest.split("\n")
        return self._lines.pop(0)


def bundle_layer(busybox: Path, target: Path) -> Path:
    """A layer tar with the shell's script, the bundle and its root file system."""
    keeper = {**bundle_config("sleep", "1000000"), "root": {"path": "/run/bundle/rootfs"}}
    files = {
        "bench/serve.sh": _SCRIPT,
        "bench/bundle/config.json": json.dumps(bundle_config("true")).encode(),
        "bench/keeper/config.json": json.dumps(keeper).encode(),
    }
    return below(busybox, "bench/bundle/rootfs", files, target)
