"""`statefs save`: take a snapshot."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, json_option, state_argument, store_option
from statefs.cli.output import plain, print_json, print_line, warn
from statefs.cli.progress import shown_progress
from statefs.errors import UsageError
from statefs.snapshots.reasons import REASONS
from statefs.target import find_target


def parse_labels(
    _ctx: click.Context, _parameter: click.Parameter, words: tuple[str, ...]
) -> dict[str, str]:
    """Return `K=V` words as a mapping.

    Raises:
        UsageError: a word has no `=`, no key, or a key stands twice.
    """
    labels: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"a label is KEY=VALUE, not '{word}' (for example --label name=v1)")
        if key in labels:
            raise UsageError(f"the label '{key}' is given twice; a key has one value")
        labels[key] = value
    return labels


@click.command(
    cls=ExplainedCommand,
    short_help="Take a snapshot and print its name.",
    examples=[
        "statefs save state",
        'statefs save state -m "before the import" --label name=clean',
        'ls "state/snapshots/$(statefs save state)"',
        "statefs save state --reason before-upgrade --json",
        "statefs save state --wait --json | jq -r .stateDigest",
    ],
)
@state_argument
@store_option
@click.option("-m", "--message", type=TEXT, default="", metavar="TEXT", help="What it is about.")
@click.option(
    "--label",
    "labels",
    type=TEXT,
    multiple=True,
    metavar="K=V",
    callback=parse_labels,
    help="A label, any number of them; name=NAME makes snapshots/NAME lead to the snapshot.",
)
@click.option(
    "--reason",
    type=click.Choice(REASONS),
    default="manual",
    show_default=True,
    metavar="REASON",
    help=f"Why it is taken: {', '.join(REASONS)}.",
)
@click.option("--wait", is_flag=True, help="Return when it is sealed: it has its stateDigest then.")
@json_option
def command(
    state: Path | None,
    store: Path | None,
    message: str,
    labels: dict[str, str],
    reason: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Take a snapshot of STATE/current and print its name.

    The snapshot is a read-only folder, STATE/snapshots/NAME, there at once and for ever.
    Works whether STATE is mounted or not.
    """
    with api.open_target(find_target(state, store)) as opened:
        saved = opened.save(message, reason, labels)
        if wait:
            with shown_progress(as_json) as on_progress:
                saved = opened.seal(saved.name, on_progress)
    for volume in saved.volume_manifests:
        for note in volume.notes:
            warn(f"volume {volume.name}: {note}")
    snapshot = plain(saved)
    if as_json:
        print_json(snapshot)
    else:
        print_line(snapshot["name"])
