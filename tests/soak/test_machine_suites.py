"""All suites of tests/guest in machines of both architectures: only in the long rounds.

What runs there: the container core and PID 1's cradle, seccomp's tables against crun and runc, the
agent, EROFS images under the machine's kernel, and the OCI command line. Each that passes writes a
row of docs/soak.md.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, Wherry
from machine_suite import run_suite, suite_tar
from needs import require
from soak_table import record

pytestmark = [
    pytest.mark.vm,
    pytest.mark.soak,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.environ.get("WHERRY_SOAK") != "1", reason="takes an hour: WHERRY_SOAK=1"),
]

HOUR = 3600.0
QEMU = {
    "amd64": ("qemu-system-x86", "qemu-system-x86_64"),
    "arm64": ("qemu-system-arm", "qemu-system-aarch64"),
}
NOT_THERE = "not assembler and not valid_executable and not in_an_emulator"
"""What asks for a toolchain or an emulator: of the host's concern, and run there."""

SUITES = {
    "core": ("test_core_*.py", NOT_THERE),
    "agent": ("test_agent_*.py", NOT_THERE),
    "EROFS": ("test_erofs_kernel.py", NOT_THERE),
    "OCI, ours": ("test_oci_*.py", "wherry"),
    "OCI, crun": ("test_oci_*.py", "crun"),
    "OCI, runc": ("test_oci_*.py", "runc"),
}


@pytest.fixture(scope="module", params=QEMU)
def machine(
    request: pytest.FixtureRequest,
    wherry: Wherry,
    test_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Wherry, str]]:
    """(architecture, the commands for a machine of it, the image with the suites)."""
    arch = request.param
    require(*QEMU[arch])
    name, image = f"suites-{arch}", f"localhost/suites-{arch}"
    wherry.run("machine", "create", "--arch", arch, "--memory", "1536m", name, check=True)
    it = Wherry(wherry.home, {"WHERRY_MACHINE": name})
    it.run("machine", "start", "--no-template", check=True, timeout=300)
    tar = suite_tar(test_cache, tmp_path_factory.mktemp("suite") / "suite.tar", arch)
    it.run("import", "--platform", f"linux/{arch}", str(tar), image, timeout=300, check=True)
    yield arch, it, image
    it.run("machine", "rm", "--force", name, timeout=60)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_passes_in_a_machine(machine: tuple[str, Wherry, str], suite: str) -> None:
    arch, it, image = machine
    pattern, wanted = SUITES[suite]
    files = sorted(path.name for path in (ROOT / "tests" / "guest").glob(pattern))
    last = run_suite(it, image, files, wanted, HOUR)
    found = re.fullmatch(r"(\d+) passed, (?:(\d+) skipped, )?.* in ([\d.]+)s.*", last)
    assert found is not None, last
    skipped = f", {found[2]} skipped" if found[2] else ""
    figures = f"passed{skipped}, in {float(found[3]):.0f} s, emulated on {platform.machine()}"
    record(f"tests of {suite} in an {arch} machine", int(found[1]), figures)
