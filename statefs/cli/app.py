"""The `statefs` command itself: finds the subcommand, turns every failure into one line.

Owns exit codes and the wording around errors. Subcommands are imported when they are called,
so that `statefs list` does not pay for `statefs mount`.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from statefs import __version__
from statefs.cli.explained import write_examples
from statefs.cli.output import one_line
from statefs.errors import PosixError, StatefsError, UsageError, refusal, unforeseen

COMMANDS: Final = {
    "init": "statefs.cli.init",
    "mount": "statefs.cli.mount",
    "umount": "statefs.cli.umount",
    "upgrade": "statefs.cli.upgrade",
    "save": "statefs.cli.save",
    "list": "statefs.cli.list",
    "show": "statefs.cli.show",
    "delete": "statefs.cli.delete",
    "restore": "statefs.cli.restore",
    "undo": "statefs.cli.undo",
    "try": "statefs.cli.try_",
    "clone": "statefs.cli.clone",
    "prune": "statefs.cli.prune",
    "pin": "statefs.cli.pin",
    "unpin": "statefs.cli.unpin",
    "diff": "statefs.cli.diff",
    "log": "statefs.cli.log",
    "cat": "statefs.cli.cat",
    "status": "statefs.cli.status",
    "health": "statefs.cli.health",
    "events": "statefs.cli.events",
    "metrics": "statefs.cli.metrics",
    "verify": "statefs.cli.verify",
    "scrub": "statefs.cli.scrub",
    "repair": "statefs.cli.repair",
    "export": "statefs.cli.export",
    "import": "statefs.cli.import_",
    "check": "statefs.cli.check",
    "state": "statefs.cli.state",
    "serve-http": "statefs.cli.serve_http",
    "completion": "statefs.cli.completion",
}
"""Each subcommand and the module whose `command` it is, in the order --help shows them."""

EXAMPLES: Final = (
    "statefs mount state               mount ./state, made if it is not there",
    "statefs save state -m 'it works'  take a snapshot, print its name",
    "statefs list state                show the snapshots",
    "statefs umount state              unmount",
)

EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
"""What a shell reports for a program that Ctrl-C ended."""
EXIT_BROKEN_PIPE: Final = 128 + signal.SIGPIPE
"""What a shell reports for a program whose reader went away (`statefs list | head -1`)."""


class CommandGroup(click.Group):
    """The subcommands, each imported when it is asked for."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of a state's life, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand; None where there is none of that name."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand, and name the nearest one for a word that is none."""
        name = args[0]
        if name in COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        if ctx.resilient_parsing:
            return None, None, args[1:]
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean 'statefs {near[0]}'?" if near else "see 'statefs --help'"
        raise UsageError(f"there is no command '{name}'; {hint}")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the epilog."""
        write_examples(formatter, EXAMPLES)
        super().format_epilog(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a reader that went away ends it without a word."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            silence_stdout()
            raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None
        return result


def silence_stdout() -> None:
    """Point standard output at /dev/null, so that the flush at exit has nothing to complain of."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the version and end."""
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"statefs {__version__}")
    ctx.exit()


@click.group(
    cls=CommandGroup,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="'statefs COMMAND --help' explains a command and shows examples. "
    "STATE may be left out inside a mounted state, or with STATEFS_STATE set.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=show_version,
    help="Show the version and exit.",
)
@click.pass_context
def statefs(ctx: click.Context) -> None:
    """A folder whose every saved moment stays there to ls.

    Programs write to STATE/current; each 'statefs save' adds a folder to STATE/snapshots that
    can never change.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: the words after `statefs`; None takes them from the process.
    """
    try:
        result = statefs.main(
            None if arguments is None else list(arguments),
            prog_name="statefs",
            standalone_mode=False,
        )
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("STATEFS_DEBUG"):
            import traceback

            traceback.print_exc()
        return report(error)
    return result if isinstance(result, int) else 0


def report(error: Exception) -> int:
    """Print one line about `error` on standard error and return the exit code for it."""
    message, exit_code = explain(error)
    click.echo(f"statefs: error: {one_line(message)}", err=True)
    return exit_code


def explain(error: Exception) -> tuple[str, int]:
    """Return what to tell the user about `error`, and the exit code (docs/cli.md, "Exit codes")."""
    if isinstance(error, PosixError):  # of the tree, or the disk below it
        return explain(refusal(OSError(error.errno, str(error)), "the store"))
    if isinstance(error, StatefsError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return explain_usage(error), UsageError.exit_code
    told, is_refusal = unforeseen(error), isinstance(error, OSError)
    hint = "" if is_refusal or os.environ.get("STATEFS_DEBUG") else "; STATEFS_DEBUG=1 shows where"
    return f"{told}{hint}", told.exit_code


def explain_usage(error: click.ClickException) -> str:
    """Return click's complaint, in our style, with the command whose --help answers it."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "statefs"
    message = message.replace(". Did you mean", ": did you mean")
    rest = "" if message.endswith("?") else ";"
    return f"{message[:1].lower()}{message[1:]}{rest} see '{command} --help'"


def main() -> NoReturn:
    """Run the process's command line and exit."""
    sys.exit(run())
