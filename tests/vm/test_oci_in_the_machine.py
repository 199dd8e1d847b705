"""The OCI command line in the machine, where cgroup v2 has every controller.

The suite is tests/guest/test_oci_*.py, in a privileged container of the machine: with limits that a
host with cgroup v1 cannot set, on the machine's own kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Wherry
from oci_suite import ENTER, suite_tar

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

IMAGE = "localhost/oci-suite"
SECONDS = 800.0


@pytest.fixture(scope="module")
def image(wherry: Wherry, test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    tar = suite_tar(test_cache, tmp_path_factory.mktemp("suite") / "suite.tar")
    wherry.run("import", str(tar), IMAGE, timeout=300, check=True)
    return IMAGE


def suite(wherry: Wherry, image: str, *arguments: str) -> None:
    command = ["run", "--rm", "--privileged", image, "sh", "-c", ENTER + " ".join(arguments)]
    done = wherry.run(*command, timeout=SECONDS)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text[-6000:]
    assert " skipped" not in text.splitlines()[-1], text[-2000:]


def test_limits_are_set_and_hold(wherry: Wherry, image: str) -> None:
    suite(wherry, image, "-m guest -k 'wherry' tests/guest/test_oci_cgroups.py")


def test_user_namespaces_and_id_mapped_mounts(wherry: Wherry, image: str) -> None:
    suite(wherry, image, "-m guest -k 'wherry' tests/guest/test_oci_users.py")
