"""`statefs init`: make a store, without mounting it."""

from __future__ import annotations

from pathlib import Path

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import TEXT, state_argument, store_option
from statefs.cli.output import print_line, warn
from statefs.cli.prepare import (
    choose_store,
    link_store,
    make_store,
    mount_point_made,
    refuse_overlap,
)
from statefs.errors import UsageError
from statefs.target import Target, mount_of_store, require_state, store_exists


@click.command(
    cls=ExplainedCommand,
    short_help="Make a store for a state, without mounting it.",
    examples=[
        "statefs init state",
        "statefs init state --app-id com.example.shop",
        "statefs init /srv/app/state --store /data/app.store",
    ],
)
@state_argument
@store_option
@click.option("--app-id", type=TEXT, metavar="ID", help="The application whose state this is.")
def command(state: Path | None, store: Path | None, app_id: str | None) -> None:
    """Make the folder STATE and its store, STATE.store.

    'statefs mount' does the same where there is no store. With --store the store lies elsewhere
    and STATE.store becomes a link to it. Harmless where there is a store already.
    """
    mount_point = require_state(state)
    chosen = choose_store(mount_point, store)
    refuse_overlap(mount_point, chosen)
    is_made = False
    if not store_exists(chosen):
        with mount_point_made(mount_point):
            is_made = make_store(chosen, app_id)
    if not is_made:
        require_same_app(mount_point, chosen, app_id)
        print_line(f"{mount_point} has a store already: {chosen}")
        return
    print_line(f"made the store {chosen}")
    warning = link_store(mount_point, chosen)
    if warning:
        warn(warning)


def require_same_app(state: Path, store: Path, app_id: str | None) -> None:
    """Raise UsageError where --app-id asks for another application than the store's."""
    if app_id is None:
        return
    with api.open_target(Target(state, store, mount_of_store(store))) as opened:
        present = opened.status().get("app_id")
    if present != app_id:
        whose = f"belongs to the application '{present}'" if present else "has no application"
        raise UsageError(
            f"{store} {whose}, not '{app_id}': leave --app-id out, "
            "or name another store with --store DIR"
        )
