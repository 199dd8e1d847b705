"""A real Debian root file system, made with mmdebstrap once and kept in the test cache."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from needs import require

from wherry_image.mirror import mirrors

SUITE = "trixie"
BUILD_SECONDS = 400.0


def debian_tar(
    cache: Path,
    *packages: str,
    variant: str = "minbase",
    architecture: str = "",
    suite: str = SUITE,
) -> Path:
    """A tar of Debian with these packages besides `variant`'s; made when it is not in `cache`.

    Args:
        variant: mmdebstrap(1)'s; `extract` runs no program of the packages, so it works for every
            `architecture` (Debian's name; empty: this host's), and configures nothing.
    """
    name = "-".join([suite, variant, *([architecture] if architecture else []), *packages])
    tar = cache / "rootfs" / f"{name}.tar"
    if tar.exists():
        return tar
    program = require("mmdebstrap", "mmdebstrap")
    tar.parent.mkdir(parents=True, exist_ok=True)
    temporary = tar.with_suffix(f".{os.getpid()}.tar")
    command = [program, f"--variant={variant}", "--quiet", *_include(packages)]
    command += [f"--architectures={architecture}"] if architecture else []
    result = subprocess.run(
        [*command, suite, str(temporary), _mirror()],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        temporary.unlink(missing_ok=True)
        pytest.fail(f"mmdebstrap failed: {result.stderr[-2000:]}")
    temporary.rename(tar)
    return tar


def _include(packages: tuple[str, ...]) -> list[str]:
    return [f"--include={','.join(packages)}"] if packages else []


def _mirror() -> str:
    """The mirror that this host's apt uses, or Debian's own archive of today."""
    found = (mirror.url("debian/") for mirror in mirrors(None, datetime.now(UTC)))
    return next(url for url in found if url is not None).rstrip("/")
