"""`statefs repair`: make a damaged store sound again, and tell every loss."""

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
from statefs.cli.verify import problem_text
from statefs.errors import CorruptStore
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="Make a damaged store sound again, and tell every loss.",
    examples=[
        "statefs repair state --dry-run",
        "statefs umount state && statefs repair state",
        "statefs repair state --read-data",
        "statefs repair --store /backup/app.store --json | jq '.losses[].path'",
    ],
)
@state_argument
@store_option
@click.option("--dry-run", is_flag=True, help="Change nothing; tell what would be lost.")
@click.option(
    "--read-data", is_flag=True, help="Also read all content, and treat what is damaged as lost."
)
@json_option
def command(
    state: Path | None, store: Path | None, dry_run: bool, read_data: bool, as_json: bool
) -> int:
    """Make a new database for STATE's store of whatever can still be read.

    STATE must not be mounted. Files that have lost their name, or a part of their content, lie in
    current/lost+found afterwards. The database that was replaced is kept in the store's backups/.
    Exits with 20 when something is lost.
    """
    target = find_target(state, store)
    with shown_progress(as_json) as told:
        report = api.repair(target, dry_run=dry_run, read_data=read_data, on_progress=told)
    is_lost = bool(report["losses"] or report["problems"])
    if as_json:
        print_json(report)
        return CorruptStore.exit_code if is_lost else 0
    for trouble in report["troubles"]:
        print_line(f"meta.db: {trouble}")
    for name, why in report["passed_over"].items():
        print_line(f"passed over: backups/{name}: {why}")
    for path in report["older"]:
        print_line(f"as the copy has it: {path}")
    for loss in report["losses"]:
        print_line(f"lost: {loss_text(loss)}")
    if report["more"]:
        print_line(f"lost: and {report['more']} more, not listed")
    for what, count in report["put_right"].items():
        print_line(f"put right: {what} ({count})")
    for problem in report["problems"]:
        print_line(f"left: {problem_text(problem)}")
    print_line(summary(report, dry_run))
    return CorruptStore.exit_code if is_lost else 0


def loss_text(loss: Mapping[str, Any]) -> str:
    """Return one loss on one line: what, of which path, from where, and where the rest lies."""
    places = [*loss.get("snapshots", ()), *(["current"] if loss.get("is_current") else [])]
    head = f"{loss['path']}: {loss['what']}" if "path" in loss else loss["what"]
    where = f", in {', '.join(places)}" if places else ""
    rest = f"; what is left: {loss['found']}" if "found" in loss else ""
    return f"{head}{where}{rest}"


def summary(report: Mapping[str, Any], dry_run: bool) -> str:
    """Return on one line what was done."""
    count = len(report["losses"]) + report["more"]
    losses = "nothing" if not count else "1 thing" if count == 1 else f"{count} things"
    made = f"{report['store']}: a database was made of {report['source']}"
    if dry_run:
        return f"{made} and thrown away (--dry-run); {losses} would be lost"
    return f"{made}; {losses} lost; the old one is {report['kept'] or 'gone'}"
