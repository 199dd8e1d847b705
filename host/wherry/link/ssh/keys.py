"""The key that logs in to one machine, and the list of its host's keys, as OpenSSH reads them."""

from __future__ import annotations

from pathlib import Path

from wherry.errors import StorageError
from wherry.osutil import atomic_write, private_directory

KIND = "ssh-ed25519"


def user_key(file: Path) -> str:
    """The public half of the private key in `file` (mode 0600), which is made when it is missing.

    Returns:
        `ssh-ed25519 BASE64`, without a comment.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private_directory(file.parent)
    try:
        key = form.load_ssh_private_key(file.read_bytes(), None)
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
        atomic_write(file, text)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{file} is damaged ({error})", hint="remove it, and another key is made"
        ) from error
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return public.decode("ascii")


def write_known_hosts(file: Path, alias: str, host_key: str) -> None:
    """Say that the host which is called `alias` has this key; `KIND BASE64`."""
    line = f"{alias} {host_key}\n".encode()
    if not file.exists() or file.read_bytes() != line:
        atomic_write(file, line)
