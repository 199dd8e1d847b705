"""rtnetlink by hand: links, addresses and routes as request bytes, and the step for loopback.

Rules: building is pure; sending is `Kernel.netlink`, which waits for each acknowledgement. Formats:
rtnetlink(7), uapi/linux/rtnetlink.h, if_link.h, if_addr.h.

    Kernel().netlink([link_up(2), add_address(2, "10.0.2.15", 24), add_route("10.0.2.2", 2)])
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

LOOPBACK_INDEX: Final = 1
"""The loopback device's index in every network namespace (include/net/net_namespace.h)."""

_RTM_NEWLINK: Final = 16
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_REPLACE: Final = 0x100
_NLM_F_CREATE: Final = 0x400
_IFF_UP: Final = 0x1
_IFLA_ADDRESS: Final = 1
_IFLA_MTU: Final = 4
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RT_TABLE_MAIN: Final = 254
_RTPROT_BOOT: Final = 3
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_LINK: Final = 253
_RTN_UNICAST: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10


@dataclass(frozen=True, slots=True)
class LoopbackUp:
    """Bring the loopback device of the new network namespace up."""

    def describe(self) -> str:
        return "bring the loopback device up"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.netlink([link_up(LOOPBACK_INDEX)])


def link_up(index: int, mtu: int | None = None) -> bytes:
    """Bring the link number `index` (socket.if_nametoindex) up, and set its MTU."""
    # struct ifinfomsg: family, pad, type, index, flags, change
    body = struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP)
    if mtu is not None:
        body += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
    return _request(_RTM_NEWLINK, 0, body)


def set_mac(index: int, mac: str) -> bytes:
    """Give a link that is down another hardware address.

    Raises:
        ValueError: not six bytes in hex.
    """
    address = bytes.fromhex(mac.replace(":", ""))
    if len(address) != 6:
        raise ValueError(f"{mac!r} is not a hardware address")
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    return _request(_RTM_NEWLINK, 0, body + _attribute(_IFLA_ADDRESS, address))


def add_address(index: int, address: str, prefix: int) -> bytes:
    """Give the link an address; one that it has already is fine."""
    packed = _packed(address)
    # struct ifaddrmsg: family, prefixlen, flags, scope, index
    body = struct.pack("=BBBBI", _family(packed), prefix, 0, _RT_SCOPE_UNIVERSE, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    return _request(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, body)


def add_route(
    gateway: str | None, index: int, destination: str | None = None, prefix: int = 0
) -> bytes:
    """Route `destination`/`prefix` (None: everything) by `gateway` (None: on the link itself)."""
    known = gateway or destination
    if known is None:
        raise ValueError("a route needs a gateway or a destination")
    scope = _RT_SCOPE_LINK if gateway is None else _RT_SCOPE_UNIVERSE
    length = 0 if destination is None else prefix
    # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    head = (_family(_packed(known)), length, 0, 0, _RT_TABLE_MAIN)
    body = struct.pack("=BBBBBBBBI", *head, _RTPROT_BOOT, scope, _RTN_UNICAST, 0)
    if destination is not None:
        body += _attribute(_RTA_DST, _packed(destination))
    if gateway is not None:
        body += _attribute(_RTA_GATEWAY, _packed(gateway))
    body += _attribute(_RTA_OIF, struct.pack("=I", index))
    return _request(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, body)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _family(packed: bytes) -> int:
    return _AF_INET if len(packed) == 4 else _AF_INET6


def _request(kind: int, flags: int, body: bytes) -> bytes:
    flags |= _NLM_F_REQUEST | _NLM_F_ACK
    # struct nlmsghdr: length, type, flags, sequence, port; the socket is used for one at a time
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)
