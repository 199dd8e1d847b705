"""`localhost/busybox`: a real OCI image made from Debian's busybox-static, so that the first
container needs no registry.

Deterministic: tar and JSON are written by this file's own rules, the layer is not compressed.
Formats: OCI image-spec v1.1 (image layout, manifest, config) and POSIX ustar.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .config import BUSYBOX_BINARY, BUSYBOX_PACKAGE
from .errors import FormatError
from .tree import DIRECTORY, Node, Tree, regular, symlink

IMAGE_NAME = "localhost/busybox:latest"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = """\
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
"""

_APPLET_TABLE = b"[\0[[\0"
"""How BusyBox's table of applet names begins: NUL-terminated and sorted (include/applets.src.h)."""

_APPLET = re.compile(rb"[a-z0-9_.\[-]+")

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def applets(binary: bytes) -> list[str]:
    """The names that a busybox binary answers to, read from its own table, without running it.

    Raises:
        FormatError: there is no such table.
    """
    start = binary.find(_APPLET_TABLE)
    end = binary.find(b"\0\0", start)
    if start < 0 or end < 0:
        raise FormatError(f"{BUSYBOX_BINARY} has no table of applets")
    names = []
    for name in binary[start:end].split(b"\0"):
        if not _APPLET.fullmatch(name):
            break
        names.append(name.decode())
    return names


def root_tree(binary: bytes) -> Tree:
    """The image's root file system: the binary, a link per applet, and the usual directories."""
    tree = Tree()
    for path in (
        "/bin",
        "/dev",
        "/etc",
        "/home",
        "/proc",
        "/sys",
        "/usr/bin",
        "/usr/sbin",
        "/var/www",
    ):
        tree.add(path, DIRECTORY)
    tree.add("/root", Node(DIRECTORY.mode & ~0o077))
    for path in ("/tmp", "/var/tmp"):
        tree.add(path, Node(DIRECTORY.mode | 0o1777))
    tree.add("/sbin", symlink("bin"))
    tree.add("/bin/busybox", regular(binary, 0o755))
    for applet in applets(binary):
        if applet != "busybox":
            tree.add(f"/bin/{applet}", symlink("busybox"))
    tree.add("/usr/bin/env", symlink("../../bin/busybox"))
    for name, text in (("passwd", _PASSWD), ("group", _GROUP)):
        tree.add_file(f"/etc/{name}", text.encode())
    return tree


def write_layout(directory: Path, binary: bytes, arch: str, version: str, epoch: int) -> None:
    """Write an OCI image layout with the one image into `directory`, which must exist.

    Args:
        version: the package's version, for the image's annotation.
        epoch: seconds since 1970 for every time in it.
    """
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = _layer(root_tree(binary), epoch)
    config = {
        "architecture": arch,
        "os": "linux",
        "created": created,
        "config": {"Cmd": ["sh"], "Env": [f"PATH={_PATH}"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created": created, "created_by": f"Debian {BUSYBOX_PACKAGE} {version}"}],
    }
    layer_descriptor = _blob(blobs, layer, _LAYER_TYPE)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": _blob(blobs, _json(config), _CONFIG_TYPE),
        "layers": [layer_descriptor],
        "annotations": {
            "org.opencontainers.image.title": "busybox",
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.licenses": "GPL-2.0-only",
            "org.opencontainers.image.source": "https://tracker.debian.org/pkg/busybox",
        },
    }
    descriptor = _blob(blobs, _json(manifest), _MANIFEST_TYPE)
    descriptor["platform"] = {"architecture": arch, "os": "linux"}
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": IMAGE_NAME}
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [descriptor]}
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (directory / "index.json").write_bytes(_json(index))


def _layer(tree: Tree, epoch: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, node in tree:
            if path == "/":
                continue
            info = tarfile.TarInfo(path[1:] + ("/" if node.is_dir else ""))
            info.mode, info.mtime = node.mode & 0o7777, epoch
            if node.is_dir:
                info.type = tarfile.DIRTYPE
            elif node.is_link:
                info.type, info.linkname = tarfile.SYMTYPE, node.data.decode()
            else:
                info.size = len(node.data)
            tar.addfile(info, io.BytesIO(node.data) if node.is_file else None)
    return buffer.getvalue()


def _blob(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(data)
    (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
