"""rtnetlink requests against the bytes that ip(8) sends, and terminal and swap structures."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest.core.netlink import add_address, add_route, link_up, set_mac
from wherry_guest.core.syscalls import netlink_error
from wherry_guest.core.tty import window_size
from wherry_guest.init import INIT_SCRIPT, last_line, swap_header


def attributes(message: bytes, header: int) -> dict[int, bytes]:
    """The attributes after the family's header, each padded to four bytes."""
    found = {}
    at = 16 + header
    while at < len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        found[kind] = message[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def test_link_up() -> None:
    message = link_up(1)
    assert struct.unpack_from("=IHH", message) == (32, 16, 5)
    assert struct.unpack_from("=BxHiII", message, 16) == (0, 0, 1, 1, 1)


def test_link_mtu_is_an_attribute() -> None:
    assert attributes(link_up(2, mtu=1400), 16) == {4: struct.pack("=I", 1400)}


def test_a_hardware_address_is_an_attribute() -> None:
    request = set_mac(2, "02:00:00:00:00:01")
    assert request[32:] == struct.pack("=HH6s2x", 10, 1, b"\2\0\0\0\0\1")
    with pytest.raises(ValueError, match="not a hardware address"):
        set_mac(2, "02:00")


def test_address() -> None:
    message = add_address(2, "10.0.2.15", 24)
    assert struct.unpack_from("=BBBBI", message, 16) == (2, 24, 0, 0, 2)
    assert attributes(message, 8) == {1: bytes([10, 0, 2, 15]), 2: bytes([10, 0, 2, 15])}


def test_ipv6_address() -> None:
    message = add_address(2, "fec0::15", 64)
    assert message[16] == 10 and len(attributes(message, 8)[1]) == 16


def test_default_route() -> None:
    message = add_route("10.0.2.2", 2)
    assert struct.unpack_from("=BBBBBBBBI", message, 16) == (2, 0, 0, 0, 254, 3, 0, 1, 0)
    assert attributes(message, 12) == {5: bytes([10, 0, 2, 2]), 4: struct.pack("=I", 2)}


def test_route_to_a_network_on_the_link() -> None:
    message = add_route(None, 2, "192.0.2.0", 24)
    assert message[17] == 24 and message[22] == 253
    assert attributes(message, 12)[1] == bytes([192, 0, 2, 0])


def test_route_to_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a gateway or a destination"):
        add_route(None, 2)


@given(st.integers(1, 1000), st.ip_addresses(), st.integers(0, 32))
def test_lengths_in_requests_are_true(index: int, address: object, prefix: int) -> None:
    for message in (add_address(index, str(address), prefix), add_route(str(address), index)):
        assert struct.unpack_from("=I", message)[0] == len(message) and len(message) % 4 == 0


def test_acknowledgement_carries_the_error() -> None:
    header = struct.pack("=IHHII", 36, 2, 0, 1, 0)
    assert netlink_error(header + struct.pack("=i", -17)) == 17
    assert netlink_error(header + struct.pack("=i", 0)) == 0
    with pytest.raises(OSError, match="instead of an acknowledgement"):
        netlink_error(struct.pack("=IHHII", 16, 3, 0, 1, 0))


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_window_sizes_fit_their_structure(rows: int, columns: int) -> None:
    found = struct.unpack("HHHH", window_size(rows, columns))
    assert found == (min(rows, 65535), min(columns, 65535), 0, 0)


def test_swap_header_is_what_mkswap_writes() -> None:
    header = swap_header(4096, 1000)
    assert len(header) == 4096 and header.endswith(b"SWAPSPACE2")
    assert struct.unpack_from("=II", header, 1024) == (1, 999)


def test_init_script_runs_this_packages_main() -> None:
    assert INIT_SCRIPT.startswith("#!/usr/bin/python3 -IBS\n")
    compile(INIT_SCRIPT, "/init", "exec")


def test_last_words_name_the_error_and_the_line() -> None:
    try:
        swap_header(-1, 0)
    except Exception as error:  # noqa: BLE001 - whichever it is, it must be told
        words = last_line(error)
    assert words.startswith("ValueError: ") and "init.py:" in words
