"""A failed start in the words of Docker's engine, which its clients search for the exit code. Pure.

The docker CLI ends with 127 for "executable file not found" and "no such file or directory", with
126 for "permission denied" and "is a directory", else with 125.
"""

from __future__ import annotations

from wherry.errors import AgentError, StartFailed

SETUP_FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

_ENOENT, _ENOEXEC, _EACCES, _EISDIR = 2, 8, 13, 21
"""Linux's numbers (asm-generic/errno-base.h); the host's may be others."""

_WORDS = {_ENOEXEC: "exec format error", _EACCES: "permission denied", _EISDIR: "is a directory"}


CONTAINER = "failed to create task for container: "
EXEC = "OCI runtime exec failed: exec failed: "
"""How Docker begins: a container's start, an exec's."""


def start_failure(beginning: str, command: str, error: AgentError) -> StartFailed:
    """The error of a `container.start` or `exec.start`.

    Args:
        beginning: CONTAINER or EXEC.
        command: its first word.
    """
    code = error.data.get("exit_code")
    number = error.data.get("errno")
    if code not in (NOT_EXECUTABLE, NOT_FOUND):
        return StartFailed(
            f"{beginning}{error.message}",
            exit_code=SETUP_FAILED,
            http_status=500,
        )
    if code == NOT_FOUND:
        found = f"stat {command}: no such file or directory"
        reason = found if "/" in command else "executable file not found in $PATH"
    else:
        reason = _WORDS.get(number, error.message) if isinstance(number, int) else error.message
    return StartFailed(
        f"{beginning}unable to start container process: "
        f'error during container init: exec: "{command}": {reason}',
        exit_code=code,
    )
