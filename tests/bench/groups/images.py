"""A large image between registries on loopback and the store, against skopeo, umoci and podman.

Debian with compilers, in twelve layers. Every round begins with an empty store, or an empty
registry, on both sides.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

from needs import require
from registry import RunningRegistry, running_registry

from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

from ..bench import Bench, python
from ..measure import Samples, run, run_tree
from ..report import Row, Target
from ..tars import cut

TITLE = "Registries (Debian with compilers, 12 layers, gzip, on loopback)"
PACKAGES = ("g++", "golang-go", "clang", "rustc", "default-jdk-headless")
LAYERS = 12
NAME = "compilers:12"
_MB = 1e6
_PULL_RATIO = 0.8
_PUSH_RATIO = 1.0


def rows(bench: Bench) -> Iterator[Row]:
    tar = bench.debian(*PACKAGES)
    skopeo, umoci = require("skopeo", "skopeo"), require("umoci", "umoci")
    podman = require("podman", "podman")
    directory = bench.cache / "bench" / f"registry-{tar.stat().st_mtime_ns}"
    directory.mkdir(parents=True, exist_ok=True)
    with running_registry(directory) as registry:
        name = _pushed(bench, registry, directory, tar)
        yield from _pulls(bench, name, tar, skopeo, umoci, podman)
        home = Home(bench.work / "to-push")
        run(_child("pull", home.root, name), env=bench.environment)
    yield _pushes(bench, home, name, skopeo)


def _pulls(
    bench: Bench, name: str, tar: Path, skopeo: str, umoci: str, podman: str
) -> Iterator[Row]:
    ours, again, peak = Samples(), Samples(), Samples()
    unpacked, by_podman = Samples(), Samples()
    for number in range(bench.few):
        home = bench.work / f"large-{number}"
        done = run_tree(_child("pull", home, name), env=bench.environment)
        ours.add(done.seconds)
        peak.add(done.peak_bytes / _MB)
        for _ in range(bench.rounds):
            again.add(run(_child("pull", home, name), env=bench.environment).seconds)
        shutil.rmtree(home)
        work = bench.directory(f"large-unpack-{number}")
        layout = f"{work / 'layout'}:it"
        copy = [skopeo, "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
        seconds = run([*copy, f"docker://{name}", f"oci:{layout}"]).seconds
        unpacked.add(
            seconds + run([umoci, "unpack", "--image", layout, str(work / "bundle")]).seconds
        )
        shutil.rmtree(work)
        with _podman(bench.directory(f"large-podman-{number}"), podman) as command:
            pull = [*command, "pull", "--quiet", "--tls-verify=false", name]
            by_podman.add(run(pull).seconds)
    what = f"pull until runnable ({tar.stat().st_size / _MB:,.0f} MB unpacked)"
    limit = Target(_PULL_RATIO * by_podman.median)
    yield Row(what, "s", ours, by_podman, "`podman pull` (overlay)", limit)
    limit = Target(_PULL_RATIO * unpacked.median)
    yield Row("the same", "s", ours, unpacked, "`skopeo copy` + `umoci unpack`", limit)
    yield Row("its peak memory, all processes", "MB", peak, target=Target(150))
    yield Row("pull of an unchanged tag, process included", "s", again, target=Target(0.3))


def _pushes(bench: Bench, home: Home, name: str, skopeo: str) -> Row:
    ours, theirs = Samples(), Samples()
    copy = [skopeo, "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    for number in range(bench.rounds):
        with _empty_registry(bench.directory(f"ours-{number}")) as registry:
            target = f"{registry.host}/ours:1"
            _tag_unknown(home, name, target)
            ours.add(run(_child("push", home.root, target), env=bench.environment).seconds)
        with _empty_registry(bench.directory(f"theirs-{number}")) as registry:
            source, target = f"oci:{home.store}:{name}", f"docker://{registry.host}/theirs:1"
            theirs.add(run([*copy, source, target]).seconds)
    limit = Target(_PUSH_RATIO * theirs.median)
    return Row("push to an empty registry", "s", ours, theirs, "`skopeo copy`", limit)


@contextlib.contextmanager
def _empty_registry(directory: Path) -> Iterator[RunningRegistry]:
    with running_registry(directory) as registry:
        yield registry
    shutil.rmtree(directory)


def _tag_unknown(home: Home, name: str, target: str) -> None:
    """A name in a registry of which nothing is known: there is nowhere to mount from."""
    store = ImageStore(home, Settings())
    store.tag(name, target)
    store.close()
    with contextlib.closing(sqlite3.connect(home.store_db)) as database, database:
        database.execute("DELETE FROM blob_sources")


@contextlib.contextmanager
def _podman(directory: Path, podman: str) -> Iterator[list[str]]:
    """A command line with a storage of its own."""
    places = ["--root", str(directory / "root"), "--runroot", str(directory / "run")]
    command = [podman, *places, "--storage-driver", "overlay"]
    try:
        yield command
    finally:
        subprocess.run([*command, "rmi", "-af"], check=False, capture_output=True)
        if os.path.ismount(directory / "root" / "overlay"):
            subprocess.run(["umount", str(directory / "root" / "overlay")], check=True)
        shutil.rmtree(directory)


def _child(command: str, home: Path, name: str) -> list[str]:
    return python("-m", "tests.bench.child", command, str(home), name)


def _pushed(bench: Bench, registry: RunningRegistry, directory: Path, tar: Path) -> str:
    """The name to pull; the registry's data is kept between runs."""
    done = directory / f"pushed-{LAYERS}"
    if not done.exists():
        work = bench.directory("cut-large")
        registry.push_layers(cut(tar, LAYERS, work), NAME, config={"Cmd": ["bash"]})
        shutil.rmtree(work)
        done.touch()
    return f"{registry.host}/{NAME}"
