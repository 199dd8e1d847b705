"""The OCI suite in the machine: a Debian image with Python, pytest, crun, runc and these tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from harness import ROOT
from rootfs import debian_tar

PACKAGES = ("busybox-static", "crun", "procps", "python3-pytest", "python3-pytest-timeout", "runc")
MODULES = ("needs.py", "waiting.py", "guest/containers_harness.py", "guest/oci_harness.py",
           "guest/conftest.py", "guest/oci_process.py")  # fmt: skip

CONFIG = """\
[pytest]
addopts = --strict-markers --tb=short -q
pythonpath = /suite/guest-agent /suite/tests
timeout = 200
markers =
    guest: needs root on Linux
"""


def suite_tar(cache: Path, target: Path) -> Path:
    """The image's root file system, with the suite in /suite."""
    with tarfile.open(debian_tar(cache, *PACKAGES)) as source, tarfile.open(target, "w") as out:
        for member in source:
            out.addfile(member, source.extractfile(member) if member.isreg() else None)
        for path in sorted((ROOT / "guest-agent").rglob("*.py")):
            out.add(path, f"suite/{path.relative_to(ROOT)}")
        tests = ROOT / "tests"
        for name in [
            *MODULES,
            *(f"guest/{path.name}" for path in tests.glob("guest/test_oci_*.py")),
        ]:
            out.add(tests / name, f"suite/tests/{name}")
        info = tarfile.TarInfo("suite/pytest.ini")
        info.size = len(CONFIG)
        out.addfile(info, io.BytesIO(CONFIG.encode()))
    return target


# A cgroup with processes gives no controllers to its children: the shell moves out of the way.
ENTER = (
    "mkdir /sys/fs/cgroup/shell; echo 0 >/sys/fs/cgroup/shell/cgroup.procs; "
    "mount -t tmpfs tmpfs /tmp; cd /suite; exec python3 -B -m pytest -p no:cacheprovider "
)
