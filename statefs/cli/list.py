"""`statefs list`: the snapshots of a state."""

from __future__ import annotations

import time
from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import plain, print_json
from statefs.cli.progress import shown_progress
from statefs.cli.snapshot_view import print_list
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="List the snapshots, the newest last.",
    examples=[
        "statefs list state",
        "cd state/current && statefs list",
        "statefs list state --sizes",
        "statefs list state --json | jq -r '.snapshots[].name'",
        "statefs list --store /backup/app.store",
    ],
)
@state_argument
@store_option
@click.option("--sizes", is_flag=True, help="Show what deleting each one alone would free.")
@json_option
def command(state: Path | None, store: Path | None, sizes: bool, as_json: bool) -> None:
    """List the snapshots of STATE, the newest last.

    Times are local; columns that are empty in every row are left out.
    """
    with api.open_target(find_target(state, store)) as opened, shown_progress(as_json) as told:
        snapshots = plain(opened.list_snapshots())
        freed = opened.sizes(told) if sizes else {}
    for snapshot in snapshots if sizes else ():
        snapshot["freedBytes"] = freed.get(snapshot["name"], 0)
    if as_json:
        print_json({"snapshots": snapshots})
    elif snapshots:
        print_list(snapshots, time.time())
    else:
        # On standard error, so that a script that counts lines counts none.
        click.echo("no snapshots yet: 'statefs save' takes one", err=True)
