"""Which packages a set of names needs: the dependency closure over a package index.

Pure. No backtracking solver: Debian's stable suites resolve with two plain rules, the newest
version of a name that fits, and the first alternative that can be had (one already chosen wins).
What the rules cannot satisfy is an error that names the chain, never a guess.

The VM runs one Python as PID 1, so most of what Debian packages depend on (for maintainer scripts,
which we never run, for TLS, for terminals) is not wanted. `EXCLUDED` is that list; a package that
is asked for by name is never excluded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .archive import Package, Relation
from .errors import DependencyError
from .version import compare, satisfies

EXCLUDED: Mapping[str, str] = {
    "debconf": "asks questions at installation; nothing is installed here",
    "debianutils": "helpers of maintainer scripts",
    "dpkg": "there is no package manager in the VM",
    "gcc-14-base": "only documentation",
    "init-system-helpers": "helpers of maintainer scripts",
    "initramfs-tools": "this program makes the initramfs",
    "kmod": "modules are loaded by PID 1 from a resolved list",
    "libbz2-1.0": "the guest decompresses nothing",
    "libdb5.3t64": "dbm is not used",
    "liblzma5": "the guest decompresses nothing",
    "libncursesw6": "curses is not used",
    "libnsl2": "NIS is not used",
    "libreadline8t64": "nobody types at the guest's Python",
    "libsqlite3-0": "the guest keeps no database",
    "libss2": "only for debugfs",
    "libssl3t64": "the guest has no TLS; hashlib has its own SHA-2",
    "linux-base": "helpers of maintainer scripts",
    "logsave": "only for boot scripts",
    "media-types": "mimetypes is not used",
    "netbase": "no service names are looked up",
    "openssh-client": "of OpenSSH only its SFTP server is used",
    "perl": "only for maintainer scripts",
    "perl-base": "only for maintainer scripts",
    "tzdata": "the guest counts in nanoseconds since the epoch",
    "zlib1g-dev": "not needed to run",
}


@dataclass(slots=True)
class Index:
    """Packages by name, and who provides a virtual name; made from one or more suites."""

    by_name: dict[str, list[Package]] = field(default_factory=dict)
    providers: dict[str, list[tuple[Package, Relation]]] = field(default_factory=dict)

    def add(self, packages: Mapping[str, list[Package]]) -> None:
        for name, versions in packages.items():
            self.by_name.setdefault(name, []).extend(versions)
            for package in versions:
                for provided in package.provides:
                    self.providers.setdefault(provided.name, []).append((package, provided))

    def basic(self) -> list[str]:
        """Names of the packages that every Debian has."""
        found = (self.newest(Relation(name)) for name in self.by_name)
        return sorted({package.name for package in found if package is not None and package.basic})

    def newest(self, relation: Relation) -> Package | None:
        """The newest package that satisfies `relation`: a real one, else the first provider by
        name."""
        best: Package | None = None
        for package in self.by_name.get(relation.name, ()):
            if _fits(relation, package.version) and (
                best is None or compare(package.version, best.version) > 0
            ):
                best = package
        if best is not None:
            return best
        providers = [
            package
            for package, provided in self.providers.get(relation.name, ())
            if not relation.operator or (provided.version and _fits(relation, provided.version))
        ]
        for package in sorted(providers, key=lambda package: package.name):
            newest = self.newest(Relation(package.name))
            if newest is not None and _provides(newest, relation):
                return newest
        return None


def closure(
    index: Index, roots: Iterable[str], excluded: Mapping[str, str] = EXCLUDED
) -> list[Package]:
    """`roots` and everything they depend on, less `excluded`; sorted by name.

    Raises:
        DependencyError: a root does not exist, or a dependency cannot be satisfied.
    """
    wanted = sorted(set(roots))
    chosen: dict[str, Package] = {}
    why: dict[str, str] = {}
    queue: list[Package] = []

    def choose(package: Package, because: str) -> None:
        if package.name not in chosen:
            chosen[package.name] = package
            why[package.name] = because
            queue.append(package)

    for name in wanted:
        package = index.newest(Relation(name))
        if package is None:
            raise DependencyError(
                f"there is no package {name}", hint="check the deb: names in linuxkit.yml"
            )
        choose(package, "")
    while queue:
        package = queue.pop(0)
        for alternatives in package.depends:
            if any(_met(chosen, relation) for relation in alternatives):
                continue
            names = [relation.name for relation in alternatives]
            if any(name in excluded and name not in wanted for name in names):
                continue
            found = next(filter(None, map(index.newest, alternatives)), None)
            if found is None:
                raise DependencyError(
                    f"{_chain(package.name, why)} needs {_text(alternatives)}, which no package is"
                )
            if found.name in excluded and found.name not in wanted:
                continue
            _refuse_second_version(chosen, found, package, alternatives)
            choose(found, package.name)
    return [chosen[name] for name in sorted(chosen)]


def _met(chosen: Mapping[str, Package], relation: Relation) -> bool:
    real = chosen.get(relation.name)
    if real is not None and _fits(relation, real.version):
        return True
    return any(_provides(package, relation) for package in chosen.values())


def _provides(package: Package, relation: Relation) -> bool:
    if package.name == relation.name and _fits(relation, package.version):
        return True
    return any(
        provided.name == relation.name
        and (
            not relation.operator or (bool(provided.version) and _fits(relation, provided.version))
        )
        for provided in package.provides
    )


def _fits(relation: Relation, version: str) -> bool:
    return not relation.operator or satisfies(version, relation.operator, relation.version)


def _refuse_second_version(
    chosen: Mapping[str, Package],
    found: Package,
    package: Package,
    alternatives: tuple[Relation, ...],
) -> None:
    present = chosen.get(found.name)
    if present is not None and present.version != found.version:
        raise DependencyError(
            f"{package.name} needs {_text(alternatives)}, but {present.name} {present.version} is"
            " already chosen"
        )


def _chain(name: str, why: Mapping[str, str]) -> str:
    names = [name]
    while why.get(names[-1]):
        names.append(why[names[-1]])
    return " <- ".join(names)


def _text(alternatives: tuple[Relation, ...]) -> str:
    return " | ".join(
        f"{relation.name} ({relation.operator} {relation.version})"
        if relation.operator
        else relation.name
        for relation in alternatives
    )
