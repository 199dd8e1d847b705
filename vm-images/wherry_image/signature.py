"""Is an index really Debian's? OpenPGP verification of a clear-signed InRelease file.

With pysequoia (a dependency of Wherry), else with `gpgv`. The trusted certificates are Debian's
archive keyring, shipped in `data/` as it stands in the package debian-archive-keyring.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from .errors import SignatureError

_KEYRING = "debian-archive-keyring.pgp"
_GPGV_SECONDS = 30


def archive_keyring() -> bytes:
    """Debian's archive signing certificates, binary OpenPGP."""
    return (resources.files(__package__) / "data" / _KEYRING).read_bytes()


def verified_text(inrelease: bytes, keyring: bytes, name: str) -> str:
    """The signed text of a clear-signed message.

    Only what the signature covers is returned, never the message as it came.

    Args:
        name: what is verified, for error messages.

    Raises:
        SignatureError: not signed by a certificate of `keyring`, altered, or nothing here can tell.
    """
    try:
        import pysequoia
    except ImportError:
        return _with_gpgv(inrelease, keyring, name)
    certificates = pysequoia.Cert.split_bytes(keyring)
    try:
        result = pysequoia.verify(bytes=inrelease, store=lambda _: certificates)
    except Exception as error:
        raise _bad(name, str(error)) from error
    if not result.valid_sigs or result.bytes is None:
        raise _bad(name, "no valid signature")
    return result.bytes.decode()


def _with_gpgv(inrelease: bytes, keyring: bytes, name: str) -> str:
    gpgv = shutil.which("gpgv")
    if gpgv is None:
        raise SignatureError(
            f"cannot verify {name}: neither pysequoia nor gpgv is here",
            hint="pip install pysequoia, or install gpgv",
        )
    with tempfile.TemporaryDirectory() as directory:
        keys, message, text = (Path(directory, n) for n in ("keys.pgp", "message", "text"))
        keys.write_bytes(keyring)
        message.write_bytes(inrelease)
        command = [gpgv, "--homedir", directory, "--keyring", str(keys), "--output", str(text)]
        result = subprocess.run(
            [*command, str(message)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GPGV_SECONDS,
            check=False,
        )
        if result.returncode != 0 or not text.exists():
            lines = result.stderr.decode(errors="replace").strip().splitlines()
            raise _bad(name, lines[-1] if lines else f"gpgv ended with {result.returncode}")
        return text.read_text(encoding="utf-8")


def _bad(name: str, reason: str) -> SignatureError:
    return SignatureError(
        f"{name} is not signed by Debian: {reason}",
        hint="a mirror or proxy altered the file, or this Wherry is too old to know Debian's keys",
    )
