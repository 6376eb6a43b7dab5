"""`statefs unpin`: allow the deletion of one snapshot again."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_snapshot, json_option, snapshot_argument, store_option
from statefs.cli.output import plain, print_json, print_line


@click.command(
    cls=ExplainedCommand,
    short_help="Allow the deletion of one snapshot again.",
    examples=["statefs unpin state clean"],
)
@snapshot_argument
@store_option
@json_option
def command(words: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Take the pin of one snapshot of STATE away, whoever has set it.

    SNAPSHOT is what 'statefs show' takes.
    """
    target, name = find_snapshot(words, store, "unpin")
    with api.open_target(target) as opened:
        snapshot = plain(opened.unpin(name))
    if as_json:
        print_json(snapshot)
    else:
        print_line(f"{snapshot['name']} is not pinned any more")
