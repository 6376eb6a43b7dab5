"""Making, listing and deleting clones: critical sections and waits for the disk."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.clones import Clone
from statefs.snapshots.naming import LATEST, iso_time
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

SEPARATOR: Final = "@"
"""In a name given to mkdir(2): what follows says which snapshot is meant."""


def clone(store: Store, snapshot: Snapshot, name: bytes, path: str = "") -> Steps[dict[str, Any]]:
    """Make a writable copy of a snapshot, or of a folder of it, in clones/.

    Args:
        path: of the folder, relative to the snapshot.

    Raises:
        UsageError: there is no such folder, or it cannot be called so. CloneExists.
        OSError: the disk refused.
    """
    store.reserve.require()
    tree = PastTree(store.database, snapshot.epoch)
    root = store.clones.make(name, snapshot.name, tree, path.encode())
    yield store.database.sync
    yield store.host.list_changed
    return document_of(Clone(name, snapshot.name, root.btime_ns))


def clone_by_name(store: Store, name: bytes) -> Steps[dict[str, Any]]:
    """Make the clone that mkdir(2) asks for: of the newest snapshot, or NAME@SNAPSHOT.

    Raises:
        NoSuchSnapshot: or none of that name. As `clone`.
    """
    selector = os.fsdecode(name).partition(SEPARATOR)[2]
    return (yield from clone(store, store.catalog.choose(selector or LATEST), name))


def delete(store: Store, name: bytes) -> Steps[None]:
    """Delete a clone: gone at once, its space given back later. Raises NoSuchClone, OSError."""
    store.freeing(partial(store.clones.hide, name))
    yield store.database.sync
    yield store.host.list_changed
    store.host.space_changed()


def document_of(clone: Clone) -> dict[str, Any]:
    """Return a clone as plain values."""
    return {
        "name": path_text(clone.name),
        "snapshot": clone.snapshot,
        "created": iso_time(clone.created_ns),
    }
