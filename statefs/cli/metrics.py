"""`statefs metrics`: what is counted and known of a state, for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import state_argument, store_option
from statefs.target import find_target


@click.command(
    cls=ExplainedCommand,
    short_help="Print what is counted, in the text format of Prometheus.",
    examples=[
        "statefs metrics state",
        "statefs metrics state | grep statefs_request_errors_total",
    ],
)
@state_argument
@store_option
def command(state: Path | None, store: Path | None) -> None:
    """Print what is counted and known of STATE, in the text format of Prometheus.

    Of a state that is not mounted there are no requests to count. The names are in
    docs/operations.md.
    """
    with api.open_target(find_target(state, store)) as opened:
        click.echo(opened.metrics(), nl=False)
