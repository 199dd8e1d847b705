"""The sdist and the wheel, installed as users do: pipx and `uv tool`, each running a container."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT
from needs import require

pytestmark = [pytest.mark.contract, pytest.mark.vm, pytest.mark.timeout(400)]

COMMAND_SECONDS = 200.0


def run(*argv: str | Path, env: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        [os.fspath(arg) for arg in argv],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def clean_environment(**more: str) -> dict[str, str]:
    unwanted = ("WHERRY", "DOCKER", "PYTHON", "VIRTUAL_ENV", "PIPX")
    return {k: v for k, v in os.environ.items() if not k.startswith(unwanted)} | more


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist of this checkout, and a wheel made from that sdist."""
    dist = tmp_path_factory.mktemp("dist")
    tools = tmp_path_factory.mktemp("tools")
    run(sys.executable, "-m", "venv", tools, env=clean_environment())
    python = tools / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "build", "uv", env=clean_environment())
    run(python, "-m", "build", "--outdir", dist, ROOT, env=clean_environment())
    return {
        "wheel": next(dist.glob("*.whl")),
        "sdist": next(dist.glob("*.tar.gz")),
        "uv": tools / "bin" / "uv",
    }


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wh-pkg-") as directory:
        yield Path(directory)


def runs_a_container(wherry: Path, home: Path, cache: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "cache").symlink_to(cache)
    (home / "config.yml").write_text("memory_mib: 512\ncpus: 1\n")
    environment = clean_environment(WHERRY_HOME=str(home))
    try:
        output = run(wherry, "run", "--rm", "localhost/busybox", "echo", "hi", env=environment)
        assert output == "hi\n"
    finally:
        run(wherry, "machine", "rm", "--force", env=environment)


def test_pipx_installs_the_wheel(
    built: dict[str, Path], short_directory: Path, test_cache: Path
) -> None:
    pipx = require("pipx", "pipx")
    environment = clean_environment(
        PIPX_HOME=str(short_directory / "pipx"), PIPX_BIN_DIR=str(short_directory / "bin")
    )
    run(pipx, "install", "--python", sys.executable, built["wheel"], env=environment)
    runs_a_container(short_directory / "bin" / "wherry", short_directory / "home", test_cache)


def test_uv_tool_installs_the_sdist(
    built: dict[str, Path], short_directory: Path, test_cache: Path
) -> None:
    environment = clean_environment(
        UV_TOOL_DIR=str(short_directory / "tools"),
        UV_TOOL_BIN_DIR=str(short_directory / "bin"),
        UV_CACHE_DIR=str(short_directory / "uv-cache"),
        **uv_index(),
    )
    run(built["uv"], "tool", "install", "--python", sys.executable, built["sdist"], env=environment)
    runs_a_container(short_directory / "bin" / "wherry", short_directory / "home", test_cache)


def uv_index() -> dict[str, str]:
    """uv does not read pip's configuration: hand it pip's package index where one is set."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    url = done.stdout.strip()
    return {"UV_INDEX_URL": url} if done.returncode == 0 and url else {}
