"""`statefs health`: whether a state is well, one line for each thing that is looked at."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import plain, print_json, print_line
from statefs.errors import Unhealthy
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="Say whether the state is well; made for monitoring.",
    examples=[
        "statefs health state",
        "statefs health state --json | jq '.checks[] | select(.ok | not)'",
        "statefs health state || mail -s 'look at state' root < /dev/null",
    ],
)
@state_argument
@store_option
@json_option
def command(state: Path | None, store: Path | None, as_json: bool) -> int:
    """Say whether STATE is well: one line for each check. Exits with 28 where one fails.

    What is still well is said by [health] of statefs.toml.
    """
    with api.open_target(find_target(state, store)) as opened:
        found = opened.health()
    is_well = all(check.ok for check in found)
    if as_json:
        from statefs.telemetry.health import HealthDocument

        print_json(plain(HealthDocument(ok=is_well, checks=found)))
    else:
        for check in found:
            print_line(f"{'ok  ' if check.ok else 'FAIL'}  {check.check:<10}  {check.what}")
    return 0 if is_well else Unhealthy.exit_code
