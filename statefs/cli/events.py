"""`statefs events`: what has happened to a state, and what happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import state_argument, store_option
from statefs.cli.output import print_line
from statefs.doors import Document, OnlineDoor, connected_client
from statefs.errors import DaemonUnreachable, NotMounted, typed
from statefs.target import Target, find_target
from statefs.units import local_text


@click.command(
    cls=ExplainedCommand,
    short_help="Show what has happened to the state, and what happens.",
    examples=[
        "statefs events state",
        "statefs events state --follow",
        "statefs events state --follow --json | jq 'select(.event == \"disk:low\")'",
    ],
)
@state_argument
@store_option
@click.option("--follow", is_flag=True, help="Go on until the state is unmounted.")
@click.option(
    "--after",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    help="Only events with greater numbers; with --follow the default is the newest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each event.")
def command(
    state: Path | None, store: Path | None, follow: bool, after: int | None, as_json: bool
) -> None:
    """Show the newest events of STATE, up to a thousand, or with --follow what happens from now on.

    What follows goes on when one worker takes over from another, and ends with the mount.
    """
    target = find_target(state, store)
    if follow:
        found = followed(target, after)
    else:
        with api.open_target(target) as opened:
            found = iter(opened.events(after or 0))
    for event in found:
        print_event(event, as_json)


def followed(target: Target, after: int | None) -> Iterator[Document]:
    """Yield events as they happen, until the mount has ended.

    Args:
        after: the number of the last one that is known; None for the newest there is.

    Raises:
        NotMounted: nothing can happen. DaemonUnreachable: there is a daemon and it does not answer.
    """
    client = connected_client(target)
    if client is None:
        mount = typed("statefs", "mount", target.state or "STATE")
        raise NotMounted(
            f"{target.state or target.store} is not mounted, so nothing can be followed: "
            f"'{mount}' first"
        )
    while client is not None:
        try:
            with api.State(target, OnlineDoor(client)) as opened:
                while True:
                    if after is None:
                        after = max((each["number"] for each in opened.events()), default=0)
                    for event in opened.events(after, wait=True):
                        after = event["number"]
                        yield event
        except DaemonUnreachable:
            client = connected_client(target)  # another worker takes over, or the mount has ended
    with api.open_target(target) as opened:
        yield from opened.events(after or 0)


def print_event(event: Document, as_json: bool) -> None:
    """Print one event, at once."""
    if as_json:
        click.echo(json.dumps(event))
    else:
        print_line(f"{local_text(event['time'])}  {event['event']:<20}  {event_text(event)}")


def event_text(event: Document) -> str:
    """Return an event in words; as it is where another version has kept it."""
    import msgspec

    from statefs.telemetry.events import AnyEvent
    from statefs.telemetry.logged import sentence

    said: dict[str, Any] = {key: value for key, value in event.items() if key != "number"}
    try:
        return sentence(msgspec.convert(said, AnyEvent))
    except msgspec.ValidationError:
        return json.dumps(said)
