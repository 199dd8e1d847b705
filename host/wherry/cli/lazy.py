"""Command groups: one whose commands are imported when they are run (a command pays for itself
only), and one for the few commands of a module. In a group's help a summary is never cut off."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click
import click.shell_completion


class LazyGroup(click.Group):
    """Attributes are keyword arguments, also of `click.group(cls=LazyGroup, …)`.

    Args:
        modules: command to `module`, where it is called `COMMAND_command`, or `module:attribute`.
        summaries: command to its line in the group's help.
    """

    def __init__(
        self, *args: Any, modules: Mapping[str, str], summaries: Mapping[str, str], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._modules = modules
        self._summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._modules.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(
            importlib.import_module(module), attribute or f"{cmd_name}_command"
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, which would look for likely names among loaded commands only."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # only a mistake pays for it

            near = difflib.get_close_matches(args[0], self._modules, n=1)
            if not near or args[0].startswith("-"):
                raise
            message = f"No such command {args[0]!r}. Did you mean {near[0]!r}?"
            raise click.UsageError(message, ctx) from error

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """As click's, without loading each command for its summary."""
        from click.shell_completion import CompletionItem

        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=self._summaries[name]) for name in names]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summaries[name]) for name in sorted(self._modules)])


class PlainGroup(click.Group):
    """A group whose commands are in its own module: a summary is a docstring's first sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(it)) for name, it in commands if it is not None])


def _summary(command: click.Command) -> str:
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")
