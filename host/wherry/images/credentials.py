"""The user's registry credentials: reads Docker's config.json and runs credential helpers.

The I/O around `auth.py`. What `docker login` stored is found; nothing is ever written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from wherry.errors import InvalidInput
from wherry.images.auth import (
    ANONYMOUS,
    Credentials,
    HelperCall,
    find_credentials,
    parse_helper_answer,
)

HELPER_SECONDS = 30.0
_NOT_FOUND = b"credentials not found"
"""docker-credential-helpers, credentials/error.go: said on standard output, with exit code 1."""


def load_credentials(registry: str, environ: Mapping[str, str] = os.environ) -> Credentials:
    """The credentials of `registry` from `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.

    Anonymous ones when there are none.

    Raises:
        InvalidInput: the file is malformed, or a helper that it names is missing or fails.
    """
    try:
        home = Path.home()
    except RuntimeError:  # a service without a home directory
        home = Path("/")
    directory = Path(environ.get("DOCKER_CONFIG") or home / ".docker")
    try:
        config = (directory / "config.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ANONYMOUS
    found = find_credentials(config, registry)
    if isinstance(found, HelperCall):
        return _ask_helper(found, environ)
    return found or ANONYMOUS


def _ask_helper(call: HelperCall, environ: Mapping[str, str]) -> Credentials:
    program = f"docker-credential-{call.name}"
    path = shutil.which(program, path=environ.get("PATH"))
    if path is None:
        raise InvalidInput(
            f"Docker's config.json names the credential helper {program}, which is not on PATH",
            hint="install it, or remove credsStore/credHelpers from config.json",
        )
    try:
        result = subprocess.run(
            [path, "get"],
            input=call.server.encode(),
            capture_output=True,
            timeout=HELPER_SECONDS,
            env=dict(environ),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"the credential helper {program} failed: {error}") from error
    if result.returncode == 0:
        return parse_helper_answer(result.stdout)
    if _NOT_FOUND in result.stdout:
        return ANONYMOUS
    said = (result.stdout or result.stderr).decode(errors="replace").strip().splitlines()
    raise InvalidInput(f"the credential helper {program} failed: {said[-1] if said else 'silent'}")
