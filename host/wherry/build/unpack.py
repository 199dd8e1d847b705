"""Packages to a root file system in which they are unpacked and not configured yet.

Any OS, no root: archives are read, nothing is run. Paths below the links of the merged /usr
(`/bin`, `/lib`, …) end where these point to, as if dpkg had unpacked them. Debian's archive is
trusted here (every package has the digest that a signed index gives), so faults are simply errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from wherry.build.dpkg import UnpackedPackage, conffile_names, database_files, md5
from wherry.build.slim import is_documentation
from wherry.build.tree import Entry, FileTree
from wherry.errors import InvalidInput
from wherry.images import tar_entry as kinds
from wherry_image.deb import Member, control_files, data_members

MERGED = (b"bin", b"lib", b"lib64", b"sbin")
"""Links to the directory of the same name in /usr; base-files brings them, and others come first
in the alphabet."""

Progress = Callable[[int, int], None]
"""progress(packages done, of how many)"""


def unpack(
    tree: FileTree,
    files: Mapping[str, Path],
    *,
    slim: bool,
    mtime: int,
    progress: Progress = lambda done, total: None,
) -> list[UnpackedPackage]:
    """Put the packages into an empty tree, with dpkg's database of them.

    Args:
        files: package name to .deb.
        slim: leave documentation and translations out.
        mtime: of what no package says the time.

    Raises:
        InvalidInput, wherry_image.FormatError: a package is damaged.
    """
    for merged in MERGED:
        tree.put(b"usr/" + merged, Entry(kinds.DIRECTORY, 0o755, mtime=mtime))
        tree.put(merged, Entry(kinds.SYMLINK, 0o777, mtime=mtime, link=b"usr/" + merged))
    packages = []
    for number, name in enumerate(sorted(files)):
        packages.append(_unpack_one(tree, name, files[name], slim, mtime))
        progress(number + 1, len(files))
    for path, (mode, data) in database_files(packages).items():
        tree.directories(path, mtime)
        tree.put_file(path, Entry(kinds.REGULAR, mode, mtime=mtime), data)
    return packages


def _unpack_one(tree: FileTree, name: str, file: Path, slim: bool, mtime: int) -> UnpackedPackage:
    deb = file.read_bytes()
    control = control_files(deb)
    wanted = set(conffile_names(control))
    digests: dict[str, str] = {}
    paths = []
    for member in data_members(deb):
        if member.path == "/":
            continue
        paths.append(member.path)
        if member.path in wanted and member.kind == "file":
            digests[member.path] = md5(member.data)
        if not (slim and is_documentation(member.path)):
            _place(tree, name, member, mtime)
    conffiles = {path: digests[path] for path in conffile_names(control) if path in digests}
    return UnpackedPackage(name, control, paths, conffiles)


def _place(tree: FileTree, package: str, member: Member, mtime: int) -> None:
    path = tree.resolved(member.path.encode("utf-8", "surrogateescape")[1:])
    tree.directories(path, mtime)
    facts = (member.permissions, member.uid, member.gid, member.mtime)
    target = member.target.encode("utf-8", "surrogateescape")
    if member.kind == "file":
        tree.put_file(path, Entry(kinds.REGULAR, *facts), member.data)
    elif member.kind == "directory":
        old = tree.get(path)
        if old is None or old.kind != kinds.SYMLINK:  # as dpkg: a link to a directory stays
            tree.put(path, Entry(kinds.DIRECTORY, *facts))
    elif member.kind == "symlink":
        tree.put(path, Entry(kinds.SYMLINK, *facts, link=target))
    elif member.kind == "hardlink":
        tree.put_link(path, tree.resolved(target[1:]))
    else:
        raise InvalidInput(f"{package}: {member.path} is a device")
