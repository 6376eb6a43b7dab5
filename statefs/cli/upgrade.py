"""`statefs upgrade`: have a running mount served by the version that is installed now."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import print_json, print_line
from statefs.cli.umount import mounted_place
from statefs.daemon.spawning import TRIAL_SECONDS
from statefs.errors import DaemonUnreachable, StatefsError
from statefs.layout import StoreLayout

if TYPE_CHECKING:
    from statefs.control.client import ControlClient

TAKEOVER_SECONDS: Final = 90.0
"""Longer than the supervisor waits for a worker to be ready, before it ends the mount."""
SETTLED_SECONDS: Final = TRIAL_SECONDS + 0.5
"""A worker that answers for so long stays: one that dies before is followed by the old version."""
_POLL_SECONDS: Final = 0.02


@click.command(
    cls=ExplainedCommand,
    short_help="Have a mount served by the version installed now.",
    examples=[
        "make setup && .venv/bin/statefs upgrade state",
        "statefs upgrade --store /data/app.store --json",
    ],
)
@state_argument
@store_option
@json_option
def command(state: Path | None, store: Path | None, as_json: bool) -> None:
    """Go over to the version of statefs that is installed now, without unmounting STATE.

    Programs that use the mount notice a pause, files and locks of theirs stay. An operation that
    runs is waited for. Refused, with nothing changed, where the new version cannot go on with the
    mount: then unmount and mount again.
    """
    from statefs.control.client import ControlClient

    mount = mounted_place(state, store)
    layout = StoreLayout(Path(mount.source))
    with ControlClient(layout) as client:
        before = client.call("status", {})
        seconds, after = _taken_over(client, layout, before, mount.mount_point)
    document = {
        "from": before["version"],
        "to": after["version"],
        "worker_pid": after["worker_pid"],
        "seconds": round(seconds, 3),
    }
    if as_json:
        print_json(document)
        return
    print_line(
        f"{mount.mount_point} is served by statefs {after['version']} (worker "
        f"{after['worker_pid']}), by {before['version']} before; programs waited at most "
        f"{seconds:.1f} s"
    )


def _taken_over(
    client: ControlClient, layout: StoreLayout, before: dict[str, Any], mount_point: Path
) -> tuple[float, dict[str, Any]]:
    """Ask for the upgrade and wait until the new worker has proved itself.

    Returns:
        How long nobody answered, and the status that the new one gives.

    Raises:
        StatefsError: it was refused, or has failed. DaemonUnreachable: nobody serves the mount any
            more.
    """
    from statefs.control.client import ControlClient

    with suppress(DaemonUnreachable):  # the old worker is gone; it answers only to refuse
        client.call("upgrade", {})
    since = time.monotonic()
    known, seconds, settled = [before["worker_pid"]], 0.0, since
    while True:
        try:
            with ControlClient(layout, connect_seconds=0.0) as successor:
                after: dict[str, Any] = successor.call("status", {})
            if after["worker_pid"] not in known:
                known.append(after["worker_pid"])
                seconds = seconds or time.monotonic() - since
                settled = time.monotonic() + SETTLED_SECONDS
            if len(known) > 1 and time.monotonic() >= settled:
                break
        except DaemonUnreachable:
            if time.monotonic() - since > TAKEOVER_SECONDS:
                raise
        time.sleep(_POLL_SECONDS)
    if after["restarts"] > before["restarts"] + 1:
        raise StatefsError(
            f"the version that is installed did not serve: a worker of statefs {after['version']} "
            f"serves {mount_point} now; see {layout.log}, install another version, and try again"
        )
    return seconds, after
