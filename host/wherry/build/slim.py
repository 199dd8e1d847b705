"""What of a Debian an image can do without. Pure: paths in, decisions out."""

from __future__ import annotations

import re

_DOCUMENTATION = re.compile(
    r"/usr/share/(doc/(?!.*/copyright$).+|man/.+|info/.+|locale/(?!locale\.alias$).+"
    r"|groff/.+|lintian/.+|linda/.+)"
)
"""What Debian's own `slim` images leave out. A copyright file stays: the licences ask for it."""

DPKG_CONFIG = b"etc/dpkg/dpkg.cfg.d/slim"
DPKG_EXCLUDES = b"""\
# Packages that are installed into this image leave out what the image itself leaves out.
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/man/*
"""

_LEFTOVERS = re.compile(
    rb"""etc/(machine-id|\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-|ld\.so\.cache~
           |hostname|resolv\.conf|mtab)
       | run/.+ | tmp/.+ | var/tmp/.+
       | var/backups/.+
       | var/cache/apt/.+\.bin | var/cache/apt/archives/.+\.deb
       | var/cache/debconf/.+-old
       | var/cache/ldconfig/aux-cache
       | var/cache/man/.+
       | var/lib/apt/lists/.+
       | var/lib/dbus/machine-id
       | var/lib/dpkg/(lock|lock-frontend|[a-z-]+-old|triggers/Lock)
       | var/lib/systemd/(catalog/database|random-seed)
       | var/log/(.+/)?[^/]+\.(log|gz|[0-9]+)
       | wherry-bootstrap(/.*)?
    """,
    re.X,
)
"""Traces of the making: logs, backups of files, caches and locks, what is another in every machine.
"""

_EMPTIED = re.compile(rb"var/log/(.+/)?(btmp|wtmp|lastlog|faillog)")
"""Logs that programs expect to be there."""


def is_documentation(path: str) -> bool:
    """Whether `path` (absolute) is what a slim image leaves out."""
    return _DOCUMENTATION.fullmatch(path) is not None


def is_leftover(path: bytes) -> bool:
    """Whether `path` (relative) is a trace of the making."""
    return _LEFTOVERS.fullmatch(path) is not None


def is_emptied(path: bytes) -> bool:
    """Whether the file at `path` stays without its contents."""
    return _EMPTIED.fullmatch(path) is not None
