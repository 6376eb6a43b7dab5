"""`statefs state`: look after the folders of `statefs.state` stores, mounted or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statefs.cli.explained import ExplainedCommand, ExplainedGroup
from statefs.cli.options import FOLDER, TEXT, json_option
from statefs.cli.output import end_of_check, print_json, print_line, print_table
from statefs.errors import StateDamaged

if TYPE_CHECKING:
    from statefs.state import checking

folder_argument = click.argument("folder", type=FOLDER, metavar="FOLDER")


@click.group(
    cls=ExplainedGroup,
    examples=["statefs state list ~/.config/shop", "statefs state check app"],
    short_help="List, show, check and repair what programs keep in a folder.",
    no_args_is_help=False,
)
def command() -> None:
    """Look after FOLDER, where a program keeps documents, sessions or tasks with statefs.state.

    FOLDER is any folder, in a mounted state or not.
    """


@command.command(
    "list",
    cls=ExplainedCommand,
    short_help="List the documents, the sessions or the tasks.",
    examples=["statefs state list ~/.config/shop", "statefs state list app --json"],
)
@folder_argument
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the documents in FOLDER, broken ones too, or its sessions, or its tasks."""
    from statefs.cli.state_kinds import kinds_in

    listings = [(kind.entries, kind.listed(folder)) for kind in kinds_in(folder)]
    if as_json:
        print_json({"folder": str(folder), **{name: each.rows for name, each in listings}})
        return
    for number, (_, listing) in enumerate(listings):
        if number:
            print_line("")
        print_table(listing.columns, listing.cells)


@command.command(
    cls=ExplainedCommand,
    short_help="Print one document, session, task or report.",
    examples=[
        "statefs state show ~/.config/shop settings",
        "statefs state show app settings theme",
    ],
)
@folder_argument
@click.argument("document", type=TEXT)
@click.argument("key", type=TEXT, required=False, metavar="[KEY]")
def show(folder: Path, document: str, key: str | None) -> None:
    """Print the values of DOCUMENT in FOLDER as JSON, or the value of KEY alone; or a session.

    A session is named by its id, or by SCOPE/ID where several scopes have one of that id. Of one
    with a journal, KEY is a slot. In a folder of tasks, DOCUMENT is the id of a task, a session or
    a report, and KEY a field of it.
    """
    from statefs.cli.state_kinds import shown

    print_json(shown(folder, document, key))


@command.command(
    cls=ExplainedCommand,
    short_help="Read every document and name what is wrong.",
    examples=["statefs state check ~/.config/shop", "statefs state check app --json"],
)
@folder_argument
@json_option
def check(folder: Path, as_json: bool) -> int:
    """Read every document in FOLDER and print each problem, with file and line.

    Changes nothing. Exits with 29 when something was found. Works while a program has it open.
    Actions that were begun and whose end nobody has written down are named, too.
    """
    from statefs.cli.state_kinds import problems_in, unfinished_actions

    problems, unfinished = problems_in(folder), unfinished_actions(folder)
    if as_json:
        shown = [{"path": str(each.path), "message": each.message} for each in problems]
        actions = [{**each._asdict(), "path": str(each.path)} for each in unfinished]
        print_json(
            {"folder": str(folder), "ok": not problems, "problems": shown, "unfinished": actions}
        )
        return StateDamaged.exit_code if problems else 0
    for problem in problems:
        print_line(problem.message)
    for action in unfinished:
        print_line(action.text())
    return end_of_check(folder, len(problems), StateDamaged.exit_code)


@command.command(
    cls=ExplainedCommand,
    short_help="Put the newest good copy in place of a broken document.",
    examples=["statefs state repair ~/.config/shop", "statefs state repair app --json"],
)
@folder_argument
@json_option
def repair(folder: Path, as_json: bool) -> int:
    """Move broken documents in FOLDER aside, and bring back the newest good copy of each.

    In a mounted state, the snapshots that have a good one are named. No program may have FOLDER
    open. Exits with 29 when a document is left without a good copy.
    """
    from statefs.cli.state_kinds import kinds_in

    repairs = [each for kind in kinds_in(folder) for each in kind.repair(folder)]
    is_lost = any(each.lost or (each.aside is not None and each.source is None) for each in repairs)
    if as_json:
        print_json({"folder": str(folder), "repairs": [repair_document(each) for each in repairs]})
        return StateDamaged.exit_code if is_lost else 0
    for each in repairs:
        print_line(each.done)
        for path in each.snapshots:
            print_line(f"{each.path}: a good one is {path}")
    if not repairs:
        print_line(f"{folder}: nothing to repair")
    return StateDamaged.exit_code if is_lost else 0


@command.command(
    cls=ExplainedCommand,
    short_help="Take the lock of a deploy state away from whoever has it.",
    examples=[
        "statefs state unlock deploy aws.eu-west-1",
        "statefs state unlock states shop 5f1c7c6e-0d7c-4a2e-9d3f-3a4b5c6d7e8f",
    ],
)
@folder_argument
@click.argument("state", type=TEXT)
@click.argument("lock_id", type=TEXT, required=False, metavar="[ID]")
def unlock(folder: Path, state: str, lock_id: str | None) -> None:
    """Take the lock of STATE in FOLDER away, whoever has it; with ID, only the lock of that id.

    What its holder writes from then on is refused. The audit log of FOLDER has it.
    """
    from statefs.cli.state_kinds import unlocked
    from statefs.state.operation_lock import held_text

    lock = unlocked(folder, state, lock_id)
    if lock is None:
        print_line(f"{state}: nobody has a lock that can be named")
    else:
        print_line(f"{state}: the lock of {held_text(lock)} is taken away")


def repair_document(done: checking.Repair) -> dict[str, Any]:
    """Return one repair as JSON shows it."""
    return {
        "path": str(done.path),
        "done": done.done,
        "aside": None if done.aside is None else str(done.aside),
        "source": None if done.source is None else str(done.source),
        "snapshots": [str(each) for each in done.snapshots],
    }
