"""completion: scripts that make a shell complete our commands; click knows all but PowerShell."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

VARIABLE = "_WHERRY_COMPLETE"
"""Set by the scripts when they call us for completions."""

_POWERSHELL = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($word, $line, $cursor)
    $env:COMP_WORDS = $line.ToString()
    $env:COMP_WORD = $word
    $env:%(complete_var)s = "powershell_complete"
    try {
        %(prog_name)s | ForEach-Object {
            $value, $help = $_ -split "`t", 2
            [System.Management.Automation.CompletionResult]::new(
                $value, $value, "ParameterValue", $(if ($help) { $help } else { $value }))
        }
    } finally {
        Remove-Item Env:COMP_WORDS, Env:COMP_WORD, Env:%(complete_var)s
    }
}
"""


class PowerShellComplete(ShellComplete):
    """What PowerShell's Register-ArgumentCompleter wants."""

    name = "powershell"
    source_template = _POWERSHELL

    def get_completion_args(self) -> tuple[list[str], str]:
        # Not by shlex, to which the backslashes of paths would be escapes.
        words, incomplete = os.environ["COMP_WORDS"].split(), os.environ["COMP_WORD"]
        return (words[1:-1] if incomplete else words[1:]), incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.value}\t{item.help}" if item.help else str(item.value)


add_completion_class(PowerShellComplete)

_SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "fish": FishComplete,
    "powershell": PowerShellComplete,
    "zsh": ZshComplete,
}


@click.command("completion")
@click.argument("shell", type=click.Choice(sorted(_SHELLS)))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete wherry's commands.

    \b
    bash        wherry completion bash > ~/.local/share/bash-completion/completions/wherry
    zsh         wherry completion zsh > "${fpath[1]}/_wherry"
    fish        wherry completion fish > ~/.config/fish/completions/wherry.fish
    powershell  wherry completion powershell >> $PROFILE
    """
    maker = _SHELLS[shell](ctx.find_root().command, {}, "wherry", VARIABLE)
    # Not the class's own `source`: bash's runs bash, to warn of an old one.
    click.echo(ShellComplete.source(maker))
