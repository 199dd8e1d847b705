"""Checks of the services that keep engines there: do they run this program, and is it there?

Wherry that was moved, or installed again elsewhere, leaves a service that names a Python which is
gone: Docker's clients then wait at a socket whose engine never comes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from wherry.doctor.finding import Context, Finding, fail, ok, warn
from wherry.doctor.host import FIX
from wherry.errors import WherryError
from wherry.service.definition import service_label
from wherry.service.managers import Manager, session_manager
from wherry.service.rendering import windowless

_INSTALL_SECONDS = 120.0


def services(context: Context) -> Iterator[Finding]:
    """Of every machine that has one."""
    manager = session_manager()
    for name in context.machines:
        label = service_label(context.home, name)
        if manager.installed(label):
            yield _service(context, name, manager, label)


def _service(context: Context, name: str, manager: Manager, label: str) -> Finding:
    title, program = f"service {name}", manager.program(label)
    own = windowless(sys.executable) if sys.platform == "win32" else sys.executable
    repair = partial(_install, context, name)
    if program is None:
        place = manager.place(label)
        return fail(title, f"it cannot be told what {place} runs", FIX, repair)
    if not Path(program).exists():
        return fail(title, f"its Python is gone: {program}", FIX, repair)
    if os.path.normcase(program) != os.path.normcase(own):
        return warn(
            title,
            f"it runs {program}, this is {own}",
            f"{FIX} has it run this one (wherry service install {name})",
            repair,
        )
    return ok(title, f"it runs this Python ({program})")


def _install(context: Context, name: str) -> str:
    """Raises WherryError with what the command says."""
    done = subprocess.run(
        [sys.executable, "-m", "wherry", "service", "install", name],
        env={**os.environ, "WHERRY_HOME": os.fspath(context.home.root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise WherryError(lines[0].removeprefix("wherry: "))
    return "the service was installed again"
