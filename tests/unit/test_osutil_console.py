"""Windows' console, played: modes come and go, what is typed arrives whole, sizes are looked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import eventually

from wherry.osutil import terminal
from wherry.osutil.console import ConsoleInput, raw_console, utf8_output

IN, OUT, FILE = 3, 7, 9
COOKED, WRITTEN = 0x1F7, 0x3
"""What a new console has."""


class FakeKernel32:
    """A console: two handles with modes, a code page, and somebody who types."""

    def __init__(self, *typed: str, known: int = 0xFFF) -> None:
        self.modes = {IN: COOKED, OUT: WRITTEN}
        self.page = 437
        self.known = known
        self.typed = "".join(typed)
        self.pieces = list(typed)

    def mode(self, handle: int) -> int | None:
        return self.modes.get(handle)

    def set_mode(self, handle: int, mode: int) -> bool:
        if mode & ~self.known:
            return False
        self.modes[handle] = mode
        return True

    def read(self, handle: int, units: int) -> str:
        assert handle == IN
        piece = self.pieces.pop(0)
        if len(piece) > units:
            self.pieces.insert(0, piece[units:])
        return piece[:units]

    def output_code_page(self) -> int:
        return self.page

    def set_output_code_page(self, page: int) -> None:
        self.page = page


def test_raw_mode_hands_on_every_key_and_obeys_sequences() -> None:
    console = FakeKernel32()
    with raw_console(console, IN, OUT):
        assert console.modes == {IN: COOKED & ~0x7 | 0x200, OUT: WRITTEN | 0x4 | 0x8}
    assert console.modes == {IN: COOKED, OUT: WRITTEN}


def test_the_modes_come_back_after_a_failure() -> None:
    console = FakeKernel32()
    with pytest.raises(KeyboardInterrupt), raw_console(console, IN, OUT):
        raise KeyboardInterrupt
    assert console.modes == {IN: COOKED, OUT: WRITTEN}


def test_a_console_that_knows_no_sequences_is_raw_all_the_same() -> None:
    console = FakeKernel32(known=0x1FF & ~0xC | 0x4)
    with raw_console(console, IN, OUT):
        assert console.modes[IN] == COOKED & ~0x7
        assert console.modes[OUT] == WRITTEN | 0x4
    assert console.modes == {IN: COOKED, OUT: WRITTEN}


def test_what_is_no_console_is_left_alone() -> None:
    console = FakeKernel32()
    with raw_console(console, FILE, FILE), utf8_output(console, FILE):
        assert console.modes == {IN: COOKED, OUT: WRITTEN}
        assert console.page == 437


def test_output_is_utf8_while_we_write() -> None:
    console = FakeKernel32()
    with utf8_output(console, FILE, OUT):
        assert console.page == 65001
    assert console.page == 437


def units(text: str) -> str:
    """As Windows has it: a letter beyond the first 65536 is two."""
    data = text.encode("utf-16-le")
    return "".join(chr(data[at] | data[at + 1] << 8) for at in range(0, len(data), 2))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(3, 40))
def test_what_is_typed_arrives_as_utf8_whatever_a_read_holds(text: str, limit: int) -> None:
    console = FakeKernel32(units(text))
    console.modes[IN] = 0x200  # raw
    source = ConsoleInput(console, IN)
    got = b""
    while len(got) < len(text.encode()):
        piece = source.read(limit)
        assert 0 < len(piece) <= max(limit, 6)
        got += piece
    assert got.decode() == text


def test_a_line_ends_as_in_linux_and_ctrl_z_ends_the_input() -> None:
    source = ConsoleInput(FakeKernel32("ls\r\n", "", "\x1a\r\n"), IN)
    assert source.read(100) == b"ls\n"
    assert source.read(100) == b""


def test_in_raw_mode_ctrl_z_and_return_are_keys() -> None:
    console = FakeKernel32("\x1a", "\r", "\x03", "\x1b[A")
    with raw_console(console, IN, OUT):
        source = ConsoleInput(console, IN)
        assert [source.read(100) for _ in range(4)] == [b"\x1a", b"\r", b"\x03", b"\x1b[A"]


def test_a_new_size_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows tells nobody: the size is looked at."""
    monkeypatch.setattr(terminal, "_RESIZE_POLL_SECONDS", 0.001)
    sizes = [(24, 80)]
    monkeypatch.setattr(terminal, "terminal_size", lambda _descriptor: sizes[-1])
    told: list[tuple[int, int]] = []
    with terminal._polled_resize(1, lambda rows, columns: told.append((rows, columns))):
        for new in ((30, 100), (50, 132)):
            sizes.append(new)
            eventually(f"the size {new} is told", lambda: told[-1:] == sizes[-1:])
    assert told == [(30, 100), (50, 132)]
