"""`statefs try`: run a command between two snapshots, and put back what it did if it fails."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import msgspec

from statefs import api
from statefs.api import State
from statefs.cli.app import explain
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, store_option
from statefs.cli.output import plain, print_json, print_line
from statefs.cli.progress import OnProgress, shown_progress
from statefs.cli.restore import paths_text, warn_of_writers
from statefs.doors import Document
from statefs.errors import NotMounted, StatefsError, UsageError, typed
from statefs.snapshots.documents import SnapshotDocument
from statefs.target import find_target, names_state

EXIT_NOT_FOUND: Final = 127
"""What a shell reports for a command that it cannot find."""
EXIT_NOT_EXECUTABLE: Final = 126
"""What a shell reports for a command that it may not run."""
PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What is outlived while a command runs; all but the first, Ctrl-C, is passed on to it."""


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
    program = arguments[0]
    if shutil.which(program) is None:
        return refused(program, is_there=os.sep in program and os.path.lexists(program))
    with api.open_target(target) as opened:
        before = opened.save(
            message or f"before: {shlex.join(arguments)}",
            "before-try",
            operation={"kind": "try", "phase": "before", "command": arguments},
        )
    exit_code = run_command(arguments)
    ending = Ending()
    try:
        with api.open_target(target) as opened:
            what = message or f"after: {shlex.join(arguments)}"
            ending.save(opened, what, before, arguments, exit_code)
            if exit_code and wants_rollback(on_failure, arguments, exit_code):
                with shown_progress(as_json) as on_progress:
                    ending.put_back(opened, before, on_progress)
    except (StatefsError, OSError) as error:
        ending.failures.append(error)
    explained = list(map(explain, ending.failures))
    failed = "; ".join(text for text, _ in explained) or None
    if as_json:
        before = ending.linked(before)
        document = {"before": plain(before), "after": ending.after and plain(ending.after)}
        document |= {"rolledBack": ending.told, "exitCode": exit_code, "error": failed}
        print_json(document, err=True)
    else:
        report(target.mount.mount_point, before.name, ending, exit_code, failed)
    return exit_code or (explained[0][1] if explained else 0)


@dataclass
class Ending:
    """What is done after a command, as far as it can be.

    Args:
        after: the snapshot; None where it could not be taken.
        told: what was put back, as `State.undo` tells it; None where nothing was.
        failures: why something could not be done, the snapshot or the way back; in order.
    """

    after: SnapshotDocument | None = None
    told: Document | None = None
    failures: list[Exception] = field(default_factory=list)

    def save(
        self, state: State, message: str, before: SnapshotDocument, command: list[str], code: int
    ) -> None:
        """Take the snapshot after the command; note why where that cannot be."""
        operation = {
            "kind": "try", "phase": "after", "other": before.snapshot_id,
            "command": command, "exitCode": code,
        }  # fmt: skip
        try:
            self.after = state.save(message, "try", operation=operation)
        except (StatefsError, OSError) as error:
            self.failures.append(error)

    def linked(self, before: SnapshotDocument) -> SnapshotDocument:
        """Return the snapshot before the command as it is now: it knows the one after it."""
        if self.after is None or before.operation is None:
            return before
        operation = msgspec.structs.replace(before.operation, other=self.after.snapshot_id)
        return msgspec.structs.replace(before, operation=operation)

    def put_back(
        self, state: State, before: SnapshotDocument, on_progress: OnProgress | None
    ) -> None:
        """Undo what the command changed; without a snapshot after it, all that changed since."""
        if self.after is not None:
            self.told = state.undo(force=True, of=self.after.snapshot_id, on_progress=on_progress)
        else:
            self.told = state.restore(before.name, force=True, on_progress=on_progress)


def split_command(words: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    """Return the state (None: left out) and the command of `[STATE] -- COMMAND...`.

    The first word is the state if there is a state of that name.

    Raises:
        UsageError: there is no command.
    """
    rest = list(words)
    state = Path(rest.pop(0)) if rest and names_state(Path(rest[0])) else None
    if not rest:
        raise UsageError("the command is missing: 'statefs try STATE -- COMMAND...'")
    return state, rest


def run_command(arguments: list[str]) -> int:
    """Run a command with this process's standard streams; return its exit code as a shell would.

    Ctrl-C reaches the command by itself, as it is in the same group; what ends this process alone
    is passed on. This process waits for the command all the same.
    """
    try:
        with ends_passed_on() as began:
            command = subprocess.Popen(arguments)
            began(command)
            code = command.wait()
    except (FileNotFoundError, PermissionError) as error:  # of its interpreter, or just now
        return refused(arguments[0], is_there=isinstance(error, PermissionError))
    return 128 - code if code < 0 else code


def refused(program: str, *, is_there: bool) -> int:
    """Say that a command cannot be run, and return what a shell would exit with."""
    what = "permission denied" if is_there else "command not found"
    click.echo(f"statefs: error: {program}: {what}", err=True)
    return EXIT_NOT_EXECUTABLE if is_there else EXIT_NOT_FOUND


@contextmanager
def ends_passed_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Outlive the signals that end a program; give what is to be told of the command, once begun.

    What comes before that waits for it. A signal that is ignored (nohup) stays so.
    """
    commands: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            return
        for command in commands:
            command.send_signal(number)
        if not commands:
            early.append(number)

    def began(command: subprocess.Popen[bytes]) -> None:
        commands.append(command)
        for number in early:
            command.send_signal(number)

    # A handler, unlike SIG_IGN, is not inherited by the command.
    before = {
        number: signal.signal(number, pass_on)
        for number in PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield began
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wants_rollback(on_failure: str, arguments: list[str], exit_code: int) -> bool:
    """Return whether the changes of a command that failed are to be put back."""
    if on_failure != "ask" or not sys.stdin.isatty():
        return on_failure == "rollback"
    return click.confirm(
        f"{arguments[0]} failed with {exit_code}: put back what it changed?", err=True
    )


def report(state: Path, before: str, ending: Ending, exit_code: int, failed: str | None) -> None:
    """Say on standard error what was kept or put back; the command's output is its own."""
    end = "ended" if not exit_code else f"failed with {exit_code}"
    if failed is not None:
        print_line(f"statefs: error: {failed}", err=True)
    if ending.after is None:
        span, way = f"after {before}, no snapshot since", typed("statefs", "restore", state, before)
        kept = f"'{way}' brings all of it back as it was"
    else:
        span, way = f"{before} to {ending.after.name}", typed("statefs", "undo", state)
        kept = f"kept what it changed; '{way}' puts it back"
    if ending.told is not None:
        which = "what it changed" if ending.after is not None else "all that has changed since"
        kept = f"put back {which}: {paths_text(ending.told['changes'])}"
    print_line(f"statefs: the command {end} ({span}), {kept}", err=True)
    if ending.told is not None:
        warn_of_writers(ending.told)
