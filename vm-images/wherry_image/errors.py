"""The errors of the image builder, each one line for a person and a hint.

`wherry_image` stands alone, so it does not use `wherry.errors`; the machine translates.

    VmImageError               the VM image could not be made
    ├── ConfigError            linuxkit.yml is wrong; the message starts with file:line
    ├── LockError              a lock file is damaged, or does not fit the configuration
    ├── SignatureError         an index is not signed by Debian, or is not the one that was signed
    ├── DependencyError        no set of packages satisfies what is asked for
    ├── MirrorError            no mirror answers, or none has the file
    │   └── PackageGone        mirrors answer, but a locked package is on none of them
    ├── FormatError            a .deb, an archive in it, or a kernel module is damaged
    └── StorageError           the finished image could not be kept
"""

from __future__ import annotations


class VmImageError(Exception):
    """Base of all errors of this package.

    Args:
        message: one line, no trailing full stop.
        hint: what to do next, one line.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(VmImageError):
    pass


class LockError(VmImageError):
    pass


class SignatureError(VmImageError):
    pass


class DependencyError(VmImageError):
    pass


class MirrorError(VmImageError):
    pass


class PackageGone(MirrorError):
    pass


class FormatError(VmImageError):
    pass


class StorageError(VmImageError):
    pass
