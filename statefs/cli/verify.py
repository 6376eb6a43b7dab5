"""`statefs verify`: check a store against every rule of its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, json_option, state_argument, store_option
from statefs.cli.output import end_of_check, print_json, print_line
from statefs.cli.progress import shown_progress
from statefs.errors import CorruptStore
from statefs.target import find_target
from statefs.units import count_text, size_text

_SAID: Final = ("rule", "message", "path", "snapshots", "ranges")
"""Of a problem: the message says these last three, too."""


@click.command(
    cls=ExplainedCommand,
    short_help="Check the store and name every damage.",
    examples=[
        "statefs verify state",
        "statefs verify --store /backup/app.store",
        "statefs verify state --read-data",
        "statefs verify state latest --read-data",
        "statefs verify state --json | jq '.problems[].rule'",
    ],
)
@state_argument
@click.argument("snapshot", required=False, type=TEXT, metavar="[SNAPSHOT]")
@store_option
@click.option(
    "--read-data",
    is_flag=True,
    help="Also read all that sealed snapshots (or SNAPSHOT alone) hold, and compare.",
)
@json_option
def command(
    state: Path | None, snapshot: str | None, store: Path | None, read_data: bool, as_json: bool
) -> int:
    """Check STATE's store against every rule of its format and print each problem found.

    With --read-data every byte of the snapshots is compared with its digest, too, and what is
    damaged is named: the file, the bytes, the snapshots. Changes nothing. Exits with 20 when a
    problem was found. Works while STATE is mounted.
    """
    target = find_target(state, store)
    with api.open_target(target) as opened, shown_progress(as_json) as on_progress:
        found = opened.verify(snapshot, read_data, on_progress)
    problems, read = found["problems"], found["read"]
    if as_json:
        print_json({"store": str(target.store), "ok": not problems, **found})
        return CorruptStore.exit_code if problems else 0
    for problem in problems:
        print_line(problem_text(problem))
    if read is not None:
        print_line(read_text(read))
    return end_of_check(target.store, len(problems), CorruptStore.exit_code)


def read_text(read: Mapping[str, Any]) -> str:
    """Return on one line what was read."""
    text = f"read {size_text(read['bytes'])} of {count_text(read['files'])} files"
    unsealed = read["unsealed"]
    if unsealed:
        text += f"; not sealed yet, and so not compared: {', '.join(unsealed)}"
    return text


def problem_text(problem: Mapping[str, Any]) -> str:
    """Return one problem on one line: the rule, the message, then what else is known."""
    head = ": ".join(str(problem[key]) for key in ("rule", "message") if problem.get(key))
    rest = ", ".join(f"{key} {value}" for key, value in problem.items() if key not in _SAID)
    return f"{head} ({rest})" if rest else head
