"""A mount namespace whose /sys/fs/cgroup is the plain cgroup v2 tree, as on a host that has nothing
else: other people's programs refuse a host with both versions. Stdlib only: it also runs in the VM.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_SCRIPT = (
    "mount --make-rprivate /; stat -f -c %T /sys/fs/cgroup | grep -q cgroup2 || "
    "{ umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; }; "
    "echo ready; exec sleep infinity"
)


def open_cgroup_host() -> subprocess.Popen[bytes]:
    """The process that keeps the namespace: enter it by its pid, kill it at the end."""
    keeper = subprocess.Popen(["unshare", "--mount", "sh", "-ec", _SCRIPT], stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"ready\n"
    keeper.stdout.close()
    return keeper


def runtime_script(path: Path, *flags: str) -> Path:
    """Our OCI runtime as a program, with these flags before every command."""
    words = " ".join(f"'{flag}'" for flag in flags)
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}/guest-agent" exec "{sys.executable}" -B '
        f'-m wherry_guest.oci {words} "$@"\n'
    )
    path.chmod(0o755)
    return path
