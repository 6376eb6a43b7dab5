"""`statefs completion`: the script that makes a shell complete statefs commands."""

from __future__ import annotations

from typing import Final

import click

from statefs.cli.explained import ExplainedCommand
from statefs.errors import UsageError

SHELLS: Final = ("bash", "zsh", "fish")
COMPLETION_VARIABLE: Final = "_STATEFS_COMPLETE"
"""Set by the script when the shell asks statefs for completions (click's convention)."""


@click.command(
    cls=ExplainedCommand,
    short_help="Print a shell completion script.",
    examples=[
        "statefs completion bash > ~/.local/share/bash-completion/completions/statefs",
        "statefs completion zsh > ~/.zfunc/_statefs      (with ~/.zfunc in fpath)",
        "statefs completion fish > ~/.config/fish/completions/statefs.fish",
    ],
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, folders and snapshot names."""
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    if completion is None:
        raise UsageError(f"no completion for {shell}; there is one for {', '.join(SHELLS)}")
    click.echo(completion(ctx.find_root().command, {}, "statefs", COMPLETION_VARIABLE).source())
