"""Who a machine is in its own eyes and on its network: drawn once, kept beside its disk."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from wherry.osutil import atomic_write

_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Identity:
    """`machine_id`: 32 hex digits, machine-id(5)."""

    machine_id: str

    @classmethod
    def random(cls) -> Identity:
        return cls(secrets.token_hex(16))

    @property
    def mac(self) -> str:
        """The network device's address, from the id; a locally administered one (IEEE 802)."""
        tail = hashlib.sha256(f"mac {self.machine_id}".encode()).digest()[:5]
        return ":".join(f"{byte:02x}" for byte in b"\x02" + tail)


def read_identity(file: Path) -> Identity:
    """The machine's; drawn when there is none, or none that can be read. Raises OSError."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    if _MACHINE_ID.fullmatch(text):
        return Identity(text)
    identity = Identity.random()
    atomic_write(file, f"{identity.machine_id}\n".encode())
    return identity
