"""`statefs show`: all that is known of one snapshot."""

from __future__ import annotations

import time
from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_snapshot, json_option, snapshot_argument, store_option
from statefs.cli.output import plain, print_json
from statefs.cli.snapshot_view import print_snapshot


@click.command(
    cls=ExplainedCommand,
    short_help="Show one snapshot.",
    examples=[
        "statefs show state latest",
        "statefs show state 2026-03-13",
        "cd state && statefs show @-2h",
        "statefs show state clean --json | jq -r .stateDigest",
    ],
)
@snapshot_argument
@store_option
@json_option
def command(words: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Show one snapshot of STATE.

    SNAPSHOT is a name or the beginning of one, a label, latest, latest~2 (two before the latest),
    @-2h (the newest that is at least two hours old) or @2026-03-13T12:00.
    """
    target, name = find_snapshot(words, store, "show")
    with api.open_target(target) as opened:
        snapshot = plain(opened.show(name))
    if as_json:
        print_json(snapshot)
        return
    folder = ""
    if target.mount is not None:
        folder = str(target.mount.mount_point / "snapshots" / snapshot["name"])
    print_snapshot(snapshot, folder, time.time())
