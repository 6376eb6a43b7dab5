"""Commands whose --help ends in examples. Owns how help looks, not what any command does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class ExplainedCommand(click.Command):
    """A command with examples.

    Args:
        examples: command lines, shown as they are.
    """

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and let every complaint know which command's --help answers it."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples under the options."""
        write_examples(formatter, self.examples)


class ExplainedGroup(ExplainedCommand, click.Group):
    """A command of commands, with examples."""


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write an "Examples" section whose lines are never wrapped: they are there to be copied."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
