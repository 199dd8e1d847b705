"""How unpacked packages are configured: the script that a container of them runs. Pure.

In two rounds, as debootstrap does: first the system that every Debian has, then what was asked for,
whose scripts may rely on it. Scripts that dpkg would have run before it unpacked are run before
their round. `policy-rc.d` forbids services to be started; debconf asks nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from wherry.build.dpkg import UnpackedPackage
from wherry_image.resolve import Index, closure

DIRECTORY = b"wherry-bootstrap"
"""Where the script is, in the root; gone from the finished image."""

SCRIPT = DIRECTORY + b"/configure"
POLICY = b"usr/sbin/policy-rc.d"
POLICY_TEXT = b"#!/bin/sh\n# No service is started while an image is made.\nexit 101\n"

FIRST = ("base-passwd", "base-files")
"""Their preinst scripts make /etc/passwd and /etc/group, which others read."""


def command() -> list[str]:
    return ["/bin/sh", f"/{SCRIPT.decode()}"]


def environment(epoch: int) -> list[str]:
    """What the script needs to be quiet and to give the same result every time."""
    return [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LC_ALL=C.UTF-8",
        "DEBIAN_FRONTEND=noninteractive",
        "DEBCONF_NONINTERACTIVE_SEEN=true",
        "DEBCONF_NOWARNINGS=yes",
        "PERL_HASH_SEED=0",
        f"SOURCE_DATE_EPOCH={epoch}",
    ]


def script(packages: Sequence[UnpackedPackage]) -> bytes:
    """The shell script; it ends with a code other than 0 as soon as something fails."""
    basic = _basic_closure(packages)
    first = [package for package in packages if package.name in basic]
    rest = [package for package in packages if package.name not in basic]
    lines = ["#!/bin/sh", "set -e", "cd /", "umask 022", "export DPKG_MAINTSCRIPT_NAME=preinst"]
    lines += ["export DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT= DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1"]
    lines += _preinst(first)
    if rest:
        lines.append(f"dpkg --configure {' '.join(package.key for package in first)}")
        lines += _preinst(rest)
    lines.append("dpkg --configure --pending")
    return "\n".join(lines).encode() + b"\n"


def _basic_closure(packages: Sequence[UnpackedPackage]) -> set[str]:
    index = Index()
    index.add({package.name: [package.as_package()] for package in packages})
    basic = [package.name for package in packages if package.basic]
    return {package.name for package in closure(index, basic, excluded={})}


def _preinst(packages: Sequence[UnpackedPackage]) -> list[str]:
    def order(package: UnpackedPackage) -> tuple[int, str]:
        number = FIRST.index(package.name) if package.name in FIRST else len(FIRST)
        return number, package.name

    lines = []
    for package in sorted(packages, key=order):
        if "preinst" in package.control:
            words = [
                f"DEBCONF_PACKAGE={package.name}",
                f"DPKG_MAINTSCRIPT_PACKAGE={package.name}",
                f"DPKG_MAINTSCRIPT_ARCH={package.fields['architecture']}",
                shlex.quote(f"/var/lib/dpkg/info/{package.key}.preinst"),
                "install",
            ]
            lines.append(" ".join(words))
    return lines
