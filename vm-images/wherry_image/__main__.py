"""`python -m wherry_image lock|build`: for maintainers and for looking at an image. Users need
`wherry`."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from .archive import ARCHITECTURES
from .build import build_image, refresh_lock
from .errors import VmImageError
from .foreign import QEMU_USER
from .kernels import DEFAULT, KernelChoice, parse_kernel
from .sshserver import SSH_SERVER


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _lock(options) if options.command == "lock" else _build(options)
    except VmImageError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wherry_image")
    commands = parser.add_subparsers(dest="command", required=True)
    lock = commands.add_parser("lock", help="choose the newest signed packages")
    build = commands.add_parser("build", help="build an image, or find the finished one")
    for command in (lock, build):
        command.add_argument("--arch", choices=ARCHITECTURES, default=_host_architecture())
        command.add_argument("--config", type=Path, help="a linuxkit.yml")
        command.add_argument("--kernel", default=DEFAULT, help="a series, or a kernel's path")
        command.add_argument("--modules", default="", help="directory of a path's modules")
        command.add_argument("--mirror", help="base URL of a Debian mirror")
        command.add_argument("--locks", type=Path, help="directory of ARCH.lock")
    build.add_argument("--out", type=Path, default=Path(".cache/vm"), help="finished images")
    build.add_argument("--packages", type=Path, default=Path(".cache/packages"), help="cache")
    build.add_argument("--locked", action="store_true", help="build what the lock says or fail")
    return parser


def _host_architecture() -> str:
    return "arm64" if platform.machine().lower() in ("arm64", "aarch64") else "amd64"


def _lock(options: argparse.Namespace) -> int:
    directory = options.locks or Path(__file__).parent.parent
    change = refresh_lock(
        arch=options.arch,
        locks=[directory],
        config=options.config,
        kernel=_kernel(options),
        mirror=options.mirror,
        progress=_show,
    )
    changes = [*change.packages]
    for addon in (QEMU_USER, SSH_SERVER):
        changes += addon.refresh(
            arch=options.arch, locks=[directory], mirror=options.mirror, progress=_show
        )
    for line in (*change.notices, *map(str, changes)):
        print(line)
    print(f"{change.path}: {len(change.packages)} packages changed")
    return 0


def _build(options: argparse.Namespace) -> int:
    image = build_image(
        arch=options.arch,
        config=options.config,
        kernel=_kernel(options),
        locks=[options.locks] if options.locks else [],
        packages=options.packages,
        out=options.out,
        mirror=options.mirror,
        locked=options.locked,
        progress=_show,
    )
    for notice in image.notices:
        print(notice, file=sys.stderr)
    for name in ("key", "kernel_version", "kernel", "fast_kernel", "initrd", "busybox", "cmdline"):
        print(f"{name}: {getattr(image, name)}")
    return 0


def _kernel(options: argparse.Namespace) -> KernelChoice:
    return parse_kernel(options.kernel, options.modules)


def _show(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{what} {100 * done // max(total, 1)} %", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
