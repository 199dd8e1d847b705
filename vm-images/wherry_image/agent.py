"""The guest's agent as a cpio archive, made at each boot from the installed `wherry_guest`.

This package never imports `wherry_guest` (it belongs to the guest): it finds its files and reads
them.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from .cpio import write_cpio
from .errors import VmImageError
from .tree import Tree

INSTALL_DIRECTORY = "/usr/lib/wherry"

DEFAULT_INIT = f"""\
#!/usr/bin/python3 -IBS
import sys
sys.path.insert(0, "{INSTALL_DIRECTORY}")
from wherry_guest.init import main
main()
"""
"""What `/init` is when `wherry_guest.init` does not define INIT_SCRIPT itself."""


def agent_cpio(package: Path | None = None) -> bytes:
    """`wherry_guest` below `/usr/lib/wherry` and `/init`, to be appended to the image's initrd.

    The bytes depend only on the package's sources. The modification time is made from them too,
    so that byte code compiled for other sources can never pass for theirs.

    Args:
        package: the directory of `wherry_guest`; None: where Python finds it.

    Raises:
        VmImageError: there is no such package.
    """
    root = package or _installed()
    sources = {
        path.relative_to(root).as_posix(): path.read_bytes().replace(b"\r\n", b"\n")
        for path in sorted(root.rglob("*.py"))
    }
    if not sources:
        raise VmImageError(f"{root} holds no Python sources")
    init = _init_script(sources.get("init.py", b"")).encode()
    tree = Tree()
    tree.add_file("/init", init, 0o755)
    for name, source in sources.items():
        tree.add_file(f"{INSTALL_DIRECTORY}/wherry_guest/{name}", source)
    return write_cpio(tree, _mtime(sources))


def _installed() -> Path:
    spec = find_spec("wherry_guest")
    if spec is None or not spec.submodule_search_locations:
        raise VmImageError("wherry_guest is not installed", hint="reinstall wherry")
    return Path(next(iter(spec.submodule_search_locations)))


def _init_script(source: bytes) -> str:
    """The value of `INIT_SCRIPT = …` at the top level of `source`, which is not executed."""
    import ast  # here: only a boot needs it

    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        if any(isinstance(name, ast.Name) and name.id == "INIT_SCRIPT" for name in targets):
            return str(ast.literal_eval(value))
    return DEFAULT_INIT


def _mtime(sources: dict[str, bytes]) -> int:
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(source).digest())
    return int.from_bytes(digest.digest()[:4]) >> 2
