"""The OCI command line in the machine, where cgroup v2 has every controller.

A part of tests/guest (`machine_suite`), with limits that a host with cgroup v1 cannot set, on the
machine's own kernel. All of it, in machines of both architectures: tests/soak.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Wherry
from machine_suite import run_suite, suite_tar

from wherry.machine.accel import host_arch

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

IMAGE = "localhost/guest-suite"
SECONDS = 800.0


@pytest.fixture(scope="module")
def image(wherry: Wherry, test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    tar = suite_tar(test_cache, tmp_path_factory.mktemp("suite") / "suite.tar", host_arch())
    wherry.run("import", str(tar), IMAGE, timeout=300, check=True)
    return IMAGE


def test_limits_user_namespaces_and_id_mapped_mounts(wherry: Wherry, image: str) -> None:
    files = ["test_oci_cgroups.py", "test_oci_users.py"]  # at once: Python and pytest start slowly
    last = run_suite(wherry, image, files, "wherry", SECONDS)
    assert " skipped" not in last
