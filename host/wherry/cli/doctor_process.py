"""Running `python -m wherry.doctor`: its JSON lines as they come, and no waiting for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from wherry.errors import WherryError
from wherry.paths import Home


def run_doctor(home: Home, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each object that it prints; the checks have their own deadlines.

    Raises:
        WherryError: it says so, or it ended otherwise than it should.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "wherry.doctor", *arguments],
        env={**os.environ, "WHERRY_HOME": os.fspath(home.root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise WherryError(answer["error"], hint=answer.get("hint"))
            yield answer
        code = process.wait()
    finally:
        process.stdout.close()
        process.kill()
        process.wait()
    if code != 0:
        raise WherryError(f"the examination ended with status {code}")
