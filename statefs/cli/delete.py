"""`statefs delete`: remove one snapshot."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_snapshot, json_option, snapshot_argument, store_option
from statefs.cli.output import plain, print_json, print_line
from statefs.cli.snapshot_view import phrase


@click.command(
    cls=ExplainedCommand,
    short_help="Delete one snapshot.",
    examples=[
        "statefs delete state 2026-03-13T12-00-00Z",
        "statefs delete state clean",
        "cd state && statefs delete latest~2",
    ],
)
@snapshot_argument
@store_option
@json_option
def command(words: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Delete one snapshot of STATE and say which it was.

    STATE/current and the other snapshots are not touched; the space that only this snapshot
    used comes back. There is no way to undo it. SNAPSHOT is what 'statefs show' takes.
    """
    target, name = find_snapshot(words, store, "delete")
    with api.open_target(target) as opened:
        snapshot = plain(opened.delete(name))
    if as_json:
        print_json(snapshot)
    else:
        print_line(f"deleted {phrase(snapshot)}")
