"""What is said of a start that failed: the phase, the likely cause, what was printed, what to do.

The first line says it all; QEMU's last lines and the console's stand below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wherry.errors import BootFailed
from wherry.machine.diagnosis import Evidence, diagnose

_CONSOLE_LINES = 12
_STDERR_LINES = 6
_LOOK_CLOSER = "wherry doctor tries this QEMU and says what it finds"


def boot_failed(
    phase: str,
    reason: str,
    *,
    qemu_log: Path,
    hint: str | None = None,
    status: int | None = None,
    console: Sequence[str] = (),
    last_words: str | None = None,
) -> BootFailed:
    """The error of a start that died in `phase`.

    Args:
        reason: how it showed: a signal, a status, a deadline.
        hint: what to do when the cause is not known.
        status: QEMU's exit status, negative: a signal; None: it did not end by itself.
        console: the guest's last lines.
        last_words: what its PID 1 or kernel gave up with; may not be among them.
    """
    stderr = _lines(qemu_log)
    words = [last_words] if last_words else []
    cause = diagnose(Evidence(phase, [*stderr, reason], [*console, *words], status))
    what = f"{cause.sentence}: {last_words or reason}" if cause else last_words or reason
    lines = [f"the machine did not start: {what} (phase {phase})"]
    lines += [f"  qemu: {line}" for line in stderr[-_STDERR_LINES:]]
    lines += [f"  console: {line}" for line in console[-_CONSOLE_LINES:]]
    what_to_do = cause.remedy if cause else hint or _LOOK_CLOSER
    return BootFailed("\n".join(lines), phase=phase, hint=what_to_do)


def end_of_guest(cause: str | None, panic: str | None, status: int | None) -> tuple[bool, str]:
    """Why a guest that ran is gone: whether that is a failure, and the reason in words.

    Args:
        cause: QEMU's ShutdownCause (qapi/run-state.json); None: QEMU did not say.
        panic: what the kernel gave up with.
        status: QEMU's exit status.
    """
    if cause == "guest-shutdown":
        return False, "the guest powered itself off"
    if cause in ("guest-reset", "guest-panic"):
        return True, panic or "the guest's kernel gave up"
    if status is not None and status < 0:
        return True, f"QEMU was ended by signal {-status}"
    return True, "QEMU ended unexpectedly"


def ending(status: int | None) -> str | None:
    """How QEMU ended, in words; None: it did not, or nobody knows."""
    if status is None:
        return None
    return f"QEMU was ended by signal {-status}" if status < 0 else f"QEMU ended, status {status}"


def _lines(log: Path) -> list[str]:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()]
