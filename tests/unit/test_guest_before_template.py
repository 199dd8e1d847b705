"""What must not have happened in the guest when a template is saved: restores would share it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wherry_guest

PACKAGE = Path(next(iter(wherry_guest.__path__)))

DRAWS_AT_IMPORT = {"random", "uuid", "secrets", "tempfile"}

_IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import wherry_guest.init
from wherry_guest.core.syscalls import Kernel
from importlib import import_module
for name in sys.argv[2:]:
    import_module(name)
print(*sorted(sys.modules))
"""

PID1 = ("wherry_guest.zygote", "wherry_guest.core.cgroups", "wherry_guest.core.pid1",
        "wherry_guest.core.plan")  # fmt: skip
AGENT = ("wherry_guest.zygote", "wherry_guest.agent", "wherry_guest.agent.paths",
         "wherry_guest.agent.server", "wherry_guest.channel", "wherry_guest.loop")  # fmt: skip


def loaded_with(modules: tuple[str, ...]) -> set[str]:
    command = [sys.executable, "-IS", "-c", _IMPORT, str(PACKAGE.parent), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert set(modules) <= loaded
    return loaded


@pytest.mark.skipif(sys.platform == "win32", reason="other modules of the standard library")
@pytest.mark.parametrize("modules", [PID1, AGENT], ids=["pid1", "agent"])
def test_nothing_that_draws_random_numbers_is_imported(modules: tuple[str, ...]) -> None:
    assert not loaded_with(modules) & DRAWS_AT_IMPORT


@pytest.mark.skipif(sys.platform == "win32", reason="other modules of the standard library")
def test_pid1_loads_nothing_of_the_standard_library_that_the_agent_does_not() -> None:
    """The agent makes the byte code of what it has loaded: the rest is compiled at every boot."""
    pid1, agent = loaded_with(PID1), loaded_with(AGENT)
    assert {name for name in pid1 - agent if not name.startswith("wherry_guest")} == set()


def test_what_is_loaded_before_the_set_up_names_no_module_that_draws() -> None:
    """Also not inside functions, but in those of containers and of tests' and doctors' figures."""
    later = {"agent/archive.py", "agent/ssh.py"}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if name in later or name.startswith("oci/"):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not DRAWS_AT_IMPORT & set(names), f"{name}:{getattr(node, 'lineno', 0)}"


def test_the_boot_id_is_read_in_one_place_which_asks_whether_the_machine_is_set_up() -> None:
    readers = [file.name for file in PACKAGE.rglob("*.py") if "random/boot_id" in file.read_text()]
    assert readers == ["system.py"]
    text = (PACKAGE / "agent" / "system.py").read_text()
    before = text[: text.index("random/boot_id")].splitlines()[-3:]
    assert any("if not self.ready:" in line for line in before)
