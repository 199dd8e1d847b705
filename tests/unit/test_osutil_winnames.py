"""Names that Windows cannot have."""

from __future__ import annotations

import pytest

from wherry.cli import packing
from wherry.errors import InvalidInput
from wherry.osutil.winnames import trouble


@pytest.mark.parametrize("name", ["a", "console", "com10", ".config", "a.con", "ä ö", "nu l", "c$"])
def test_ordinary_names_are_fine(name: str) -> None:
    assert trouble(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("con", "'con' is a device"),
        ("NUL.tar.gz", "'NUL' is a device"),
        ("com1", "'com1' is a device"),
        ("lpt¹", "is a device"),
        ("aux .c", "'aux' is a device"),
        ("a.", "cannot end with '.'"),
        ("a ", "cannot end with ' '"),
        ("a:b", "cannot have ':'"),
        ("a\\b", "cannot have"),
        ("a\x01", "cannot have"),
        ("what?", "cannot have '?'"),
    ],
)
def test_what_windows_cannot_have_is_told(name: str, reason: str) -> None:
    assert reason in (trouble(name) or "")


def test_cp_refuses_such_names_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.sys, "platform", "linux")
    assert packing._parts("dev/con") == ("dev", "con")
    monkeypatch.setattr(packing.sys, "platform", "win32")
    with pytest.raises(InvalidInput, match="'con' is a device") as caught:
        packing._parts("dev/con")
    assert "cp CONTAINER:PATH - " in (caught.value.hint or "")
