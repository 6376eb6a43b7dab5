"""`statefs clone`: a writable copy of a snapshot, to be thrown away."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import (
    complete_clone,
    find_snapshot_and_paths,
    is_utf8,
    json_option,
    split_state,
    store_option,
)
from statefs.cli.output import Column, print_json, print_line, print_table
from statefs.cli.progress import shown_progress
from statefs.errors import UsageError
from statefs.target import Target, find_target
from statefs.units import local_text, printable, since_text

_USAGE: Final = "'statefs clone STATE SNAPSHOT [PATH] NAME'"
_COLUMNS: Final = (Column("clone", style="bold"), Column("made of"), Column("made"), Column("age"))


@click.command(
    cls=ExplainedCommand,
    short_help="Make a writable copy of a snapshot, to be thrown away.",
    examples=[
        "statefs clone state latest test",
        "statefs clone state clean volumes/db db-copy",
        "statefs clone --list state",
        "statefs clone --delete state test",
    ],
)
@click.argument(
    "words", nargs=-1, metavar="[STATE] SNAPSHOT [PATH] NAME", shell_complete=complete_clone
)
@store_option
@click.option("--delete", is_flag=True, help="Delete the clone NAME, with all that is in it.")
@click.option("--list", "lists", is_flag=True, help="List the clones, the oldest first.")
@json_option
def command(
    words: tuple[str, ...], store: Path | None, delete: bool, lists: bool, as_json: bool
) -> None:
    """Make STATE/clones/NAME: all of SNAPSHOT, or its folder PATH, for programs to write to.

    Bytes are shared, not copied, and neither the snapshot nor current/ ever sees what is
    written there. No snapshot holds clones. What is deleted with --delete is gone for good.
    """
    if delete and lists:
        raise UsageError("--delete and --list exclude each other: give one of them")
    if lists:
        _list(words, store, as_json=as_json)
    elif delete:
        target, name = _clone_named(words, store)
        with api.open_target(target) as opened:
            opened.delete_clone(name)
        if as_json:
            print_json({"deleted": name})
        else:
            print_line(f"deleted the clone {name}")
    else:
        _make(words, store, as_json=as_json)


def _make(words: tuple[str, ...], store: Path | None, *, as_json: bool) -> None:
    target, snapshot, rest = find_snapshot_and_paths(words, store, "clone")
    if len(rest) not in (1, 2) or not all(rest):
        raise UsageError(f"{'the name is missing' if not rest else 'give one name'}: {_USAGE}")
    *path, name = *rest[:-1], words[-1]
    if not all(is_utf8(word) for word in rest):
        raise UsageError("paths and names of clones must be UTF-8 here; mkdir takes any name")
    with api.open_target(target) as opened, shown_progress(as_json) as told:
        made = opened.clone(snapshot, name, *path, on_progress=told)
    if as_json:
        print_json(made)
    else:
        place = target.state / "clones" / name if target.state is not None else f"clones/{name}"
        print_line(f"{place} is a copy of {made['snapshot']}")


def _list(words: tuple[str, ...], store: Path | None, *, as_json: bool) -> None:
    if len(words) > 1:
        raise UsageError("--list takes a state and nothing else: 'statefs clone --list STATE'")
    with api.open_target(find_target(Path(words[0]) if words else None, store)) as opened:
        clones = opened.clones()
    if as_json:
        print_json({"clones": clones})
    elif clones:
        now = time.time()
        print_table(_COLUMNS, [_row(each, now) for each in clones])
    else:
        click.echo("no clones: 'statefs clone STATE SNAPSHOT NAME' makes one", err=True)


def _row(clone: Mapping[str, Any], now_seconds: float) -> list[str]:
    made = clone["created"]
    origin = "/".join(filter(None, (clone["snapshot"] or "?", clone["path"])))
    return [clone["name"], printable(origin), local_text(made), since_text(made, now_seconds)]


def _clone_named(words: tuple[str, ...], store: Path | None) -> tuple[Target, str]:
    usage = "give the name of one clone: 'statefs clone --delete STATE NAME'"
    state, (name,) = split_state(words, 1, usage)
    if not is_utf8(name):
        raise UsageError("the name is not UTF-8: 'rmdir' in clones/ deletes any clone")
    return find_target(state, store), name
