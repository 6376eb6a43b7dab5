"""`statefs scrub`: read everything again, slowly, and tell what the last time found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import print_json, print_line
from statefs.cli.progress import shown_progress
from statefs.cli.verify import problem_text, read_text
from statefs.errors import CorruptStore
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="Read everything again in the background, slowly.",
    examples=[
        "statefs scrub state",
        "statefs scrub state --status",
        "statefs scrub state --status --json | jq '.last.problems'",
    ],
)
@state_argument
@store_option
@click.option("--status", "is_question", is_flag=True, help="Only tell what the last one found.")
@json_option
def command(state: Path | None, store: Path | None, is_question: bool, as_json: bool) -> int:
    """Read all that STATE's snapshots hold, at the rate of statefs.toml, and name what is damaged.

    The daemon does the work, and goes on with it after Ctrl-C; without one this command does it.
    Exits with 20 when there is damage.
    """
    target = find_target(state, store)
    with api.open_target(target) as opened, shown_progress(as_json) as on_progress:
        try:
            found = opened.scrub(start=not is_question, on_progress=on_progress)
        except KeyboardInterrupt:
            click.echo(f"statefs: {ended_text(is_mounted=target.mount is not None)}", err=True)
            raise
    last = found["last"]
    if as_json:
        print_json(found)
    else:
        for problem in last["problems"] if last else ():
            print_line(problem_text(problem))
        print_line(last_text(found))
    return CorruptStore.exit_code if last and last["problems"] else 0


def ended_text(*, is_mounted: bool) -> str:
    """Return what becomes of a scrub that nobody waits for any more."""
    if is_mounted:
        return "the scrub goes on in the daemon: 'statefs scrub --status' tells what it finds"
    return "the scrub is given up: nothing of it is kept"


def last_text(found: Mapping[str, Any]) -> str:
    """Return on one line when the last scrub ended and what it found, and whether one runs."""
    now = "; one is running" if found["running"] else ""
    last = found["last"]
    if last is None:
        return f"no scrub has come to its end yet{now}"
    count = len(last["problems"])
    damage = f"{count} damaged" if count else "no damage"
    return f"the last scrub ended {last['ended']}: {read_text(last)}, found {damage}{now}"
