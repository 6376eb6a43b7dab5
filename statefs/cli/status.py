"""`statefs status`: what a state, its store and its daemon are doing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from statefs import api
from statefs.cli.explained import ExplainedCommand
from statefs.cli.options import json_option, state_argument, store_option
from statefs.cli.output import print_facts, print_json
from statefs.errors import typed
from statefs.target import Target, find_target
from statefs.units import count_text, local_text, since_text, size_text


@click.command(
    cls=ExplainedCommand,
    short_help="Show what the state, its store and its daemon are doing.",
    examples=[
        "statefs status state",
        "statefs status state --json | jq .mounted",
    ],
)
@state_argument
@store_option
@json_option
def command(state: Path | None, store: Path | None, as_json: bool) -> None:
    """Show whether STATE is mounted, since when, how full it is and who serves it."""
    target = find_target(state, store)
    with api.open_target(target) as opened:
        status = opened.status()
    # Only this side sees a mount whose daemon is gone: the store itself was opened without one.
    status["stale"] = target.mount is not None and not status["mounted"]
    if as_json:
        print_json(status)
    else:
        print_status(status, target, time.time())


def mounted_text(status: Mapping[str, Any], target: Target) -> str:
    """Return the answer to "is it mounted?", with what to do about a stale mount."""
    if status["stale"] and target.mount is not None:
        point = target.mount.mount_point
        repair = typed("statefs", "mount", "--repair", point)
        return f"stale: its daemon is gone; '{repair}' mounts it again"
    if not status["mounted"]:
        return "no"
    return str(status["mount_point"] or target.state or "yes")


def supervisor_text(status: Mapping[str, Any]) -> str:
    """Return who starts another worker when one dies; empty where nothing is mounted."""
    from statefs.telemetry.health import ORPHANED

    if not status["mounted"]:
        return ""
    pid = status["supervisor_pid"]
    return f"pid {pid}" if pid else f"gone: {ORPHANED}"


def latest_text(status: Mapping[str, Any], now_seconds: float) -> str:
    """Return the newest snapshot and how old it is; empty where there is none."""
    if status["latest"] is None:
        return ""
    return f"{status['latest']} ({since_text(status['last_save'], now_seconds)})"


def unsealed_text(count: int) -> str:
    """Return how many snapshots wait for their digests; empty where none does."""
    if not count:
        return ""
    return "1 snapshot waits" if count == 1 else f"{count_text(count)} snapshots wait"


def unsealable_text(count: int) -> str:
    """Return how many snapshots hold what cannot be read; empty where none does."""
    if not count:
        return ""
    snapshots = "1 snapshot" if count == 1 else f"{count_text(count)} snapshots"
    return f"{snapshots}, as what they hold cannot be read: see 'statefs list'"


def print_status(status: Mapping[str, Any], target: Target, now_seconds: float) -> None:
    """Print a status document for people."""
    from statefs.telemetry.health import damage_text, disk_text, is_damaged

    since = status["since"]
    since_facts = ""
    if since:
        since_facts = f"{local_text(since, with_zone=True)} ({since_text(since, now_seconds)})"
    print_facts(
        [
            ("Mounted", mounted_text(status, target)),
            ("Since", since_facts),
            ("Supervisor", supervisor_text(status)),
            ("Worker", f"pid {status['worker_pid']}" if status["worker_pid"] else ""),
            ("Restarts", count_text(status["restarts"]) if status["restarts"] else ""),
            ("Durability", str(status["durability"] or "")),
            ("Options", str(status["mount_options"] or "")),
            ("Store", str(status["store"])),
            ("Application", str(status["app_id"] or "")),
            ("Files", count_text(status["files"])),
            ("Size", size_text(status["bytes"])),
            ("Unsynced", size_text(status["unsynced_bytes"]) if status["unsynced_bytes"] else ""),
            ("Disk", disk_text(status)),
            ("Writable", "" if status["writable"] else f"no: {status['not_writable']}"),
            ("Damage", damage_text(status) if is_damaged(status) else ""),
            ("Snapshots", count_text(status["snapshots"])),
            ("Latest", latest_text(status, now_seconds)),
            ("Unsealed", unsealed_text(status["seal_backlog"])),
            ("Unsealable", unsealable_text(status["unsealable"])),
            ("Epoch", str(status["epoch"])),
            ("Version", str(status["version"] or "")),
        ]
    )
