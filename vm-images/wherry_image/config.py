"""linuxkit.yml: LinuxKit's own file format, read strictly.

Sans-I/O: text in, values out. Every mistake is an error that names file, line and key. Format:
https://github.com/linuxkit/linuxkit/blob/master/docs/yaml.md. What this builder understands:

    kernel:   {image, cmdline}
    init:     [image, …]
    onboot, services: [{name, image, command, …}]   read, but refused for now: they need OCI images
    files:    [{path, contents | source | symlink | directory, mode, optional}]

An image is `deb:name[,name…]` (packages of the distribution) or an OCI reference (not supported
yet). The kernel's may be `deb:name/release`, as in apt-get(8): from another release of Debian.
`{arch}` in an image or in the command line is Debian's name of the architecture, `{console}` the
name of its first serial port. Files below `etc/modules-load.d/` (systemd's format: a name a line,
# comments) say which kernel modules PID 1 loads, those below `etc/modules-available.d/` which ones
are there for modprobe, where the kernel has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from .archive import RELEASES
from .errors import ConfigError

if TYPE_CHECKING:
    import yaml

CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
"""The first serial port of QEMU's q35 and virt machines."""

BUSYBOX_PACKAGE = "busybox-static"
BUSYBOX_BINARY = "/usr/bin/busybox"
"""What `localhost/busybox` is made of; always part of a lock, in the VM only where it is named."""

_LOADED = PurePosixPath("/etc/modules-load.d")
_AVAILABLE = PurePosixPath("/etc/modules-available.d")
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_TOP_KEYS = ("kernel", "init", "onboot", "services", "files")
_KERNEL_KEYS = ("image", "cmdline")
_FILE_KEYS = ("path", "contents", "directory", "symlink", "mode")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """An entry of `files`. Exactly one of contents, symlink and directory is set."""

    path: str
    contents: str | None = None
    symlink: str | None = None
    directory: bool = False
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A configuration for one architecture: placeholders are filled in."""

    kernel: tuple[str, ...]
    cmdline: str
    init: tuple[str, ...]
    files: tuple[ConfigFile, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Kernel modules that PID 1 loads, in the order of the file."""
        return self._names(_LOADED)

    @property
    def available_modules(self) -> tuple[str, ...]:
        """Kernel modules that are loaded when somebody asks for them."""
        return self._names(_AVAILABLE)

    def _names(self, directory: PurePosixPath) -> tuple[str, ...]:
        lines = (
            line.strip()
            for file in self.files
            if PurePosixPath(file.path).parent == directory
            for line in (file.contents or "").splitlines()
        )
        return tuple(dict.fromkeys(line for line in lines if line and line[0] not in "#;"))


def parse_config(text: str, name: str, arch: str) -> ImageConfig:
    """Read linuxkit.yml for `arch`; `name` is the file's name for error messages.

    Raises:
        ConfigError: not YAML, an unknown key, a value of the wrong type, an unsupported image.
    """
    import yaml  # here: a finished image is found without it, and it costs 20 ms

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {error}") from error
    if root is None:
        raise ConfigError(f"{name}: is empty")
    return _Reader(name, arch).config(root)


class _Reader:
    """Turns YAML nodes into values; it knows the file's name, the nodes know their line."""

    def __init__(self, name: str, arch: str) -> None:
        self.name = name
        self.arch = arch

    def config(self, root: yaml.Node) -> ImageConfig:
        top = self.mapping(root, _TOP_KEYS, "")
        for section in ("onboot", "services"):
            for item in self.sequence(top[section], section) if section in top else ():
                self.fail(item, f"{section} needs OCI images, which this version cannot assemble")
        if "kernel" not in top:
            self.fail(root, "the key kernel is missing")
        kernel = self.mapping(top["kernel"], _KERNEL_KEYS, "kernel.")
        if "image" not in kernel:
            self.fail(top["kernel"], "the key kernel.image is missing")
        init = self.sequence(top["init"], "init") if "init" in top else []
        files = self.sequence(top["files"], "files") if "files" in top else []
        cmdline = self.string(kernel["cmdline"], "kernel.cmdline") if "cmdline" in kernel else ""
        return ImageConfig(
            kernel=self.packages(kernel["image"], "kernel.image", releases=RELEASES),
            cmdline=" ".join(self.filled(cmdline).split()),
            init=tuple(
                package for image in init for package in self.packages(image, "an entry of init")
            ),
            files=tuple(self.file(item) for item in files),
        )

    def packages(
        self, node: yaml.Node, what: str, releases: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        image = self.filled(self.string(node, what))
        if not image.startswith("deb:"):
            self.fail(
                node,
                f"{what}: {image} is an OCI reference, which this version cannot assemble",
                hint="name packages instead: deb:NAME[,NAME…]",
            )
        names = tuple(name.strip() for name in image.removeprefix("deb:").split(","))
        for name in names:
            package, slash, release = name.partition("/")
            if slash and release not in releases:
                known = f": known are {', '.join(releases)}" if releases else ""
                self.fail(node, f"{what}: packages do not come from the release {release!r}{known}")
            if not _PACKAGE_NAME.fullmatch(package):
                self.fail(node, f"{what}: {package!r} is not the name of a package")
        return names

    def file(self, node: yaml.Node) -> ConfigFile:
        fields = self.mapping(node, _FILE_KEYS, "files.")
        if "path" not in fields:
            self.fail(node, "a file without path")
        path = PurePosixPath("/", self.string(fields["path"], "files.path"))
        if ".." in path.parts or path == PurePosixPath("/"):
            self.fail(fields["path"], f"files.path: {path} is not a path inside the image")
        kinds = [kind for kind in ("contents", "symlink", "directory") if kind in fields]
        if len(kinds) != 1:
            self.fail(node, f"{path} needs exactly one of contents, symlink, directory")
        directory = kinds == ["directory"] and self.boolean(fields["directory"], "files.directory")
        if kinds == ["directory"] and not directory:
            self.fail(fields["directory"], "files.directory can only be true")
        return ConfigFile(
            path=str(path),
            contents=self.string(fields["contents"], "files.contents")
            if "contents" in fields
            else None,
            symlink=self.string(fields["symlink"], "files.symlink")
            if "symlink" in fields
            else None,
            directory=directory,
            mode=self.mode(fields["mode"]) if "mode" in fields else 0o755 if directory else 0o644,
        )

    def mode(self, node: yaml.Node) -> int:
        text = self.string(node, "files.mode")
        if not re.fullmatch(r"0?[0-7]{3,4}", text):
            self.fail(node, f"files.mode: {text} is not an octal mode such as 0644")
        return int(text, 8)

    def filled(self, text: str) -> str:
        return text.replace("{arch}", self.arch).replace("{console}", CONSOLES[self.arch])

    def mapping(self, node: yaml.Node, known: tuple[str, ...], prefix: str) -> dict[str, yaml.Node]:
        import yaml

        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{prefix.rstrip('.') or 'the file'} must be a mapping")
        values: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            if key not in known:
                self.fail(key_node, f"unknown key {prefix}{key}", hint=f"known: {', '.join(known)}")
            if key in values:
                self.fail(key_node, f"{prefix}{key} stands twice")
            values[key] = value
        return values

    def sequence(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        import yaml

        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, f"{what} must be a list")
        return list(node.value)

    def string(self, node: yaml.Node, what: str) -> str:
        import yaml

        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
            self.fail(node, f"{what} must be a string")
        return str(node.value)

    def boolean(self, node: yaml.Node, what: str) -> bool:
        if node.tag != "tag:yaml.org,2002:bool":
            self.fail(node, f"{what} must be true or false")
        return str(node.value).lower() in ("true", "yes", "on")

    def fail(self, node: yaml.Node, problem: str, hint: str | None = None) -> NoReturn:
        raise ConfigError(f"{self.name}:{node.start_mark.line + 1}: {problem}", hint=hint)
