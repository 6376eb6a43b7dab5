"""`statefs import`: bring a tar archive into current/."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import FOLDER, json_option, store_option
from statefs.cli.output import plain, print_json, print_line, warn
from statefs.cli.progress import shown_progress
from statefs.cli.snapshot_view import phrase
from statefs.errors import UsageError
from statefs.target import find_target
from statefs.units import count_text

STANDARD: str = "-"
"""Stands for standard input."""


@click.command(
    cls=ExplainedCommand,
    short_help="Bring a tar archive into current/.",
    examples=[
        "statefs import state backup.tar.zst",
        "statefs import state backup.tar --into files/old",
        "ssh host 'statefs export /srv/state latest -' | statefs import state - --replace",
    ],
)
@click.argument("words", nargs=-1, type=FOLDER, metavar="[STATE]")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@store_option
@click.option("--into", metavar="DIR", help="A new folder for it, relative to STATE/current.")
@click.option("--replace", is_flag=True, help="Put it in place of all that is in STATE/current.")
@json_option
def command(
    words: tuple[Path, ...],
    file: Path,
    store: Path | None,
    into: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Bring the tar archive FILE into STATE/current, and take a snapshot; - is standard input.

    STATE/current must be empty unless --into or --replace is given. All of the archive comes in or
    nothing: after an error or Ctrl-C STATE/current is as it was. STATE need not be mounted.
    """
    if len(words) > 1:
        raise UsageError("give one state and one file: 'statefs import STATE FILE'")
    if into is not None and replace:
        raise UsageError("--into and --replace exclude each other: give one of them")
    target = find_target(words[0] if words else None, store)
    source = sys.stdin.buffer if str(file) == STANDARD else file
    with api.open_target(target) as opened, shown_progress(as_json) as on_progress:
        done = plain(opened.import_(source, into, replace, on_progress))
    if done["left_out"]:
        warn(
            "only root may make devices and set trusted.* and security.* attributes: "
            f"{count_text(done['left_out'])} left out"
        )
    if as_json:
        print_json(done)
    else:
        print_line(f"imported {count_text(done['members'])} members: {phrase(done['snapshot'])}")
