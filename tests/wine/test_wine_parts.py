"""Windows, piece by piece: what imports, how quick the command is, that images are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT
from wine_tier import Windows, windows_path

pytestmark = [pytest.mark.wine, pytest.mark.timeout(300)]

HERE = Path(__file__).parent


def test_every_module_imports_on_windows(windows_python: Windows) -> None:
    said = windows_python.run(windows_path(HERE / "in_wine_imports.py"), timeout=120).ok()
    first, *failed = said.splitlines()
    # Wine 8 cannot load the DLL of cryptography, so SSH in there is unproven.
    assert [line for line in failed if "cryptography" not in line] == [], first


def test_help_is_there_at_once(windows_python: Windows) -> None:
    windows_python.run("-m", "wherry", "--help").ok()
    assert "COMMAND" in windows_python.run("-m", "wherry", "--help").ok()


SYSTEM = """osutil_files osutil_locks osutil_process osutil_host machine_find machine_argv
    osutil_spellings machine_disk machine_config keeper_parts keeper_proofs"""
FORMATS = """wire_connection wire_frames erofs_writer image_reference image_media image_platform
    tar_reader"""


@pytest.mark.parametrize("tests", [SYSTEM, FORMATS], ids=["system", "formats"])
def test_the_unit_tests_pass(windows_python: Windows, tests: str) -> None:
    files = [windows_path(ROOT / "tests" / "unit" / f"test_{name}.py") for name in tests.split()]
    options = ("-q", "-p", "no:cacheprovider", "-c", windows_path(ROOT / "pyproject.toml"))
    done = windows_python.run("-m", "pytest", *options, *files, timeout=240)
    assert done.status == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_the_image_is_the_same_as_on_linux(
    windows_python: Windows, test_cache: Path, tmp_path: Path
) -> None:
    script, packages = HERE / "in_wine_image.py", test_cache / "packages"
    here = subprocess.run(
        [sys.executable, str(script), str(packages), str(tmp_path / "here")],
        env={"PYTHONPATH": ":".join(str(ROOT / name) for name in ("vm-images", "guest-agent"))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert here.returncode == 0, here.stderr
    there = windows_python.run(
        *map(windows_path, (script, packages, tmp_path / "there")), timeout=240
    )
    assert there.ok() == here.stdout.strip()
