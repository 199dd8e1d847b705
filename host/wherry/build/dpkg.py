"""dpkg's database of packages that are unpacked and not configured: text in, files out. Pure.

The formats are dpkg's own (`lib/dpkg/dump.c`, `infodb-format.c`, `trigdeferred.c`; deb-control(5),
deb-conffiles(5), deb-triggers(5)). What dpkg would have written when it unpacked the same packages
is written here, so that `dpkg --configure` can go on from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wherry.errors import InvalidInput
from wherry_image.archive import Package, parse_relations, parse_stanza

DATABASE = b"var/lib/dpkg"
_INFO = DATABASE + b"/info"
_TRIGGERS = DATABASE + b"/triggers"
_SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")
_INTEREST = {
    "interest": "",
    "interest-await": "",
    "interest-noawait": "/noawait",
}


@dataclass(frozen=True, slots=True)
class UnpackedPackage:
    """A package whose files are in the tree.

    Attributes:
        control: the files of its control archive, by name.
        paths: what its data archive holds, in its order, absolute (`/usr/bin/env`).
        conffiles: path to MD5 of those of `paths` that are configuration files.
    """

    name: str
    control: Mapping[str, bytes]
    paths: Sequence[str]
    conffiles: Mapping[str, str]

    @property
    def fields(self) -> Mapping[str, str]:
        """The control stanza, keys in lower case."""
        return parse_stanza(self.control["control"].decode())

    @property
    def key(self) -> str:
        """What dpkg calls it where several architectures may be installed side by side."""
        fields = self.fields
        if fields.get("multi-arch") == "same":
            return f"{self.name}:{fields['architecture']}"
        return self.name

    @property
    def basic(self) -> bool:
        fields = self.fields
        return fields.get("essential") == "yes" or fields.get("priority") == "required"

    def as_package(self) -> Package:
        """As the resolver knows it: name, version and relations."""
        fields = self.fields
        relations = [fields[key] for key in ("pre-depends", "depends") if key in fields]
        return Package(
            name=self.name,
            version=fields["version"],
            architecture=fields["architecture"],
            sha256="",
            size=0,
            path="",
            depends_field=", ".join(relations),
            provides=tuple(it for (it,) in parse_relations(fields.get("provides", ""))),
        )


def conffile_names(control: Mapping[str, bytes]) -> list[str]:
    """The paths of a `conffiles` file, without those that an upgrade would remove."""
    text = control.get("conffiles", b"").decode()
    return [line.strip() for line in text.splitlines() if line.strip().startswith("/")]


def md5(data: bytes) -> str:
    """dpkg's digest of a configuration file: it tells edits, it protects nothing."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def database_files(packages: Iterable[UnpackedPackage]) -> dict[bytes, tuple[int, bytes]]:
    """The files of the database: path to (mode, contents).

    Raises:
        InvalidInput: a package's control files are malformed.
    """
    ordered = sorted(packages, key=lambda package: package.key)
    files: dict[bytes, tuple[int, bytes]] = {
        _INFO + b"/format": (0o644, b"1\n"),
        DATABASE + b"/status": (0o644, b"\n".join(_stanza(package) for package in ordered)),
    }
    interests: dict[str, list[str]] = {}
    for package in ordered:
        base = _INFO + b"/" + package.key.encode()
        for name, data in package.control.items():
            if name != "control":
                files[base + b"." + name.encode()] = (0o755 if name in _SCRIPTS else 0o644, data)
        listing = "".join(f"{path}\n" for path in ["/.", *package.paths])
        files[base + b".list"] = (0o644, listing.encode("utf-8", "surrogateescape"))
        for trigger, flag in _interests(package):
            interests.setdefault(trigger, []).append(package.key + flag)
    return files | _trigger_files(interests)


def _stanza(package: UnpackedPackage) -> bytes:
    """The package's paragraph of the status file."""
    first, _, rest = package.control["control"].decode().strip("\n").partition("\n")
    if not first.startswith("Package:"):
        raise InvalidInput(f"{package.name}: its control file does not begin with its name")
    lines = [first, "Status: install ok unpacked", rest]
    if package.conffiles:
        lines.append("Conffiles:")
        lines += [f" {path} {digest}" for path, digest in package.conffiles.items()]
    return ("\n".join(lines) + "\n").encode()


def _interests(package: UnpackedPackage) -> list[tuple[str, str]]:
    """(trigger, flag) pairs of what the package wants to be told."""
    found = []
    for line in package.control.get("triggers", b"").decode().splitlines():
        words = line.partition("#")[0].split()
        if len(words) == 2 and words[0] in _INTEREST:
            found.append((words[1], _INTEREST[words[0]]))
    return found


def _trigger_files(interests: Mapping[str, Sequence[str]]) -> dict[bytes, tuple[int, bytes]]:
    """Who is interested in paths stands in `File`, in other triggers in a file of their name."""
    paths = [
        f"{trigger} {who}\n"
        for trigger, interested in sorted(interests.items())
        if trigger.startswith("/")
        for who in interested
    ]
    files = {_TRIGGERS + b"/File": (0o644, "".join(paths).encode())}
    for trigger, interested in interests.items():
        if not trigger.startswith("/"):
            text = "".join(f"{who}\n" for who in interested)
            files[_TRIGGERS + b"/" + trigger.encode()] = (0o644, text.encode())
    return files
