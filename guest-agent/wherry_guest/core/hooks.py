"""The runtime spec's hooks: values, parsing, and the steps that run them.

Rules: a hook gets the container's state as JSON on its standard input, and at most its timeout;
the first one that fails ends the stage. `prestart`, `createRuntime`, `poststart` and `poststop` run
outside of the container, by whoever runs it; `createContainer` and `startContainer` in the child.
https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md#posix-platform-hooks
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.fields import Fields, SpecError
from wherry_guest.core.steps import SetupError

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

STAGES: Final = (
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
)  # fmt: skip
OUTSIDE: Final = ("prestart", "createRuntime", "poststart", "poststop")
"""The stages that run in the runtime's own namespaces."""

STATE_VERSION: Final = "1.2.0"

_MAX_OUTPUT: Final = 500


@dataclass(frozen=True, slots=True)
class Hook:
    """`hooks.STAGE[]`; `timeout` in seconds, None: as long as it takes."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    """All hooks of a spec, by stage; stages without any are absent."""

    stages: tuple[tuple[str, tuple[Hook, ...]], ...] = ()

    def at(self, stage: str) -> tuple[Hook, ...]:
        return dict(self.stages).get(stage, ())

    def any(self, stages: Sequence[str]) -> bool:
        return any(self.at(stage) for stage in stages)


@dataclass(frozen=True, slots=True)
class HookState:
    """What hooks are told: the container's state, without the parts that change."""

    id: str
    bundle: str
    annotations: tuple[tuple[str, str], ...] = field(default=())

    def document(self, status: str, pid: int) -> dict[str, Any]:
        """The state as the runtime spec has it (runtime.md, "State")."""
        return {
            "ociVersion": STATE_VERSION,
            "id": self.id,
            "status": status,
            **({"pid": pid} if pid else {}),
            "bundle": self.bundle,
            "annotations": dict(self.annotations),
        }


def parse_hooks(hooks: Fields) -> Hooks:
    """The object `hooks`; SpecError."""
    stages = []
    for stage in STAGES:
        items = tuple(_parse_hook(item) for item in hooks.objects(stage))
        if items:
            stages.append((stage, items))
    hooks.finish()
    return Hooks(tuple(stages))


def _parse_hook(item: Fields) -> Hook:
    path = item.get("path", str, "")
    if not path.startswith("/"):
        raise SpecError(f"{item.name('path')} {path!r} is not absolute")
    timeout = item.optional("timeout")
    if timeout is not None and timeout <= 0:
        raise SpecError(f"{item.name('timeout')} {timeout} is not above 0")
    parsed = Hook(path, item.strings("args"), item.strings("env"), timeout)
    item.finish()
    return parsed


def run_hooks(kernel: Kernel, stage: str, hooks: Sequence[Hook], document: dict[str, Any]) -> None:
    """Run the hooks of one stage in order.

    Raises:
        SetupError: names the stage, the hook, and what it said on its standard error.
    """
    text = json.dumps(document).encode()
    for index, hook in enumerate(hooks):
        run_hook(kernel, f"hooks.{stage}[{index}] {hook.path}", hook, text)


def run_hook(kernel: Kernel, name: str, hook: Hook, text: bytes) -> None:
    """Run one hook with `text` as its input; SetupError begins with `name`."""
    args = hook.args or (hook.path,)
    try:
        end = kernel.run_program(hook.path, args, hook.env, text, hook.timeout)
    except TimeoutError as error:
        raise SetupError(f"{name}: took longer than its timeout of {hook.timeout} s") from error
    except OSError as error:
        words = os.strerror(error.errno or 0)
        raise SetupError(f"{name}: {words}", error.errno or 0) from error
    if end.exit_code == 0:
        return
    said = " ".join(end.output.decode(errors="replace").split())[:_MAX_OUTPUT]
    reason = f"ended with {end.exit_code}" if end.exit_code > 0 else f"signal {-end.exit_code}"
    raise SetupError(f"{name}: {reason}{': ' if said else ''}{said}")


@dataclass(frozen=True, slots=True)
class NoteOuterPid:
    """Find out which pid this process has outside: while /proc is still the runtime's own."""

    def describe(self) -> str:
        return "find the container's pid"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.outer_pid = int(kernel.readlink("/proc/self"))


@dataclass(frozen=True, slots=True)
class AskForHooks:
    """Let the runtime run `prestart` and `createRuntime`, and wait for it."""

    def describe(self) -> str:
        return "run the hooks outside of the container"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.ask("hooks")


@dataclass(frozen=True, slots=True)
class RunHooks:
    """Run the hooks of a stage here, in the container's namespaces."""

    stage: str
    status: str
    hooks: tuple[Hook, ...]
    about: HookState

    def describe(self) -> str:
        return f"run hooks.{self.stage}"

    def execute(self, kernel: Kernel, state: State) -> None:
        document = self.about.document(self.status, state.outer_pid)
        run_hooks(kernel, self.stage, self.hooks, document)
