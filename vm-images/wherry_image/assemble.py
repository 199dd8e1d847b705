"""Which files of which packages make the image, and the image itself as a `Tree`.

Pure apart from reading the packages' files. The rule: what the guest's PID 1 and agent need at
run time (CPython with its standard library, nft, mkfs.ext4, e2fsck and their libraries), nothing
that serves people, compilers, package managers or boot scripts. What was left out must not be
missed: every shared library that a kept file needs is checked to be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .archive import Package
from .config import ConfigFile, ImageConfig
from .deb import Member, data_members
from .elf import is_elf, needed
from .errors import DependencyError, FormatError
from .localkernel import LocalKernel
from .modules import ModuleSource, modprobe_indexes, require_modules
from .tree import DIRECTORY, Node, Tree, char_device, regular, symlink

MODULES_FILE = "/etc/wherry/modules"
PACKAGES_FILE = "/etc/wherry/packages"

_KERNEL_PACKAGE = re.compile("linux-(image|binary|modules|base)-")
"""Debian's kernels up to 6.12 are one package, later ones are cut in four."""
_KERNEL_PATH = re.compile(r"(?:/usr)?/lib/modules/([^/]+)/vmlinuz$|/boot/vmlinuz-(.+)$")

_MULTIARCH = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_LOADER_DIRECTORY = {"amd64": "lib64", "arm64": "lib"}

_MERGED = ("bin", "sbin", "lib", "lib64")
"""Debian's merged /usr: these are links in the root directory (base-files)."""

_DIRECTORIES = (
    "dev",
    "etc",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var/lib/wherry",
    "var/log",
)

_DEVICES = (
    ("console", 5, 1, 0o600),
    ("null", 1, 3, 0o666),
    ("urandom", 1, 9, 0o666),
)
"""What PID 1 needs before it mounts devtmpfs: the kernel opens /dev/console for it (init/main.c),
and Python asks /dev/urandom for its hash seed while the kernel's generator has no entropy yet.
Numbers: Documentation/admin-guide/devices.txt."""

_DROPPED = re.compile(
    r"""/usr/share/(applications|bash-completion|binfmts|bug|common-licenses|debconf|doc|doc-base
          |gdb|info|initramfs-tools|lintian|locale|man|menu|nftables|pixmaps|python3|zsh)(/|$)
      | /usr/lib/(systemd|udev|tmpfiles\.d|sysusers\.d|binfmt\.d|e2fsprogs|init)(/|$)
      | /usr/lib/[^/]+-linux-gnu/(gconv|audit|e2fsprogs|perl|engines-3|ossl-modules)(/|$)
      | /usr/lib/[^/]+-linux-gnu/lib(c_malloc_debug|memusage|pcprofile|mvec|thread_db|nsl
          |nss_hesiod|nss_compat|expatw|BrokenLocale|anl|form|menu|panel|ss)[.-][^/]*$
      | /usr/lib/python3(/|$)
      | /usr/lib/python3\.\d+/(__phello__|ctypes/(macholib|test)|curses|dbm|distutils|ensurepip
          |idlelib|lib2to3|pydoc_data|sqlite3|test|tests|tkinter|turtledemo|unittest|venv|wsgiref
          |xmlrpc|_pyrepl
          |(antigravity|bz2|cProfile|doctest|ftplib|imaplib|lzma|mailbox|nturl2path|pdb|pickletools
            |poplib|profile|pstats|pydoc|rlcompleter|smtplib|this|turtle|webbrowser
            |_pydatetime|_pydecimal|_pyio)\.py)(/|$)
      | /usr/lib/python3\.\d+/lib-dynload/(_bz2|_codecs_|_ctypes_test|_curses|_dbm|_hashlib|_lsprof
          |_lzma|_multibytecodec|_sqlite3|_ssl|_test|_xxtestfuzz|nis|readline|xx)[^/]*$
      | .*/(__pycache__|tests)(/|$)
      | .*\.(a|la|pyc|h)$
      | /etc/(apparmor\.d|bash_completion\.d|binfmt\.d|cron\.[a-z]+|default|init\.d|kernel
          |logrotate\.d|python3[.\d]*|sysctl\.conf)(/|$)
      | /usr/(games|include|local|src)(/|$)
      | /usr/bin/(chattr|lsattr|pdb3[.\d]*|py3[a-z]+|pydoc3[.\d]*|pygettext3[.\d]*)$
      | /usr/sbin/(badblocks|debugfs|dumpe2fs|e2freefrag|e2image|e2label|e2mmpstatus
          |e2scrub[a-z_]*|e2undo|e4crypt|e4defrag|filefrag|findfs|fsck\.ext[23]|logsave
          |mkfs\.ext[23]|mklost\+found)$
    """,
    re.X,
)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of an image before they are written."""

    root: Tree
    kernel: bytes
    kernel_version: str
    busybox: bytes
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kernel:
    """`modules`: path below the kernel's module directory to content."""

    version: str
    image: bytes
    modules: Mapping[str, bytes]


def assemble(
    config: ImageConfig,
    arch: str,
    packages: Sequence[Package],
    files: Mapping[str, Path],
    busybox: tuple[str, str],
    local: LocalKernel | None = None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Assembly:
    """Unpack `packages` (found in `files` by name) into one tree and complete it.

    Args:
        busybox: (package, path) of the busybox binary, which goes into an image of its own.
        local: the user's own kernel, instead of one in a package.
        step: called with (packages done, of how many).

    Raises:
        FormatError, DependencyError: a package is damaged, or lacks what the image needs.
    """
    root = _skeleton(arch)
    kernel_files: dict[str, bytes] = {}
    binary = b""
    for number, package in enumerate(sorted(packages, key=lambda package: package.name)):
        members = data_members(files[package.name].read_bytes())
        try:
            if _KERNEL_PACKAGE.match(package.name):
                kernel_files.update(_regular_files(members))
            elif package.name == busybox[0]:
                binary = _regular_files(members).get(busybox[1], b"")
                if busybox[0] in config.init:
                    root.add_file(busybox[1], binary, 0o755)
            else:
                _install(root, list(members))
        except FormatError as error:
            raise FormatError(f"{package.name}: {error}") from error
        step(number + 1, len(packages))
    if not binary:
        raise FormatError(f"{busybox[0]} has no {busybox[1]}")
    kernel = _local_kernel(local) if local else _packaged_kernel(kernel_files)
    notices = _add_modules(root, config, kernel)
    _add_package_list(root, packages)
    for file in config.files:
        _add_config_file(root, file)
    check_libraries(root, arch)
    return Assembly(root, kernel.image, kernel.version, binary, notices)


def keep(path: str) -> bool:
    """Whether a packaged file belongs in the image."""
    return not _DROPPED.match(path)


def check_libraries(root: Tree, arch: str) -> None:
    """Every library that an ELF file of the tree needs must be where the dynamic linker looks.

    Raises:
        DependencyError: names the first file and the library that it misses.
    """
    directories = (f"/usr/lib/{_MULTIARCH[arch]}", "/usr/lib", f"/usr/{_LOADER_DIRECTORY[arch]}")
    for path, node in root:
        if not node.is_file or not is_elf(node.data) or path.endswith(".ko"):
            continue
        for library in needed(node.data):
            if not any(root.resolve(f"{directory}/{library}") for directory in directories):
                raise DependencyError(
                    f"{path} needs {library}, which is not in the image",
                    hint="name its package in linuxkit.yml",
                )


def _skeleton(arch: str) -> Tree:
    root = Tree()
    for name in _MERGED:
        root.add(f"/usr/{name}", DIRECTORY)
        root.add(f"/{name}", symlink(f"usr/{name}"))
    for name in _DIRECTORIES:
        root.add(f"/{name}", DIRECTORY)
    root.add("/tmp", Node(DIRECTORY.mode | 0o1777))
    for name, major, minor, permissions in _DEVICES:
        root.add(f"/dev/{name}", char_device(major, minor, permissions))
    return root


def _regular_files(members: Iterable[Member]) -> dict[str, bytes]:
    return {member.path: member.data for member in members if member.kind == "file"}


def _install(root: Tree, members: Sequence[Member]) -> None:
    content = {member.path: member for member in members if member.kind == "file"}
    for member in members:
        if not keep(member.path) or member.kind in ("device", "directory"):
            continue  # directories come into being with their files; packages hold no devices
        if member.kind == "symlink":
            root.add(member.path, symlink(member.target))
            continue
        source = content.get(member.target) if member.kind == "hardlink" else member
        if source is None:
            raise FormatError(f"{member.path} is a link to nothing")
        root.add(member.path, regular(source.data, _permissions(source)))


def _permissions(member: Member) -> int:
    """0755 or 0644: there is one user in the VM, and set-id bits serve nobody."""
    return 0o755 if member.permissions & 0o111 else 0o644


def _local_kernel(local: LocalKernel) -> _Kernel:
    return _Kernel(local.version, local.image, local.modules())


def _packaged_kernel(files: Mapping[str, bytes]) -> _Kernel:
    kernels = {path: match[1] or match[2] for path in files if (match := _KERNEL_PATH.match(path))}
    if len(kernels) != 1:
        raise FormatError("kernel.image must bring exactly one kernel")
    ((place, version),) = kernels.items()
    modules = {
        below: data
        for path, data in files.items()
        for directory in (f"/usr/lib/modules/{version}/", f"/lib/modules/{version}/")
        if (below := path.removeprefix(directory)) != path
    }
    return _Kernel(version, files[place], modules)


def _add_modules(root: Tree, config: ImageConfig, kernel: _Kernel) -> tuple[str, ...]:
    """Add the modules that PID 1 loads, which must be there, and the available ones that are.

    Returns:
        A line about those that are not.
    """
    version = kernel.version
    prefix = f"/usr/lib/modules/{version}/"
    source = ModuleSource(kernel.modules)
    require_modules(source, config.modules, version)
    absent = source.missing(config.available_modules)
    available = [name for name in config.available_modules if name not in absent]
    loaded = source.load_order(config.modules)
    everything = source.load_order((*config.modules, *available))
    for module in everything:
        root.add_file(prefix + module.path, module.data)
    for name, index in modprobe_indexes(everything).items():
        root.add_file(prefix + name, index)
    root.add_file(prefix + "modules.builtin", kernel.modules.get("modules.builtin", b""))
    order = "".join(f"/lib/modules/{version}/{module.path}\n" for module in loaded)
    root.add_file(MODULES_FILE, order.encode())
    return (f"kernel {version} has no modules {', '.join(absent)}",) if absent else ()


def _add_package_list(root: Tree, packages: Sequence[Package]) -> None:
    lines = (f"{p.name} {p.version} {p.architecture}\n" for p in packages)
    root.add_file(PACKAGES_FILE, "".join(sorted(lines)).encode())


def _add_config_file(root: Tree, file: ConfigFile) -> None:
    if file.directory:
        root.add(file.path, Node(DIRECTORY.mode & ~0o7777 | file.mode))
    elif file.symlink is not None:
        root.add(file.path, symlink(file.symlink))
    else:
        root.add_file(file.path, (file.contents or "").encode(), file.mode)
