"""What the host gives a machine that must not be another's twin: what is taken and what is not."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from agent_fakes import agent_and_host

from wherry.errors import AgentError
from wherry.machine.identity import Identity, read_identity
from wherry_guest.agent.renew import checked_mac, checked_machine_id
from wherry_guest.channel import CallError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux")


def test_a_machine_id_is_32_hex_digits_or_absent() -> None:
    assert checked_machine_id("") == ""
    assert checked_machine_id("0123456789abcdef" * 2) == "0123456789abcdef" * 2
    for wrong in ("0123", "X" * 32, "0" * 33, "0" * 31 + "\n", "0" * 32 + "\n"):
        with pytest.raises(CallError, match="32 hex digits"):
            checked_machine_id(wrong)


def test_a_network_address_is_a_stations() -> None:
    assert checked_mac("") == ""
    assert checked_mac("52:54:00:12:34:56") == "52:54:00:12:34:56"
    for wrong in ("01:00:5e:00:00:01", "52:54:00:12:34", "52-54-00-12-34-56", "52:54:00:12:34:5g"):
        with pytest.raises(CallError, match=r"network\.mac"):
            checked_mac(wrong)


def test_what_a_host_draws_a_guest_takes(tmp_path: Path) -> None:
    for number in range(20):
        drawn = read_identity(tmp_path / str(number))
        assert checked_machine_id(drawn.machine_id) == drawn.machine_id
        assert checked_mac(drawn.mac) == drawn.mac
        assert read_identity(tmp_path / str(number)) == drawn
    assert len({Identity.random().mac for _ in range(20)}) == 20


def test_a_damaged_identity_is_drawn_anew(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_bytes(b"\xff\xfe")
    drawn = read_identity(file)
    assert read_identity(file) == drawn


def test_a_machine_that_is_set_up_is_nobodys_template(tmp_path: Path) -> None:
    async def main() -> None:
        async with agent_and_host(tmp_path) as host:
            with pytest.raises(AgentError, match="nobody's template") as caught:
                await host.link.call("system.prepare")
            assert caught.value.code == "conflict"

    asyncio.run(main())
