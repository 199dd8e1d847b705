"""The one error of the command line: a line for a person, and the exit code."""

from __future__ import annotations

from typing import Final

FAILED: Final = 1
"""Every failed command's exit code, as runc's."""

EXEC_FAILED: Final = 255
"""`exec` that could not start its process, as runc's and crun's."""


class OciError(Exception):
    """A command has failed; nothing of what it began is left."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
