"""The suites of container core, agent, OCI command line and EROFS in a machine of any architecture.

They run in a privileged container of Debian with Python, pytest, crun, runc and these tests, on the
machine's own kernel. Nothing of the image was configured: its packages were only unpacked, so that
no program of its architecture is needed to make it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT, Wherry
from rootfs import debian_tar

PACKAGES = (
    "base-files", "busybox-static", "coreutils", "crun", "dash", "diffutils", "e2fsprogs",
    "findutils", "grep", "hostname", "libc-bin", "mount", "procps", "python3-pytest",
    "python3-pytest-timeout", "runc", "sed", "tar", "util-linux",
)  # fmt: skip
SOURCES = ("guest-agent/wherry_guest", "host/wherry")
HELPERS = ("cgroup_host.py", "needs.py", "syscall_program.py", "waiting.py")
OPTIONS = (
    "--privileged", "--init",
    "--ulimit", "nofile=524288",  # as PID 1 of the machine has it
    "--volume", "/tmp",  # an overlay cannot be the upper side of another one
    "--env", "WHERRY_TEST_PATIENCE=4",
)  # fmt: skip

CONFIG = """\
[pytest]
addopts = --strict-markers --tb=short -q -ra
pythonpath = /suite/guest-agent /suite/host /suite/tests
timeout = 600
tmp_path_retention_policy = failed
markers =
    guest: needs root on Linux
"""
USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
}

ENTER = (
    # a cgroup with processes gives no controllers to its children: they move out of the way
    "cd /sys/fs/cgroup; mkdir shell; for pid in 1 0; do echo $pid >shell/cgroup.procs; done; "
    "chmod 1777 /tmp; cd /suite; "
    # byte code of what the tests start again and again
    "export PYTHONPYCACHEPREFIX=/tmp/byte-code; {compile}"
    "PYTHONPATH=guest-agent python3 -m wherry_guest.oci -v; "
    "exec python3 -m pytest -p no:cacheprovider -m guest "
)
_COMPILE = "python3 -m compileall -q guest-agent; "
"""The OCI command line compiles itself when it is first run; this takes as long as ten tests."""


def suite_tar(cache: Path, target: Path, architecture: str) -> Path:
    """The image's root file system, with the suite in /suite. `architecture`: Debian's name."""
    debian = debian_tar(cache, *PACKAGES, variant="extract", architecture=architecture)
    with tarfile.open(debian) as source, tarfile.open(target, "w") as out:
        for member in source:
            if member.name.lstrip("./") not in USERS:
                out.addfile(member, source.extractfile(member) if member.isreg() else None)
        for name, text in {**USERS, "suite/pytest.ini": CONFIG}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
        for path in _files():
            out.add(path, f"suite/{path.relative_to(ROOT)}")
    return target


def _files() -> list[Path]:
    found = [ROOT / "tests" / name for name in HELPERS]
    found += sorted((ROOT / "tests" / "guest").glob("*.py"))
    for source in SOURCES:
        found += sorted(
            path for path in (ROOT / source).rglob("*") if path.is_file() and path.suffix != ".pyc"
        )
    return found


def run_suite(wherry: Wherry, image: str, files: Sequence[str], wanted: str, seconds: float) -> str:
    """Pytest's last line, of these files of tests/guest; `wanted`: its -k. All of it must pass."""
    paths = " ".join(f"tests/guest/{name}" for name in files)
    needed = "" if all(name.startswith("test_oci_") for name in files) else _COMPILE
    script = f"{ENTER.format(compile=needed)} -k '{wanted}' {paths}"
    command = ["run", "--rm", *OPTIONS, image, "sh", "-c", script]
    done = wherry.run(*command, timeout=seconds)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{text[-8000:]}{done.stderr.decode(errors='replace')[-2000:]}"
    return text.splitlines()[-1]
