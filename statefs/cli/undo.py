"""`statefs undo`: put back what the last restore, command or undo changed."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, json_option, state_argument, store_option
from statefs.cli.output import print_json, warn
from statefs.cli.progress import shown_progress
from statefs.cli.restore import print_restored
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="Put back what the last restore, try or import changed.",
    examples=[
        "statefs undo state",
        "statefs undo state --dry-run",
        "statefs undo state && statefs undo state    back and forth again",
    ],
)
@state_argument
@store_option
@click.option(
    "--of",
    type=TEXT,
    metavar="SNAPSHOT",
    help="Undo the restore, try or import that SNAPSHOT was taken for, not the last one.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--force", is_flag=True, help="Although programs have files open for writing there.")
@json_option
def command(
    state: Path | None,
    store: Path | None,
    of: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Put back in STATE/current what the last restore, 'statefs try', import or undo changed.

    Only those paths: what was changed elsewhere since stays. What is replaced is saved first, so
    a second undo takes the first one back. The snapshot that was restored may be gone by then;
    where the one that was taken for the operation is, undo refuses.
    """
    with api.open_target(find_target(state, store)) as opened, shown_progress(as_json) as told_of:
        told = opened.undo(of=of, force=force, dry_run=dry_run, on_progress=told_of)
    if not told["exact"]:
        warn(
            "what was changed then is not known any more: this is all that changed between"
            f" {told['restored']} and {told['until']}"
        )
    if as_json:
        print_json(told)
    else:
        print_restored(told, dry_run=dry_run)
