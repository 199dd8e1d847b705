"""The guest: PID 1, the agent and the container core. Stdlib only; importable on any OS."""

from __future__ import annotations

__version__ = "0.1.0"
