"""`statefs pin`: forbid the deletion of one snapshot."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, find_snapshot, json_option, snapshot_argument, store_option
from statefs.cli.output import plain, print_json, print_line
from statefs.cli.snapshot_view import pin_text


@click.command(
    cls=ExplainedCommand,
    short_help="Forbid the deletion of one snapshot, with a reason.",
    examples=[
        "statefs pin state clean --reason 'the auditors look at it'",
        "statefs pin state latest --reason 'until the release is out' --until 14d",
        "statefs pin state latest --reason 'end of year' --until 2036-12-31",
    ],
)
@snapshot_argument
@store_option
@click.option("--reason", type=TEXT, required=True, metavar="TEXT", help="Why it must stay.")
@click.option(
    "--until", type=TEXT, default="", metavar="TIME", help="When that ends: 12h, 7d, 2026-12-31."
)
@json_option
def command(
    words: tuple[str, ...], store: Path | None, reason: str, until: str, as_json: bool
) -> None:
    """Pin one snapshot of STATE: until 'statefs unpin' it is neither deleted nor pruned.

    Who tries is told who pinned it, and why. SNAPSHOT is what 'statefs show' takes.
    """
    target, name = find_snapshot(words, store, "pin")
    with api.open_target(target) as opened:
        snapshot = plain(opened.pin(name, reason, until))
    if as_json:
        print_json(snapshot)
    else:
        print_line(f"{snapshot['name']} is {pin_text(snapshot['pin'])}")
