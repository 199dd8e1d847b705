"""An EROFS reader for tests, from the format's documentation, sharing no code with the writer.

It reads everything there is, and asserts what the format and the kernel demand on the way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096
TYPES = {
    1: 0o100000,
    2: 0o040000,
    3: 0o020000,
    4: 0o060000,
    5: 0o010000,
    6: 0o140000,
    7: 0o120000,
}
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


@dataclass
class Node:
    """An inode as stat(2) would show it, with its contents."""

    nid: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    nlink: int
    size: int
    device: int = 0
    data: bytes = b""
    holes: bool = False
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def kind(self) -> int:
        return self.mode & 0o170000

    @property
    def is_whiteout(self) -> bool:
        return self.kind == 0o020000 and self.device == 0


class Image:
    """A whole image in memory: `nodes` maps paths (b"" is the root) to inodes."""

    def __init__(self, file: BinaryIO | bytes | Path) -> None:
        if isinstance(file, Path):
            file = file.read_bytes()
        self.raw = file if isinstance(file, bytes) else file.read()
        assert len(self.raw) % BLOCK == 0
        (
            magic,
            checksum,
            compat,
            block_bits,
            slots,
            root_nid,
            self.inodes,
            *build_time,
            blocks,
            self.meta,
            _,
            self.uuid,
            _,
            self.incompat,
        ) = struct.unpack_from("<IIIBBHQQIIII16s16sI", self.raw, 1024)
        assert (magic, block_bits, slots, build_time) == (0xE0F5E1E2, 12, 0, [0, 0])
        assert compat == 3
        assert self.incompat & ~4 == 0
        assert self.raw[1024 + 84 : 1024 + 128] == bytes(44)
        assert blocks * BLOCK == len(self.raw)
        area = self.raw[1024:1028] + bytes(4) + self.raw[1032:BLOCK]
        assert checksum == crc32c(area), "super block checksum"
        assert self.raw[:1024] == bytes(1024)
        self.used: set[int] = set()
        self.nodes: dict[bytes, Node] = {}
        self._seen: dict[int, Node] = {}
        root = self._inode(root_nid)
        self._walk(b"", root, root)
        self._check_links()

    def _inode(self, nid: int) -> Node:
        if nid in self._seen:
            return self._seen[nid]
        at = self.meta * BLOCK + nid * 32
        fmt, icount, mode, reserved, size, u, _, uid, gid, mtime, ns, nlink = struct.unpack_from(
            "<HHHHQIIIIqII", self.raw, at
        )
        assert fmt & 1 and reserved == 0 and fmt < 16
        assert 0 <= ns < 10**9
        node = Node(nid, mode, uid, gid, mtime, ns, nlink, size)
        self._seen[nid] = node
        at += 64
        if icount:
            end = at + 12 + 4 * (icount - 1)
            node.xattrs = self._xattrs(at, end)
            at = end
        if node.kind in (0o100000, 0o040000, 0o120000):
            node.data, node.holes = self._data(fmt >> 1, at, size, u)
        else:
            assert size == 0 and fmt >> 1 == 0
            node.device = u
        return node

    def _data(self, layout: int, at: int, size: int, u: int) -> tuple[bytes, bool]:
        if layout == 0:
            if size:
                self._use(u, -(-size // BLOCK))
            data = self.raw[u * BLOCK :][:size]
        elif layout == 2:
            whole, rest = divmod(size, BLOCK)
            if not rest:
                whole, rest = whole - 1, BLOCK
            assert at // BLOCK == (at + rest - 1) // BLOCK, "inline data crosses a block's end"
            if whole:
                self._use(u, whole)
            data = (self.raw[u * BLOCK :][: whole * BLOCK] if whole else b"") + self.raw[at:][:rest]
        else:
            assert layout == 4 and self.incompat & 4
            return self._chunks(at, size, BLOCK << (u & 31))
        assert len(data) == size
        return data, False

    def _chunks(self, at: int, size: int, chunk: int) -> tuple[bytes, bool]:
        assert at % 4 == 0
        data = b""
        holes = False
        for index in range(-(-size // chunk)):
            (address,) = struct.unpack_from("<I", self.raw, at + 4 * index)
            want = min(chunk, size - index * chunk)
            if address == 0xFFFFFFFF:
                holes = True
                data += bytes(want)
            else:
                self._use(address, -(-want // BLOCK))
                data += self.raw[address * BLOCK :][:want]
        assert len(data) == size
        return data, holes

    def _use(self, block: int, count: int) -> None:
        blocks = set(range(block, block + count))
        assert block > 0 and (block + count) * BLOCK <= len(self.raw)
        assert not blocks & self.used, "two files share a block"
        self.used |= blocks

    def _xattrs(self, at: int, end: int) -> dict[bytes, bytes]:
        assert self.raw[at : at + 12] == bytes(12), "no shared xattrs, no filter"
        at += 12
        found: dict[bytes, bytes] = {}
        while at < end:
            length, index, value_size = struct.unpack_from("<BBH", self.raw, at)
            name = PREFIXES[index] + self.raw[at + 4 :][:length]
            assert name not in found
            found[name] = self.raw[at + 4 + length :][:value_size]
            at += 4 + length + value_size
            at += -at % 4
        assert at == end
        return found

    def _walk(self, path: bytes, directory: Node, parent: Node) -> None:
        self.nodes[path] = directory
        previous = b""
        own = {b".": directory.nid, b"..": parent.nid}
        for name, nid, kind in dirents(directory.data):
            assert name > previous, "names in order, none twice"
            assert len(name) <= 255 and b"/" not in name and b"\0" not in name
            previous = name
            if name in own:
                assert nid == own.pop(name)
                assert kind == 2
                continue
            node = self._inode(nid)
            assert node.kind == TYPES[kind]
            child = path + b"/" + name if path else name
            if kind == 2:
                self._walk(child, node, directory)
            else:
                self.nodes[child] = node
        assert not own

    def _check_links(self) -> None:
        names: dict[int, int] = {}
        for path, node in self.nodes.items():
            names[node.nid] = names.get(node.nid, 0) + 1
            if node.kind == 0o040000 and path:
                up = self.nodes[path.rpartition(b"/")[0]]
                names[up.nid] = names.get(up.nid, 0) + 1
        for node in self.nodes.values():
            own = 1 if node.kind == 0o040000 else 0
            root = 1 if node is self.nodes[b""] else 0
            assert node.nlink == names[node.nid] + own, (node, root)
        assert self.inodes == len({node.nid for node in self.nodes.values()})


def dirents(data: bytes) -> list[tuple[bytes, int, int]]:
    """(name, nid, file type) of a directory's contents, in their order."""
    found = []
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        first = struct.unpack_from("<H", block, 8)[0]
        assert first % 12 == 0 and first
        entries = [struct.unpack_from("<QHBx", block, 12 * i) for i in range(first // 12)]
        ends = [offset for _, offset, _ in entries[1:]] + [len(block)]
        for (nid, offset, kind), end in zip(entries, ends, strict=True):
            found.append((block[offset:end].rstrip(b"\0"), nid, kind))
    return found


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc
