"""Where errors and warnings go: standard error, and the file that `--log` names.

Rules: the formats are the ones that callers parse: `text` and `json` of runc's logger.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wherry_guest.oci.errors import OciError

LEVELS: Final = ("error", "warning", "info", "debug")
"""Each says what those before it say too."""


@dataclass(frozen=True, slots=True)
class Log:
    """Args: path: of the log file, None: standard error only. form: text or json. level: the last
    of LEVELS that is written."""

    path: Path | None = None
    form: str = "text"
    level: str = "info"

    def error(self, message: str) -> None:
        """The reason of a failure: to the log, and always to standard error."""
        self._write("error", message)
        if self.path is not None:
            print(message, file=sys.stderr)

    def warning(self, message: str) -> None:
        self._write("warning", message)

    def debug(self, message: str) -> None:
        self._write("debug", message)

    def check(self) -> None:
        """Raises OciError when the log cannot be written."""
        if self.path is not None:
            try:
                self.path.open("a").close()
            except OSError as error:
                raise OciError(f"--log {self.path}: {error.strerror}") from error

    def _write(self, level: str, message: str) -> None:
        if LEVELS.index(level) > LEVELS.index(self.level):
            return
        time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        line = f"time={json.dumps(time)} level={level} msg={json.dumps(message)}"
        if self.form == "json":
            line = json.dumps({"level": level, "msg": message, "time": time})
        if self.path is None:
            print(line if self.form == "json" else f"{level}: {message}", file=sys.stderr)
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
