"""Wherry: Linux containers on macOS, Windows and Linux, in one small QEMU machine."""

from __future__ import annotations

__version__ = "0.1.0"
