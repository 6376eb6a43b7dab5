"""`statefs state`: look after the folders of `statefs.state` stores, mounted or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from statefs.cli.explained import ExplainedCommand, ExplainedGroup
from statefs.cli.options import FOLDER, TEXT, json_option
from statefs.cli.output import Column, end_of_check, plain, print_json, print_line, print_table
from statefs.clock import iso_time
from statefs.errors import StateDamaged
from statefs.units import count_text, local_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statefs.state import checking, session_checking

folder_argument = click.argument("folder", type=FOLDER, metavar="FOLDER")


@click.group(
    cls=ExplainedGroup,
    examples=["statefs state list ~/.config/shop", "statefs state check app"],
    short_help="List, show, check and repair what programs keep in a folder.",
    no_args_is_help=False,
)
def command() -> None:
    """Look after FOLDER, where a program keeps documents or sessions with statefs.state.

    FOLDER is any folder, in a mounted state or not.
    """


@command.command(
    "list",
    cls=ExplainedCommand,
    short_help="List the documents, or the sessions.",
    examples=["statefs state list ~/.config/shop", "statefs state list app --json"],
)
@folder_argument
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the documents in FOLDER, broken ones too; or its sessions, the last saved first."""
    from statefs.state import checking, session_checking

    if session_checking.scopes_of(folder):
        print_sessions(folder, session_checking.list_sessions(folder), as_json)
        return
    entries = checking.list_documents(folder)
    if as_json:
        print_json({"folder": str(folder), "documents": [entry_document(each) for each in entries]})
        return
    columns = [
        Column("name", style="bold", may_shorten=True),
        Column("keys", align_right=True),
        Column("size", align_right=True),
        Column("copies", align_right=True, drop_rank=1),
        Column("changed", drop_rank=2),
        Column("damage", style="red", may_shorten=True),
    ]
    print_table(columns, [entry_cells(each) for each in entries])


def print_sessions(
    folder: Path, sessions: Sequence[session_checking.ListedSession], as_json: bool
) -> None:
    """Print the sessions of a folder."""
    from statefs.state.session_checking import label_of

    if as_json:
        rows = [{"scope": label_of(scope), **plain(entry)} for scope, entry in sessions]
        print_json({"folder": str(folder), "sessions": rows})
        return
    columns = [
        Column("session", style="bold", may_shorten=True),
        Column("scope", may_shorten=True),
        Column("agent", may_shorten=True, drop_rank=1),
        Column("title", may_shorten=True),
        Column("turns", align_right=True),
        Column("saved", drop_rank=2),
    ]
    cells = [
        [
            entry.id,
            label_of(scope),
            entry.agent_id,
            entry.title,
            count_text(entry.turn_count),
            local_text(entry.updated_at),
        ]
        for scope, entry in sessions
    ]
    print_table(columns, cells)


def entry_document(entry: checking.Entry) -> dict[str, Any]:
    """Return one document of the list as JSON shows it."""
    return {
        "name": entry.name,
        "encrypted": entry.encrypted,
        "keys": entry.keys,
        "bytes": entry.bytes,
        "changed": iso_time(entry.changed_ns),
        "copies": entry.copies,
        "damage": entry.damage,
    }


def entry_cells(entry: checking.Entry) -> list[str]:
    """Return one document of the list as cells of the table."""
    return [
        entry.name,
        keys_text(entry),
        size_text(entry.bytes),
        str(entry.copies),
        local_text(iso_time(entry.changed_ns)),
        entry.damage or "",
    ]


def keys_text(entry: checking.Entry) -> str:
    """Return how many keys a document has, or why nobody can say."""
    if entry.keys is not None:
        return count_text(entry.keys)
    return "encrypted" if entry.encrypted else ""


@command.command(
    cls=ExplainedCommand,
    short_help="Print one document, or one session.",
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

    A session is named by its id, or by SCOPE/ID where several scopes have one of that id.
    """
    from statefs.state import checking, session_checking

    if session_checking.scopes_of(folder) and key is None:
        print_json(session_checking.show_session(folder, document))
        return
    print_json(checking.show_document(folder, document, key))


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
    """
    from statefs.state import checking, session_checking

    is_sessions = bool(session_checking.scopes_of(folder))
    look = session_checking.check_sessions if is_sessions else checking.check_documents
    problems = look(folder)
    if as_json:
        shown = [{"path": str(each.path), "message": each.message} for each in problems]
        print_json({"folder": str(folder), "ok": not problems, "problems": shown})
        return StateDamaged.exit_code if problems else 0
    for each in problems:
        print_line(each.message)
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
    from statefs.state import checking, session_checking

    is_sessions = bool(session_checking.scopes_of(folder))
    mend = session_checking.repair_sessions if is_sessions else checking.repair_documents
    repairs = mend(folder)
    is_lost = any(each.aside is not None and each.source is None for each in repairs)
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


def repair_document(done: checking.Repair) -> dict[str, Any]:
    """Return one repair as JSON shows it."""
    return {
        "path": str(done.path),
        "done": done.done,
        "aside": None if done.aside is None else str(done.aside),
        "source": None if done.source is None else str(done.source),
        "snapshots": [str(each) for each in done.snapshots],
    }
