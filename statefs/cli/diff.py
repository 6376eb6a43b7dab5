"""`statefs diff`: what differs between two snapshots, or a snapshot and the present."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.difference_view import print_contents, print_differences, print_stat
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_moments, json_option, moments_argument, store_option
from statefs.cli.output import plain, print_json
from statefs.cli.progress import shown_progress
from statefs.errors import UsageError

EXIT_DIFFERENT = 1
"""With --exit-code, as of git diff."""


@click.command(
    cls=ExplainedCommand,
    short_help="Show what changed since a snapshot.",
    examples=[
        "statefs diff state latest               what changed since then",
        "statefs diff state latest~1 latest      between two snapshots",
        "statefs diff state @-2h --content       with the lines that differ",
        "statefs diff state clean --stat",
        "statefs diff state latest --exit-code >/dev/null || statefs save state",
    ],
)
@moments_argument
@store_option
@click.option("--stat", is_flag=True, help="Print counts and sizes only.")
@click.option("--content", is_flag=True, help="Print a text diff of each file, as 'diff -N'.")
@click.option("--exit-code", "as_exit_code", is_flag=True, help="Exit with 1 if anything differs.")
@json_option
def command(
    words: tuple[str, ...],
    store: Path | None,
    stat: bool,
    content: bool,
    as_exit_code: bool,
    as_json: bool,
) -> int:
    """Show what differs in STATE between A and B: added, removed, modified, renamed.

    A and B are what 'statefs show' takes, or current, which B is when left out. One line each:
    A added, D removed, M modified, R renamed, m metadata alone. runtime/ is left out.
    """
    if as_json and content:
        raise UsageError("--content is for people: give it without --json")
    target, older, newer = find_moments(words, store)
    with api.open_target(target) as opened:
        with shown_progress(as_json) as on_progress:
            comparison = opened.diff(older, newer, on_progress)
        if as_json:
            document = plain(comparison)
            if stat:
                del document["differences"]
            print_json(document)
        elif stat:
            print_stat(comparison)
        elif not content:
            print_differences(comparison.differences)
        if content:
            print_contents(opened, comparison)
    return EXIT_DIFFERENT if as_exit_code and comparison.differences else 0
