"""`statefs export`: write a snapshot as a tar archive."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import complete_snapshot, find_snapshot, json_option, store_option
from statefs.cli.output import print_json, print_line, warn
from statefs.cli.progress import shown_progress
from statefs.errors import UsageError
from statefs.units import count_text, size_text

STANDARD: str = "-"
"""Stands for standard input or output."""


@click.command(
    cls=ExplainedCommand,
    short_help="Write a snapshot as a tar archive.",
    examples=[
        "statefs export state latest backup.tar.zst",
        "statefs export state clean - | ssh host 'cat > clean.tar'",
        "statefs export state latest - | tar --acls --xattrs -C there -xpf -",
    ],
)
@click.argument("words", nargs=-1, metavar="[STATE] SNAPSHOT", shell_complete=complete_snapshot)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@store_option
@json_option
def command(words: tuple[str, ...], file: Path, store: Path | None, as_json: bool) -> None:
    """Write SNAPSHOT of STATE into FILE, a tar archive; - is standard output.

    A name that ends in .zst is compressed with zstd. The archive has hard links, extended
    attributes, ACLs, holes and times to the nanosecond, and any tar reads it. FILE is there when
    all of it is on the disk, and not before.
    """
    to_stdout = str(file) == STANDARD
    if to_stdout and (sys.stdout.isatty() or as_json):
        raise UsageError("an archive on standard output goes into a pipe or a file, without --json")
    target, name = find_snapshot(words, store, "export")
    with api.open_target(target) as opened, shown_progress(as_json) as on_progress:
        done = opened.export(
            name, sys.stdout.buffer if to_stdout else file, on_progress=on_progress
        )
    if done["sockets"]:
        warn(f"sockets are left out, as no archive can hold them: {count_text(done['sockets'])}")
    if as_json:
        print_json(done)
    elif not to_stdout:
        amount = f"{count_text(done['members'])} members, {size_text(done['bytes'])}"
        print_line(f"exported {done['snapshot']} to {file} ({amount})")
