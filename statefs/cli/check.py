"""`statefs check`: open what a snapshot holds, and say whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import find_snapshot, json_option, snapshot_argument, store_option
from statefs.cli.output import print_json, print_line
from statefs.cli.progress import shown_progress
from statefs.errors import ContentDamaged
from statefs.units import count_text


@click.command(
    cls=ExplainedCommand,
    short_help="Open the databases of one snapshot, and say whether they are sound.",
    examples=[
        "statefs check state latest",
        "statefs check state clean && statefs restore state clean",
        "statefs check state latest --json | jq '.findings[] | select(.problem)'",
    ],
)
@snapshot_argument
@store_option
@json_option
def command(words: tuple[str, ...], store: Path | None, as_json: bool) -> int:
    """Open what one snapshot of STATE holds: databases of SQLite and PostgreSQL, JSON documents.

    Databases are opened in a clone that is thrown away; the snapshot stays as it is. The outcome
    becomes the snapshot's label "consistency". Exits with 21 when something is damaged. A state
    that is not mounted is mounted meanwhile. SNAPSHOT is what 'statefs show' takes.
    """
    target, name = find_snapshot(words, store, "check")
    with api.open_target(target) as opened, shown_progress(as_json) as on_progress:
        report = opened.check(name, on_progress=on_progress)
    if as_json:
        print_json(report)
    else:
        for finding in report["findings"]:
            if finding["problem"] or finding["unchecked"]:
                print_line(finding_text(finding))
            if finding["note"]:
                print_line(f"note: {finding['path']}: {finding['note']}")
        print_line(summary(report))
    return ContentDamaged.exit_code if report["outcome"] == "damaged" else 0


def finding_text(finding: Mapping[str, Any]) -> str:
    """Return one thing that is damaged, or that could not be looked at, on one line."""
    if finding["problem"]:
        return f"damaged: {finding['path']}: {finding['problem']}"
    return f"not checked: {finding['path']}: {finding['unchecked']}"


def summary(report: Mapping[str, Any]) -> str:
    """Return what was opened, and how the check ended, on one line."""
    words = {"postgres": "PostgreSQL", "sqlite": "SQLite", "json": "JSON"}
    counts = [f"{count} {words[kind]}" for kind, count in report["opened"].items()]
    if not counts:
        return f"{report['name']}: nothing in it that can be opened"
    findings = report["findings"]
    bad = {
        "damaged": sum(finding["problem"] is not None for finding in findings),
        "not checked": sum(finding["unchecked"] is not None for finding in findings),
    }
    total = count_text(sum(report["opened"].values()))
    told = [f"{count_text(count)} of {total} {word}" for word, count in bad.items() if count]
    return f"{report['name']}: {', '.join(told) or f'all {total} verified'} ({', '.join(counts)})"
