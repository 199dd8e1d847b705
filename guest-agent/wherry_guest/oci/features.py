"""`features` and `spec`: what this runtime can do, and a config.json to begin with.

https://github.com/opencontainers/runtime-spec/blob/v1.2.0/features.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import wherry_guest
from wherry_guest.core.capabilities import NAMES
from wherry_guest.core.hooks import STAGES, STATE_VERSION
from wherry_guest.core.mount_options import MODES
from wherry_guest.core.seccomp import seccomp_features
from wherry_guest.core.spec import NAMESPACE_TYPES
from wherry_guest.oci.errors import OciError
from wherry_guest.oci.store import CONFIG

_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_PLAIN: Final = ["nosuid", "noexec", "nodev"]


def features() -> dict[str, Any]:
    """The Features object."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": STATE_VERSION,
        "hooks": list(STAGES),
        "mountOptions": list(MODES),
        "linux": {
            "namespaces": list(NAMESPACE_TYPES),
            "capabilities": list(NAMES),
            "cgroup": {
                "v1": False,
                "v2": True,
                "systemd": False,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": {"enabled": True, **seccomp_features()},
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"org.wherry.version": wherry_guest.__version__},
        "potentiallyUnsafeConfigAnnotations": [],
    }


def write_spec(directory: Path) -> None:
    """Write a config.json that runs a shell; OciError when there is one already."""
    path = directory / CONFIG
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(default_spec(), file, indent=2)
            file.write("\n")
    except FileExistsError as error:
        raise OciError(f"{path} exists already: remove it first") from error
    except OSError as error:
        raise OciError(f"{path}: {error.strerror}") from error


def default_spec() -> dict[str, Any]:
    """A shell in six new namespaces, with few capabilities."""
    return {
        "ociVersion": STATE_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "wherry",
        "mounts": _mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    }  # fmt: skip


def _mounts() -> list[dict[str, Any]]:
    rows: tuple[tuple[str, str, str, list[str]], ...] = (
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts",
         ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*_PLAIN, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", _PLAIN),
        ("/sys", "sysfs", "sysfs", [*_PLAIN, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*_PLAIN, "relatime", "ro"]),
    )  # fmt: skip
    return [
        {"destination": target, "type": kind, "source": source, "options": list(options)}
        for target, kind, source, options in rows
    ]
