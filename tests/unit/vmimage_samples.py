"""Small packages, kernels, indexes and a signed mirror: enough to build a whole image."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pysequoia

from wherry_image.archive import SUITES, Package, Suite

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def zstd_compress(data: bytes) -> bytes:
    return zstd.compress(data)


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zstd_compress,
    "": bytes,
}


def tar(files: Mapping[str, bytes | str], order: Iterable[str] | None = None) -> bytes:
    """A tar of `files`: bytes are a file's content, `-> x` a symlink, `=> x` a hard link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in order or files:
            content = files[path]
            info = tarfile.TarInfo("." + path)
            info.mode = 0o755 if "/bin/" in path or "/sbin/" in path else 0o644
            if isinstance(content, str):
                arrow, _, target = content.partition(" ")
                info.type = tarfile.SYMTYPE if arrow == "->" else tarfile.LNKTYPE
                info.linkname = target
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def ar(members: Iterable[tuple[str, bytes]]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


def deb(
    files: Mapping[str, bytes | str],
    compression: str = ".xz",
    order: Iterable[str] | None = None,
    control: Mapping[str, bytes | str] | None = None,
) -> bytes:
    """A package; without `control` (path to contents) its control archive is none."""
    data = _COMPRESS[compression](tar(files, order))
    about = b"odd" if control is None else lzma.compress(tar(control))
    return ar(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", about),
            (f"data.tar{compression}", data),
        ]
    )


def module(**modinfo: str | list[str]) -> bytes:
    """A kernel module: an ELF file with a `.modinfo` section."""
    entries = b""
    for key, value in modinfo.items():
        for one in [value] if isinstance(value, str) else value:
            entries += f"{key}={one}".encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64
    table = start + len(entries) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, start, len(entries), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, start + len(entries), len(names), 0, 0, 1, 0),
    ]
    return header + entries + names + b"".join(sections)


def program(*needed: str) -> bytes:
    """A dynamically linked ELF file that needs the libraries `needed`."""
    strings, offsets = b"\0", []
    for name in needed:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    start, base = 64 + 2 * 56, 0x400000
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets)
    dynamic += struct.pack("<qQ", 5, base + start) + bytes(16)
    size = start + len(strings) + len(dynamic)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)
    at = start + len(strings)
    dyn = struct.pack("<IIQQQQQQ", 2, 6, at, base + at, base + at, len(dynamic), len(dynamic), 8)
    return header + load + dyn + strings + dynamic


def kernel_files(version: str = "6.12.1-cloud") -> dict[str, bytes | str]:
    root = f"/usr/lib/modules/{version}"
    return {
        f"/boot/vmlinuz-{version}": b"a kernel, plain",
        f"{root}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        f"{root}/modules.builtin.modinfo": b"ext4.alias=fs-ext4\0crc32c_generic.alias=crc32c\0",
        f"{root}/kernel/virtio_scsi.ko.xz": lzma.compress(module(depends="scsi_mod")),
        f"{root}/kernel/scsi_mod.ko.xz": lzma.compress(module(depends="", alias="scsi:t-*")),
        f"{root}/kernel/erofs.ko.xz": lzma.compress(module(depends="", softdep="pre: crc32c")),
        f"{root}/kernel/unused.ko.xz": lzma.compress(module(depends="")),
    }


BUSYBOX = b"\x7fELF\x02\x01code [\0[[\0ash\0busybox\0cat\0sh\0\0more"

CONFIG = """\
kernel:
  image: deb:linux-image-cloud-{arch}
  cmdline: console={console} quiet
init:
  - deb:tool
files:
  - path: etc/modules-load.d/vm.conf
    contents: |
      # disks
      virtio_scsi
      ext4
  - path: etc/modules-available.d/vm.conf
    contents: "erofs\\n"
  - path: etc/motd
    contents: hello
    mode: "0600"
"""


@dataclass
class Archive:
    """A Debian mirror in a directory, signed with a key of its own."""

    root: Path
    key: Any = field(default_factory=lambda: pysequoia.Tsk.generate("Test <t@example.org>"))
    date: str = "Mon, 05 Jan 2026 12:00:00 UTC"
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return (self.root / "debian").as_uri()

    @property
    def keyring(self) -> bytes:
        return bytes(self.key.extract_certificate())

    def add(self, name: str, version: str, content: bytes, depends: str = "") -> Package:
        path = f"pool/main/{name}_{version}_amd64.deb"
        file = self.root / "debian" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.packages[name] = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\n"
            f"Filename: {path}\nSize: {len(content)}\nSHA256: {digest}\n"
        ).replace("Depends: \n", "")
        return Package(name, version, "amd64", digest, len(content), f"debian/{path}", depends)

    def publish(self, suites: Sequence[Suite] = SUITES, **fields: str) -> None:
        """Write the signed index of every suite; only the first has packages."""
        for suite in suites:
            text = "\n".join(self.packages.values()) if suite is suites[0] else ""
            index = lzma.compress(text.encode())
            directory = self.root / suite.archive / "dists" / suite.name
            (directory / "main/binary-amd64").mkdir(parents=True, exist_ok=True)
            (directory / "main/binary-amd64/Packages.xz").write_bytes(index)
            release = {"Codename": suite.name, "Date": self.date, **fields}
            lines = [f"{key}: {value}" for key, value in release.items()]
            digest = hashlib.sha256(index).hexdigest()
            lines += ["SHA256:", f" {digest} {len(index)} main/binary-amd64/Packages.xz"]
            (directory / "InRelease").write_bytes(self.sign("\n".join(lines) + "\n"))

    def sign(self, text: str) -> bytes:
        mode = pysequoia.SignatureMode.CLEAR
        return bytes(pysequoia.sign(self.key.signer(), text.encode(), mode=mode))


def fill(archive: Archive, tool: bytes = b"tool 1", version: str = "1.0") -> None:
    """The packages that `CONFIG` asks for."""
    image = "linux-image-6.12.1-cloud"
    archive.add("linux-image-cloud-amd64", "6.12.1-1", deb({}), f"{image} (= 6.12.1-1)")
    archive.add(image, "6.12.1-1", deb(kernel_files()), "kmod, linux-base (>= 4)")
    archive.add("busybox-static", "1:1.37-1", deb({"/usr/bin/busybox": BUSYBOX}))
    library = "/usr/lib/x86_64-linux-gnu/libtool.so.1.2"
    link = "/usr/lib/x86_64-linux-gnu/libtool.so.1"
    archive.add(
        "libtool1", "1.2-1", deb({library: b"lib", link: "-> libtool.so.1.2"}, compression=".zst")
    )
    files: dict[str, bytes | str] = {
        "/usr/bin/tool": program("libtool.so.1") + tool,
        "/usr/bin/same": "=> ./usr/bin/tool",
        "/usr/share/doc/tool/copyright": b"free",
        "/usr/share/man/man1/tool.1.gz": b"man",
        "/etc/tool.conf": b"x=1\n",
    }
    archive.add("tool", version, deb(files), "libtool1 (>= 1.2), perl | tool-helper")
    archive.publish()
