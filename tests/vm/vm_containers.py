"""Layers and containers for tests of a machine: small EROFS layers, and the agent's calls alone."""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.engine.frames import FrameParser
from wherry.images.erofs import layer_uuid, write_erofs
from wherry.images.store import ImageStore
from wherry.machine import LayerDisk
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage

_numbers = itertools.count()

_SPEC: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {"bounding": [], "effective": [], "permitted": []},
        "noNewPrivileges": False,
        "oomScoreAdj": 0,
    },
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "box",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": []}],
    "linux": {
        "namespaces": [
            {"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")
        ],
        "resources": {},
        "maskedPaths": [],
        "readonlyPaths": [],
    },
}

_POWERS = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE"]


def make_layer(directory: Path, files: Mapping[str, bytes]) -> LayerDisk:
    """A layer that holds these files, as an EROFS image in `directory`."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    diff_id = f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"
    path = directory / f"{diff_id[7:39]}.erofs"
    uuid = layer_uuid(diff_id)
    tar.seek(0)
    with path.open("wb") as out:
        write_erofs(tar, out, uuid=uuid.bytes)
    return LayerDisk(diff_id, path, str(uuid))


def busybox_layers(home: Home, image: VmImage) -> list[LayerDisk]:
    """The layers of the busybox that comes with the VM image."""
    store = ImageStore(home, Settings())
    try:
        found = store.import_layout(image.busybox, "localhost/busybox:latest")
        return [LayerDisk(it.diff_id, it.path, it.uuid) for it in store.layer_files(found)]
    finally:
        store.close()


async def run(
    link: Any, layers: Sequence[LayerDisk], *args: str, powerful: bool = False
) -> tuple[int, bytes]:
    """Run a container to its end. Returns its exit code, and what it wrote."""
    id = await start(link, layers, *args, powerful=powerful)
    return await end_of(link, id)


async def start(link: Any, layers: Sequence[LayerDisk], *args: str, powerful: bool = False) -> str:
    """Start a container; its id. `powerful`: root of the machine in all but its files."""
    id = f"{next(_numbers):064x}"
    spec = {**_SPEC, "process": {**_SPEC["process"], "args": list(args)}}
    if powerful:
        kept = [it for it in _SPEC["linux"]["namespaces"] if it["type"] not in ("network", "pid")]
        spec["linux"] = {**_SPEC["linux"], "namespaces": kept}
        spec["process"]["capabilities"] = dict.fromkeys(_SPEC["process"]["capabilities"], _POWERS)
    await link.call(
        "container.start",
        {
            "id": id,
            "spec": spec,
            "layers": [layer.diff_id for layer in layers],
            "tty": False,
            "open_stdin": False,
            "stdin_once": False,
            "files": {},
            "size": None,
        },
        timeout=60.0,
    )
    return id


async def end_of(link: Any, id: str) -> tuple[int, bytes]:
    """Wait for a container's end and remove it. Returns its exit code, and all that it wrote."""
    stream = link.open_stream()
    where = {"id": id, "stream": stream.id, "stdin": False, "from": "start", "follow": True}
    await link.call("container.attach", where)
    parser, output = FrameParser(), b""
    while data := await stream.read(65536):
        output += b"".join(frame.payload for frame in parser.feed(data))
    listed = await link.call("container.list")
    [ended] = [it for it in listed["containers"] if it["id"] == id]
    await link.call("container.remove", {"id": id})
    return ended["exit"]["exit_code"], output
