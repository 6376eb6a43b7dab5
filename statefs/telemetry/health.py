"""Whether a state is well: one check for each thing that can be wrong. Pure.

What is looked at is the document of `statefs status`, what is still well is said by [health] of
statefs.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from statefs.config import Health
from statefs.units import count_text, duration_text, size_text

HOUR_SECONDS = 3600.0
ORPHANED = "its supervisor is gone, and the mount ends with its worker: unmount and mount again"
"""What is said of a mount that nobody would serve any more after its worker."""
DISK = "disk"
"""The check of the disk's room; it has an event of its own."""

Status = Mapping[str, Any]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `statefs health`.

    Args:
        check: its name.
        ok: whether that is well.
        what: how it is, and why that is not well, in words.
    """

    check: str
    ok: bool
    what: str


class HealthDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `statefs health --json` prints.

    Args:
        ok: whether all is well.
        checks: everything that was looked at, always in the same order.
    """

    ok: bool
    checks: list[Check]


def checks(status: Status, limits: Health) -> list[Check]:
    """Return every check, always in the same order.

    Args:
        status: of a state, as `statefs status --json` has it.
        limits: what is still well; 0 sets no limit.
    """
    return [
        _mounted(status),
        _writable(status),
        _last_save(status, limits.max_save_age_seconds),
        Check(check="snapshots", ok=True, what=count_text(status["snapshots"])),
        _disk(status, limits),
        _unsynced(status, limits.max_unsynced_bytes),
        _seals(status, limits.max_seal_backlog),
        _damage(status),
        _restarts(status, limits.max_restarts),
    ]


def _mounted(status: Status) -> Check:
    if status.get("stale"):
        what = "stale: its daemon is gone; 'statefs mount --repair' mounts it again"
        return Check(check="mounted", ok=False, what=what)
    if status.get("worker_pid") and not status.get("supervisor_pid"):
        return Check(check="mounted", ok=False, what=ORPHANED)
    what = str(status["mount_point"] or "yes") if status["mounted"] else "no"
    return Check(check="mounted", ok=bool(status["mounted"]), what=what)


def _writable(status: Status) -> Check:
    is_meant = "ro" in (status["mount_options"] or "").split(",")
    what = "yes" if status["writable"] else f"no: {status['not_writable']}"
    return Check(check="writable", ok=status["writable"] or is_meant, what=what)


def _last_save(status: Status, limit_seconds: float) -> Check:
    age_seconds = status["last_save_age_seconds"]
    if age_seconds is None:
        return Check(check="last save", ok=not limit_seconds, what="never")
    is_old = 0 < limit_seconds < age_seconds
    what = f"{duration_text(age_seconds)} ago"
    if is_old:
        what += f", max_save_age is {duration_text(limit_seconds)}"
    return Check(check="last save", ok=not is_old, what=what)


def _full_in_seconds(status: Status) -> float | None:
    """Return when the disk will be full if it goes on so; None where it does not fill."""
    per_hour = status["free_bytes_per_hour"]
    if per_hour is None or per_hour >= 0:
        return None
    return float(status["free_bytes"] / -per_hour * HOUR_SECONDS)


def disk_text(status: Status) -> str:
    """Return in words how much room the disk of the store has, and how that changes."""
    per_hour, left_seconds = status["free_bytes_per_hour"], _full_in_seconds(status)
    what = f"{size_text(status['free_bytes'])} of {size_text(status['disk_bytes'])} free"
    if left_seconds is not None:
        what += f", {size_text(-per_hour)} less each hour: full in {duration_text(left_seconds)}"
    elif per_hour is not None:
        what += ", not getting less"
    return what


def _disk(status: Status, limits: Health) -> Check:
    free, left_seconds = status["free_bytes"], _full_in_seconds(status)
    what = disk_text(status)
    if free < limits.min_free_bytes:
        what += f"; min_free is {size_text(limits.min_free_bytes)}"
        return Check(check=DISK, ok=False, what=what)
    if left_seconds is not None and left_seconds < limits.full_within_seconds:
        what += f"; full_within is {duration_text(limits.full_within_seconds)}"
        return Check(check=DISK, ok=False, what=what)
    return Check(check=DISK, ok=True, what=what)


def _unsynced(status: Status, limit_bytes: int) -> Check:
    unsynced = status["unsynced_bytes"]
    is_much = 0 < limit_bytes < unsynced
    what = size_text(unsynced)
    if is_much:
        what += f", max_unsynced is {size_text(limit_bytes)}"
    return Check(check="unsynced", ok=not is_much, what=what)


def _seals(status: Status, limit: int) -> Check:
    backlog, unsealable = status["seal_backlog"], status["unsealable"]
    is_long = 0 < limit < backlog
    what = f"{count_text(backlog)} to be sealed"
    if is_long:
        what += f", max_seal_backlog is {count_text(limit)}"
    if unsealable:
        what += f"; {count_text(unsealable)} cannot be sealed: see 'statefs list'"
    return Check(check="seals", ok=not is_long and not unsealable, what=what)


def damage_text(status: Status) -> str:
    """Return in words what damage is known."""
    scrubbed, seen = status["damaged"], status["damages_seen"]
    what = "never scrubbed" if scrubbed is None else f"{count_text(scrubbed)} found by the scrub"
    if seen:
        what += f", {count_text(seen)} met: 'statefs verify --read-data' names all damage"
    return what


def is_damaged(status: Status) -> bool:
    """Whether any damage is known."""
    return bool(status["damaged"] or status["damages_seen"])


def _damage(status: Status) -> Check:
    return Check(check="damage", ok=not is_damaged(status), what=damage_text(status))


def _restarts(status: Status, limit: int) -> Check:
    restarts = status["restarts"] or 0
    is_many = 0 < limit < restarts
    what = count_text(restarts)
    if is_many:
        what += f", max_restarts is {count_text(limit)}: the log says why workers die"
    return Check(check="restarts", ok=not is_many, what=what)
