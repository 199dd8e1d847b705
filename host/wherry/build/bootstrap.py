"""A Debian image from signed packages, without a registry: what is in it, and how it is made.

The steps block and know no container; `engine/bootstrapping.py` runs them around the one in which
the packages are configured. The same lock gives the same image: packages are pinned by digest,
times are the lock's, and what the configuration leaves behind of its own making is removed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from wherry.build import configure, slim
from wherry.build.tree import Entry, FileTree
from wherry.build.unpack import unpack
from wherry.errors import ImageBuildError, InvalidInput
from wherry.images import tar_entry as kinds
from wherry.osutil import atomic_write, private_directory
from wherry_image import VmImageError
from wherry_image.archive import ARCHITECTURES, SUITES
from wherry_image.errors import PackageGone
from wherry_image.fetch import fetch_packages
from wherry_image.index import resolve_lock
from wherry_image.lock import Lock, format_lock, parse_lock
from wherry_image.mirror import mirrors

SUITE = SUITES[0].name
_NAMES = ("debian", f"debian:{SUITE}", "debian:13", "debian:stable")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_INSTALLER = "apt"
"""What makes the difference between packages and a system that can be added to."""

_SOURCES = b"etc/apt/sources.list.d/debian.sources"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.pgp"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Progress = Callable[[str, int, int], None]
"""progress(phase, done, total); phases: index, download, unpack."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the image consists of.

    Attributes:
        architecture: Debian's name for it.
        packages: besides the system itself.
        slim: leave documentation and translations out.
    """

    architecture: str
    packages: tuple[str, ...] = ()
    slim: bool = False

    @property
    def roots(self) -> tuple[str, ...]:
        """The names that the lock says were asked for."""
        return tuple(sorted({_INSTALLER, *self.packages}))

    def describe(self) -> str:
        """The command that makes it: the step in the image's history."""
        words = ["wherry image bootstrap", f"debian:{SUITE}", f"--arch {self.architecture}"]
        if self.packages:
            words.append(f"--include {','.join(self.packages)}")
        return " ".join(words + (["--slim"] if self.slim else []))


def parse_recipe(
    distribution: str, architecture: str, packages: Sequence[str], *, slim: bool = False
) -> Recipe:
    """A recipe from what a user wrote.

    Raises:
        InvalidInput: another distribution or architecture, or a name that no package can have.
    """
    if distribution not in _NAMES:
        raise InvalidInput(f"cannot bootstrap {distribution!r}", hint=f"known: {', '.join(_NAMES)}")
    if architecture not in ARCHITECTURES:
        raise InvalidInput(
            f"unknown architecture {architecture!r}", hint=f"one of {', '.join(ARCHITECTURES)}"
        )
    for name in packages:
        if not _PACKAGE.fullmatch(name):
            raise InvalidInput(f"{name!r} is not the name of a package")
    return Recipe(architecture, tuple(sorted(set(packages))), slim)


@dataclass(frozen=True, slots=True)
class Packages:
    """The chosen packages, downloaded. `notices`: remarks that a person should see."""

    lock: Lock
    files: Mapping[str, Path]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """Where packages and locks are.

    Attributes:
        cache: of packages. locks: the directory of the locks that were made here.
        mirror: the configured one, or None.
    """

    cache: Path
    locks: Path
    mirror: str | None = None

    def lock_file(self, recipe: Recipe) -> Path:
        """One file for each set of names."""
        tag = hashlib.sha256(" ".join(recipe.roots).encode()).hexdigest()[:12]
        return self.locks / f"{SUITE}-{recipe.architecture}-{tag}.lock"


def get_packages(
    recipe: Recipe,
    sources: Sources,
    *,
    lock_text: str | None = None,
    refresh: bool = False,
    progress: Progress,
) -> Packages:
    """Choose the packages and have them.

    Args:
        lock_text: exactly these. None: those of the lock that was made here before, else the newest
            signed ones, whose lock is kept.
        refresh: the newest in any case.

    Raises:
        InvalidInput: the lock is malformed, or for something else.
        ImageBuildError: no mirror, no such package, a signature is wrong.
    """
    with _translated():
        file = sources.lock_file(recipe)
        notices: list[str] = []
        if lock_text is not None:
            lock = _checked(parse_lock(lock_text, "the lock"), recipe)
            return Packages(lock, _fetch(lock, sources, progress))
        if refresh or not file.exists():
            lock = _resolve(recipe, sources, file, notices, progress)
        else:
            lock = _checked(parse_lock(file.read_text(encoding="utf-8"), str(file)), recipe)
        try:
            files = _fetch(lock, sources, progress)
        except PackageGone as gone:
            notices.append(f"{gone.message}: the newest packages are taken")
            lock = _resolve(recipe, sources, file, notices, progress)
            files = _fetch(lock, sources, progress)
        return Packages(lock, files, tuple(notices))


def fill(tree: FileTree, recipe: Recipe, packages: Packages, progress: Progress) -> int:
    """Unpack into an empty tree, ready to be configured by `configure.command()`; how many packages
    there are."""
    epoch = packages.lock.epoch
    with _translated():
        unpacked = unpack(
            tree,
            packages.files,
            slim=recipe.slim,
            mtime=epoch,
            progress=lambda done, total: progress("unpack", done, total),
        )
    _put_text(tree, _SOURCES, 0o644, _apt_sources(), epoch)
    _put_text(tree, configure.POLICY, 0o755, configure.POLICY_TEXT, epoch)
    _put_text(tree, configure.SCRIPT, 0o755, configure.script(unpacked), epoch)
    if recipe.slim:
        _put_text(tree, slim.DPKG_CONFIG, 0o644, slim.DPKG_EXCLUDES, epoch)
    return len(unpacked)


def finish(tree: FileTree, layer: BinaryIO, epoch: int) -> None:
    """Apply what the configuration changed, and make the tree one that another run gives too.

    Raises:
        InvalidInput: the layer, which comes from the guest, is malformed.
    """
    for path in tree.apply(layer):
        if path in tree:
            tree.update(path, mtime=epoch)
    for path in reversed(tree.paths()):
        entry = tree.get(path)
        if entry is None:
            continue
        if slim.is_leftover(path):
            tree.remove(path)
        elif slim.is_emptied(path) and entry.kind == kinds.REGULAR:
            tree.put_file(path, entry, b"")
        elif entry.mtime > epoch:
            tree.update(path, mtime=epoch)


def image_config() -> dict[str, Any]:
    """What containers of the image inherit."""
    return {"Cmd": ["bash"], "Env": [_PATH]}


def lock_text(lock: Lock) -> str:
    return format_lock(lock)


def _resolve(
    recipe: Recipe, sources: Sources, file: Path, notices: list[str], progress: Progress
) -> Lock:
    resolution = resolve_lock(
        recipe.architecture,
        recipe.roots,
        mirrors(sources.mirror, datetime.now(UTC)),
        progress=progress,
        debian=True,
    )
    notices.extend(resolution.notices)
    private_directory(file.parent)
    atomic_write(file, format_lock(resolution.lock).encode())
    return resolution.lock


def _fetch(lock: Lock, sources: Sources, progress: Progress) -> dict[str, Path]:
    return fetch_packages(
        lock.packages,
        sources.cache,
        lambda: mirrors(sources.mirror, lock.timestamp),
        progress,
    )


def _checked(lock: Lock, recipe: Recipe) -> Lock:
    if lock.architecture != recipe.architecture:
        raise InvalidInput(
            f"the lock is for {lock.architecture}, not for {recipe.architecture}",
            hint="leave --arch out, or use another lock",
        )
    if lock.roots != recipe.roots:
        raise InvalidInput(
            f"the lock is for {' '.join(lock.roots)}, not for {' '.join(recipe.roots)}",
            hint="--include must name the packages that the lock was made with",
        )
    return lock


def _put_text(tree: FileTree, path: bytes, mode: int, text: bytes, mtime: int) -> None:
    tree.directories(path, mtime)
    tree.put_file(path, Entry(kinds.REGULAR, mode, mtime=mtime), text)


_ARCHIVES = {
    "debian": "http://ftp.debian.org/debian",
    "debian-security": "http://security.debian.org/debian-security",
}
"""Debian's own addresses of its archives."""


def _apt_sources() -> bytes:
    """deb822, sources.list(5): Debian's own addresses, whichever mirror the packages came from."""
    stanzas = []
    for archive in sorted({suite.archive for suite in SUITES}):
        suites = " ".join(suite.name for suite in SUITES if suite.archive == archive)
        stanzas.append(
            f"Types: deb\nURIs: {_ARCHIVES[archive]}\nSuites: {suites}\n"
            f"Components: main\nSigned-By: {_KEYRING}\n"
        )
    return "\n".join(stanzas).encode()


@contextmanager
def _translated() -> Iterator[None]:
    """The package archive's errors as ours."""
    try:
        yield
    except VmImageError as error:
        raise ImageBuildError(error.message, hint=error.hint) from error
