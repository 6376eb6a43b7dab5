"""What is known of an open store at this moment: the document of `statefs status`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from statefs import __version__

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

NS: Final = 1_000_000_000


def status_of(store: Store) -> dict[str, Any]:
    """Return what is known of a store; a daemon adds what it knows of the mount."""
    table = store.volume.table
    newest = store.catalog.newest
    disk = os.statvfs(store.layout.root)
    unsealable = sum(map(bool, map(store.sealer.why_not, store.catalog.snapshots)))
    unsealed = sum(each.state_digest is None for each in store.catalog.snapshots)
    return {
        "mounted": False,
        "mount_point": None,
        "store": str(store.layout.root),
        "store_id": store.database.store_value("uuid"),
        "app_id": store.database.store_value("app_id"),
        "epoch": table.epoch,
        "snapshots": len(store.catalog.snapshots),
        "latest": newest.name if newest else None,
        "worker_pid": None,
        "supervisor_pid": None,
        "restarts": None,
        "since": None,
        "files": table.files,
        "bytes": table.bytes,
        "damaged": store.scrubber.damaged,
        "unsealable": unsealable,
        "durability": None,
        "mount_options": None,
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "version": __version__,
        "writable": why_not_writable(store) is None,
        "not_writable": why_not_writable(store),
        "last_save": newest.document().timestamp if newest else None,
        "last_save_age_seconds": _age_seconds(store, newest.created_ns) if newest else None,
        "disk_bytes": disk.f_blocks * disk.f_frsize,
        "free_bytes_per_hour": store.trend.bytes_per_hour,
        "unsynced_bytes": store.objects.unsynced_bytes() + store.database.unsynced_bytes,
        "seal_backlog": unsealed - unsealable,
        "damages_seen": len(store.damages),
    }


def _age_seconds(store: Store, moment_ns: int) -> float:
    return round(max(0, store.clock.now_ns() - moment_ns) / NS, 3)


def why_not_writable(store: Store) -> str | None:
    """Return why nothing can be written, in words; None where it can."""
    if store.is_read_only:
        return "the store lies on a read-only filesystem"
    if store.database.failure is not None:
        return f"the disk has refused what the store owes it: {store.database.failure}"
    if not store.reserve.is_held:
        return "the disk is full"
    return None
