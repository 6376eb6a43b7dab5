"""`statefs restore`: make a snapshot, or some paths of it, current again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import (
    complete_snapshot_and_path,
    find_snapshot_and_paths,
    json_option,
    store_option,
)
from statefs.cli.output import Column, print_json, print_line, print_table, warn
from statefs.cli.progress import shown_progress
from statefs.errors import UsageError
from statefs.units import count_text

PATHS_SHOWN_MAX: Final = 50
"""More lines than a person reads; --json has all of them."""
_COLUMNS = (Column("", style="bold"), Column("path", may_shorten=True))


@click.command(
    cls=ExplainedCommand,
    short_help="Make a snapshot, or paths of it, current again.",
    examples=[
        "statefs restore state latest",
        "statefs restore state @-2h files/config.json volumes/db --dry-run",
        "statefs restore state clean --to /tmp/then",
    ],
)
@click.argument(
    "words",
    nargs=-1,
    metavar="[STATE] SNAPSHOT [PATH]...",
    shell_complete=complete_snapshot_and_path,
)
@store_option
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", help="A new folder for it.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--force", is_flag=True, help="Although programs have files open for writing there.")
@json_option
def command(
    words: tuple[str, ...],
    store: Path | None,
    to: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make SNAPSHOT current again: all of it, or each PATH (relative to STATE/current).

    All or nothing, and in no more time than what differs takes. What is replaced is saved first:
    'statefs undo' brings it back. runtime/ is never restored. With --to nothing is replaced: a
    copy goes into the new folder DIR.
    """
    target, name, paths = find_snapshot_and_paths(words, store, "restore")
    with api.open_target(target) as opened, shown_progress(as_json) as told_of:
        if to is None:
            told = opened.restore(name, paths, dry_run=dry_run, force=force, on_progress=told_of)
        elif dry_run or force:
            raise UsageError("--to replaces nothing: leave --dry-run and --force out")
        else:
            told = opened.copy_out(name, to, paths, on_progress=told_of)
    if as_json:
        print_json(told)
    elif to is not None:
        print_line(f"copied {told['restored']} to {to}")
        if told["left_out"]:
            count = count_text(told["left_out"])
            warn(f"left out, as they cannot be made here (sockets, what only root may): {count}")
    else:
        print_restored(told, dry_run=dry_run)


def print_restored(told: Mapping[str, Any], *, dry_run: bool = False) -> None:
    """Print what a restore or an undo has done, or would do."""
    changes = told["changes"]
    if not changes:
        print_line(f"nothing to do: it is as it was in {told['restored']}")
        return
    if dry_run:
        shown = changes[:PATHS_SHOWN_MAX]
        print_table(_COLUMNS, [[change["what"], change["path"]] for change in shown])
        if len(changes) > len(shown):
            print_line(f"and {count_text(len(changes) - len(shown))} more; --json has all of them")
    paths = paths_text(changes)
    if dry_run:
        print_line(f"would change {paths}, back to {told['restored']}")
        if told["overridden"]:
            from statefs.snapshots.reports import writers_text

            warn(f"without --force it would be refused: {writers_text(told['overridden'])}")
    else:
        print_line(
            f"restored {told['restored']}: {paths} changed; 'statefs undo' brings back what was"
            f" replaced ({told['saved']})"
        )
        warn_of_writers(told)


def paths_text(changes: Sequence[object]) -> str:
    """Return how many paths changed: `1 path`, `1,234 paths`."""
    return "1 path" if len(changes) == 1 else f"{count_text(len(changes))} paths"


def warn_of_writers(told: Mapping[str, Any]) -> None:
    """Name the programs under whose hands files were restored: they may write over them."""
    if told["overridden"]:
        from statefs.snapshots.reports import writers_text

        named = writers_text(told["overridden"])
        warn(f"programs may write over what was put back: {named}; look at it, or start them anew")
