"""`statefs try`: run a command between two snapshots, and put back what it did if it fails."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, store_option
from statefs.cli.output import plain, print_json, print_line
from statefs.cli.restore import paths_text, warn_of_writers
from statefs.errors import NotMounted, UsageError, typed
from statefs.target import find_target, names_state

EXIT_NOT_FOUND: Final = 127
"""What a shell reports for a command that it cannot find."""
EXIT_NOT_EXECUTABLE: Final = 126
"""What a shell reports for a command that it may not run."""


@click.command(
    cls=ExplainedCommand,
    short_help="Run a command between two snapshots.",
    examples=[
        "statefs try state -m 'upgrade to 2.0' -- ./upgrade.sh",
        "statefs try state --on-failure rollback -- ./migrate.sh",
    ],
)
@store_option
@click.option("-m", "--message", type=TEXT, default="", metavar="TEXT", help="What it is about.")
@click.option(
    "--on-failure",
    type=click.Choice(["keep", "rollback", "ask"]),
    default="keep",
    show_default=True,
    help="What happens to the changes of a command that fails.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard error at the end.")
@click.argument("words", nargs=-1, metavar="[STATE] -- COMMAND...", type=click.UNPROCESSED)
def command(
    store: Path | None, message: str, on_failure: str, as_json: bool, words: tuple[str, ...]
) -> int:
    """Save STATE, run COMMAND, save again; exits as COMMAND does.

    The two snapshots know of each other, so that 'statefs undo' puts back just what the command
    changed, whatever else has changed since.
    """
    state, arguments = split_command(words)
    target = find_target(state, store)
    if target.mount is None:
        raise NotMounted("a command works on a mounted state: 'statefs mount' first")
    with api.open_target(target) as opened:
        before = opened.save(
            message or f"before: {shlex.join(arguments)}",
            "before-try",
            operation={"kind": "try", "phase": "before", "command": arguments},
        )
    exit_code = run_command(arguments)
    with api.open_target(target) as opened:
        after = opened.save(
            message or f"after: {shlex.join(arguments)}",
            "try",
            operation={
                "kind": "try", "phase": "after", "other": before.snapshot_id,
                "command": arguments, "exitCode": exit_code,
            },
        )  # fmt: skip
        told: dict[str, Any] | None = None
        if exit_code and wants_rollback(on_failure, arguments, exit_code):
            told = opened.undo(force=True, of=after.snapshot_id)
    if as_json:
        document = {"before": plain(before), "after": plain(after), "rolledBack": told}
        print_json({**document, "exitCode": exit_code}, err=True)
    else:
        report(target.mount.mount_point, before.name, after.name, exit_code, told)
    return exit_code


def split_command(words: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    """Return the state (None: left out) and the command of `[STATE] -- COMMAND...`.

    The first word is the state if there is a state of that name.

    Raises:
        UsageError: there is no command.
    """
    rest = list(words)
    state = Path(rest.pop(0)) if rest and names_state(Path(rest[0])) else None
    if not rest:
        raise UsageError("the command is missing: statefs try STATE -- COMMAND...")
    return state, rest


def run_command(arguments: list[str]) -> int:
    """Run a command with this process's standard streams; return its exit code as a shell would.

    Ctrl-C reaches the command by itself, as it is in the same group: this process waits for it.
    """
    # A handler, unlike SIG_IGN, is not inherited by the command.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.Popen(arguments).wait()
    except FileNotFoundError:
        click.echo(f"statefs: error: {arguments[0]}: command not found", err=True)
        return EXIT_NOT_FOUND
    except PermissionError:
        click.echo(f"statefs: error: {arguments[0]}: permission denied", err=True)
        return EXIT_NOT_EXECUTABLE
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - code if code < 0 else code


def wants_rollback(on_failure: str, arguments: list[str], exit_code: int) -> bool:
    """Return whether the changes of a command that failed are to be put back."""
    if on_failure != "ask" or not sys.stdin.isatty():
        return on_failure == "rollback"
    return click.confirm(
        f"{arguments[0]} failed with {exit_code}: put back what it changed?", err=True
    )


def report(
    state: Path, before: str, after: str, exit_code: int, told: dict[str, Any] | None
) -> None:
    """Say on standard error what was kept or put back; the command's output is its own."""
    if told is not None:
        what = f"put back what it changed: {paths_text(told['changes'])}"
    else:
        what = f"kept what it changed; '{typed('statefs', 'undo', state)}' puts it back"
    end = "ended" if not exit_code else f"failed with {exit_code}"
    print_line(f"statefs: the command {end} ({before} to {after}), {what}", err=True)
    if told is not None:
        warn_of_writers(told)
