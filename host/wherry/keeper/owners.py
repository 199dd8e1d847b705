"""Which process has the other end of a loopback TCP connection, as the kernel tells."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_AF_INET = 2
_TCP_TABLE_OWNER_PID_CONNECTIONS = 4
_ROW = struct.Struct("=6I")
_ERROR_INSUFFICIENT_BUFFER = 122
"""Windows, iprtrmib.h TCP_TABLE_CLASS, tcpmib.h MIB_TCPROW_OWNER_PID: state, local address and
port, remote address and port (in network order, the ports in the lower half), pid."""


@dataclass(frozen=True, slots=True)
class TcpRow:
    local_port: int
    remote_port: int
    pid: int


def owned_by(pid: int, *, peer_port: int, our_port: int) -> bool | None:
    """Whether process `pid` has the connection from 127.0.0.1:peer_port to 127.0.0.1:our_port.

    None: the kernel does not tell (Wine names no owner of sockets that were never written to).
    """
    if sys.platform == "win32":
        return judge(_windows_rows(), pid, peer_port=peer_port, our_port=our_port)
    inode = find_inode(
        Path("/proc/net/tcp").read_text(encoding="ascii"), peer_port=peer_port, our_port=our_port
    )
    return inode is not None and f"socket:[{inode}]" in _open_files(pid)


def judge(rows: Iterable[TcpRow], pid: int, *, peer_port: int, our_port: int) -> bool | None:
    """What Windows' table says of the question of `owned_by`."""
    for row in rows:
        if (row.local_port, row.remote_port) == (peer_port, our_port):
            return row.pid == pid if row.pid else None
    return False


def parse_table(table: bytes) -> Iterator[TcpRow]:
    """The rows of a MIB_TCPTABLE_OWNER_PID."""
    (count,) = struct.unpack_from("=I", table)
    for index in range(count):
        _, _, local, _, remote, pid = _ROW.unpack_from(table, 4 + index * _ROW.size)
        yield TcpRow(socket.ntohs(local & 0xFFFF), socket.ntohs(remote & 0xFFFF), pid)


def find_inode(table: str, *, peer_port: int, our_port: int) -> int | None:
    """The inode of the socket that is connected to us, in /proc/net/tcp (proc_net_tcp.rst)."""
    wanted = (f"0100007F:{peer_port:04X}", f"0100007F:{our_port:04X}")
    for line in table.splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2]) == wanted:
            return int(fields[9])
    return None


def _open_files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield os.fspath(entry.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile


def _windows_rows() -> Iterator[TcpRow]:
    if sys.platform != "win32":
        raise OSError("only on Windows")
    get_table = ctypes.WinDLL("iphlpapi").GetExtendedTcpTable
    size = ctypes.c_uint32(0)
    table = ctypes.create_string_buffer(0)
    while True:
        kind = _TCP_TABLE_OWNER_PID_CONNECTIONS
        error = get_table(table, ctypes.byref(size), False, _AF_INET, kind, 0)
        if error == 0:
            return parse_table(table.raw)
        if error != _ERROR_INSUFFICIENT_BUFFER:
            raise ctypes.WinError(error)
        table = ctypes.create_string_buffer(size.value)
