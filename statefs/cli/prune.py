"""`statefs prune`: delete what the retention policy does not keep, or tell what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import Column, print_json, print_line, print_table
from statefs.cli.progress import shown_progress
from statefs.target import find_target
from statefs.units import size_text

_COLUMNS = (
    Column("", style="bold"),
    Column("snapshot", style="cyan"),
    Column("frees", align_right=True, drop_rank=1),
    Column("why", may_shorten=True),
)


@click.command(
    cls=ExplainedCommand,
    short_help="Delete the snapshots that the retention policy does not keep.",
    examples=[
        "statefs prune state --dry-run",
        "statefs prune state",
        "statefs prune state --json | jq -r '.snapshots[] | select(.keep | not).name'",
    ],
)
@state_argument
@store_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done, and why.")
@json_option
def command(state: Path | None, store: Path | None, dry_run: bool, as_json: bool) -> None:
    """Delete the snapshots of STATE that the retention policy does not keep, and say why.

    The policy is the section [retention] of statefs.toml in the store. A mounted state prunes by
    itself after each save; this does it now. STATE/current is not touched.
    """
    with api.open_target(find_target(state, store)) as opened, shown_progress(as_json) as told:
        plan = opened.prune(dry_run=dry_run, on_progress=told)
    if as_json:
        print_json(plan)
        return
    if plan["snapshots"]:
        print_table(_COLUMNS, [_row(each) for each in plan["snapshots"]])
    for shortage in plan["shortages"]:
        print_line(f"short of room: {shortage}")
    print_line(_summary(plan))


def _row(decision: Mapping[str, Any]) -> list[str]:
    freed = decision["freedBytes"]
    return [
        "keep" if decision["keep"] else "remove",
        str(decision["name"]),
        "" if freed is None else size_text(freed),
        "; ".join(decision["reasons"]),
    ]


def _summary(plan: Mapping[str, Any]) -> str:
    removed = plan["removed"]
    count = "1 snapshot" if removed == 1 else f"{removed} snapshots"
    if not removed:
        return f"nothing to remove, {len(plan['snapshots'])} kept"
    freed = size_text(plan["freedBytes"])
    return f"removed {count}, {freed}" if plan["done"] else f"would remove {count}, {freed}"
