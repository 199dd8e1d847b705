"""What every group needs: rounds, the cache, a place to work, homes, images, machines."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import Wherry
from rootfs import debian_tar

from wherry.machine import create_machine, default_config
from wherry.machine.image import prepare_image
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage

from . import ROOT

CPUS = 2
BUSYBOX = "localhost/busybox"


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks.

    Attributes:
        rounds: for what takes seconds; quick things are done `many` times.
        cache: what outlives runs: packages, VM images, root file systems. Shared with the tests.
        work: a directory with a short path, removed at the end.
    """

    rounds: int
    cache: Path
    work: Path

    @property
    def many(self) -> int:
        return 4 * self.rounds

    @property
    def few(self) -> int:
        return max(2, self.rounds // 2)

    def settings(self, memory_mib: int = 1024) -> Settings:
        return Settings(cpus=CPUS, memory_mib=memory_mib)

    def home(self, name: str) -> Home:
        """A new, empty home whose caches are warm."""
        root = self.work / name
        root.mkdir(mode=0o700)
        (root / "cache").symlink_to(self.cache)
        return Home(root)

    def vm_image(self) -> VmImage:
        """The finished VM image; its packages are in the cache afterwards."""
        home = Home(self.work / "image-of-all")
        home.root.mkdir(mode=0o700, exist_ok=True)
        if not (home.root / "cache").exists():
            (home.root / "cache").symlink_to(self.cache)
        return prepare_image(default_config(self.settings()), home, self.settings(), None)

    def debian(self, *packages: str) -> Path:
        """A tar of Debian's root file system."""
        return debian_tar(self.cache, *packages)

    @property
    def byte_code(self) -> dict[str, str]:
        """The environment in which Python keeps byte code, as an installation has it."""
        prefix = os.fspath(self.work / "pycache")
        return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": prefix}

    @property
    def environment(self) -> dict[str, str]:
        """For Python processes of a checkout that is not installed."""
        roots = [str(ROOT), *(str(ROOT / name) for name in ("host", "guest-agent", "vm-images"))]
        return {**os.environ, **self.byte_code, "PYTHONPATH": os.pathsep.join(roots)}

    def directory(self, name: str) -> Path:
        """A new directory."""
        path = self.work / name
        path.mkdir(parents=True)
        return path

    @contextlib.contextmanager
    def commands(self, name: str, memory_mib: int) -> Iterator[Wherry]:
        """The command line on a home of its own. Its machine ends with the block."""
        home = self.home(name)
        create_machine(home, "default", default_config(self.settings(memory_mib)))
        wherry = Wherry(home, extra_environment=self.byte_code)
        try:
            wherry.run("--help", check=True)  # compiles
            yield wherry
        finally:
            wherry.run("machine", "rm", "--force", timeout=60)


@contextlib.contextmanager
def new_bench(rounds: int) -> Iterator[Bench]:
    """Everything that is left over goes away with the block."""
    cache = Path(os.environ.get("WHERRY_TEST_CACHE") or ROOT / ".cache" / "tests").absolute()
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = Path(tempfile.mkdtemp(prefix="wb-"))
    try:
        yield Bench(rounds, cache, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def python(*arguments: str) -> list[str]:
    """A command line of this interpreter."""
    return [sys.executable, *arguments]
