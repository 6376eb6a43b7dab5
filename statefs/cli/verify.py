"""`statefs verify`: check a store against every rule of its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import print_json, print_line
from statefs.errors import CorruptStore
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="Check the store and name every damage.",
    examples=[
        "statefs verify state",
        "statefs verify --store /backup/app.store",
        "statefs verify state --json | jq '.problems[].rule'",
    ],
)
@state_argument
@store_option
@json_option
def command(state: Path | None, store: Path | None, as_json: bool) -> int:
    """Check STATE's store against every rule of its format and print each problem found.

    Changes nothing. Exits with 20 when a problem was found. Works while STATE is mounted.
    """
    target = find_target(state, store)
    with api.open_target(target) as opened:
        problems = opened.verify()
    if as_json:
        print_json({"store": str(target.store), "ok": not problems, "problems": problems})
    elif not problems:
        print_line(f"{target.store}: no problems found")
    else:
        for problem in problems:
            print_line(problem_text(problem))
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        click.echo(f"statefs: error: {target.store}: {count} found, see above", err=True)
    return CorruptStore.exit_code if problems else 0


def problem_text(problem: Mapping[str, Any]) -> str:
    """Return one problem on one line: the rule, the message, then what else is known."""
    known = ("rule", "message")
    head = ": ".join(str(problem[key]) for key in known if problem.get(key))
    rest = ", ".join(f"{key} {value}" for key, value in problem.items() if key not in known)
    return f"{head} ({rest})" if rest else head
