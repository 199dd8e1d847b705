"""Checks of the host: the state directory, disk space, what was left lying about."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from wherry.doctor.finding import Context, Finding, fail, ok, warn
from wherry.osutil import has_no_room
from wherry.paths import SOCKET_PATH_LIMIT
from wherry.settings import load_settings
from wherry.units import human_size

LITTLE_SPACE = 5 << 30
"""Bytes below which pulling an image or the guest's writes may fill the disk."""
NO_SPACE = 512 << 20
LITTLE_SOCKET_SPACE = 1 << 20

LEFTOVER_AGE = 3600.0
"""Seconds after which a temporary file is nobody's: a write takes moments, a start a minute."""

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "ncpfs", "9p", "ceph", "afs"}
    | {"glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone"}
)

_TEMPORARY = re.compile(r"\.(.+\.[a-z0-9_]{8}|.+\.new|[0-9a-f]+\.s)")
"""As `osutil.atomic_write`, `create_disk` and `listen_unix` name what is not whole yet."""

_HOME = "state-directory"
FIX = "wherry doctor --fix"


def settings_file(context: Context) -> Iterator[Finding]:
    """Raises InvalidInput when the file is wrong; the doctor then goes on with the defaults."""
    file = context.home.settings_file
    load_settings(file, context.environ)
    yield ok("settings", f"{file} is read" if file.exists() else "there is none: the defaults")


def state_directory(context: Context) -> Iterator[Finding]:
    """Ours, writable, and closed to others."""
    root = context.home.root
    try:
        status = root.stat()
    except FileNotFoundError:
        yield ok(_HOME, f"{root} does not exist yet")
        return
    except OSError as error:
        yield fail(_HOME, f"{root}: {error.strerror}", "set WHERRY_HOME to a directory of your own")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield fail(_HOME, f"{root} is no directory", "set WHERRY_HOME to a directory of your own")
        return
    yield from _permissions(root, status)
    yield from _file_system(root)


def _permissions(root: Path, status: os.stat_result) -> Iterator[Finding]:
    if sys.platform == "win32":
        yield ok(_HOME, f"{root} is there")
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        yield fail(
            _HOME,
            f"{root} belongs to another user (uid {status.st_uid})",
            "set WHERRY_HOME to a directory of your own",
        )
    elif mode & 0o077:

        def close() -> str:
            root.chmod(0o700)
            return f"{root} has mode 0700 now"

        yield fail(
            _HOME,
            f"others can enter {root} (mode {mode:04o})",
            f"chmod 700 {root}, or wherry doctor --fix",
            close,
        )
    elif (error := _refusal(root)) is not None:
        yield fail(_HOME, f"{root} cannot be written to: {error.strerror}", _advice(error))
    else:
        yield ok(_HOME, f"{root} is ours alone")


def _refusal(root: Path) -> OSError | None:
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return error
    return None


def _advice(error: OSError) -> str:
    if has_no_room(error):
        return "see disk-space"
    if error.errno == errno.EROFS:
        return (
            "what is there can be read. The system mounts a disk that fails so: look into its log, "
            "mount it to be written again, or set WHERRY_HOME to a directory of another disk"
        )
    return "what is there can be read. Correct its permissions, or set WHERRY_HOME"


def _file_system(root: Path) -> Iterator[Finding]:
    kind = file_system_type(root)
    if kind in NETWORK_FILE_SYSTEMS:
        yield warn(
            "file-system",
            f"{root} is on a network file system ({kind}): SQLite's and QEMU's locks may not hold "
            "there, and sockets cannot be on it",
            "set WHERRY_HOME to a directory on a disk of this computer",
        )
    elif kind:
        yield ok("file-system", f"{root} is on {kind}")


def file_system_type(path: Path) -> str:
    """The type of the file system that `path` is on, "" where that cannot be found out."""
    if sys.platform == "linux":
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        return type_in_mountinfo(text, path.resolve())
    if sys.platform == "darwin":
        done = subprocess.run(["/sbin/mount"], capture_output=True, timeout=5, check=False)
        return type_in_mount_output(done.stdout.decode(errors="replace"), path.resolve())
    return ""


def type_in_mountinfo(text: str, path: Path) -> str:
    """Of proc_pid_mountinfo(5): the mount point that is the longest beginning of `path`."""
    found: list[tuple[Path, str]] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) >= 5 and after:
            point = fields[4].encode().decode("unicode_escape", errors="replace")
            found.append((Path(point), after.split()[0]))
    return _longest(found, path)


def type_in_mount_output(text: str, path: Path) -> str:
    """Of macOS's mount(8): `/dev/disk3s1 on / (apfs, local)`."""
    found: list[tuple[Path, str]] = []
    for line in text.splitlines():
        rest = line.partition(" on ")[2]
        point, _, options = rest.rpartition(" (")
        if point:
            found.append((Path(point), options.split(",")[0].rstrip(")")))
    return _longest(found, path)


def _longest(found: list[tuple[Path, str]], path: Path) -> str:
    """A later mount on the same point hides an earlier one."""
    best, kind = -1, ""
    for point, of in found:
        if (point == path or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), of
    return kind


def disk_space(context: Context) -> Iterator[Finding]:
    root = _existing(context.home.root)
    free = shutil.disk_usage(root).free
    text = f"{human_size(free)} free where {context.home.root} is"
    advice = "make room, also with: wherry system prune; or move WHERRY_HOME to another disk"
    if free < NO_SPACE:
        yield fail("disk-space", f"only {text}", advice)
    elif free < LITTLE_SPACE:
        yield warn("disk-space", f"only {text}", advice)
    else:
        yield ok("disk-space", text)
    for directory in sorted(
        {_existing(context.home.machine(it).sockets) for it in context.machines}
    ):
        if shutil.disk_usage(directory).free < LITTLE_SOCKET_SPACE:
            yield fail("socket-space", f"no room where the sockets are ({directory})", advice)


def socket_paths(context: Context) -> Iterator[Finding]:
    """The limit is sun_path's; `paths` falls back to a short directory, which may be long, too."""
    if sys.platform == "win32":
        return
    names = context.machines or (context.settings.default_machine,)
    for name in names:
        path = os.fsencode(context.home.machine(name).rescue_socket)
        if len(path) > SOCKET_PATH_LIMIT:
            yield fail(
                "socket-paths",
                f"the sockets' path of machine {name!r} has {len(path)} bytes, "
                f"{SOCKET_PATH_LIMIT} are possible",
                "set WHERRY_HOME to a shorter path",
            )
            return
    yield ok("socket-paths", f"short enough: {context.home.machine(names[0]).sockets}")


def leftovers(context: Context) -> Iterator[Finding]:
    """Temporary files of processes that were killed."""
    old = [path for path in _temporaries(context) if _age(path) > LEFTOVER_AGE]
    if not old:
        yield ok("leftovers", "no temporary files were left")
        return

    def remove() -> str:
        for path in old:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return f"{len(old)} removed"

    names = ", ".join(path.name for path in old[:3]) + (", …" if len(old) > 3 else "")
    size = human_size(sum(_size(path) for path in old))
    yield warn("leftovers", f"{len(old)} temporary files were left ({names}; {size})", FIX, remove)


def _temporaries(context: Context) -> Iterator[Path]:
    home = context.home
    places = [home.root, home.vm_locks, *(home.machine(name).root for name in context.machines)]
    places += [home.machine(name).sockets for name in context.machines]
    for place in sorted(set(places)):
        for path in _entries(place):
            if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
                yield path
    for path in _entries(Path(tempfile.gettempdir())):
        if path.name.startswith("wherry-probe-") and _is_ours(path):
            yield path


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []  # another check tells of a directory that cannot be read


def _is_ours(path: Path) -> bool:
    return sys.platform == "win32" or path.lstat().st_uid == os.geteuid()


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0  # it went meanwhile


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _existing(path: Path) -> Path:
    """It, or the nearest directory above that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
