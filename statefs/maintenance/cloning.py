"""Making, listing and deleting clones: critical sections and waits for the disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from statefs.clock import iso_time
from statefs.ids import CLONES_ROOT, Epoch
from statefs.maintenance.progress import OnProgress
from statefs.maintenance.steps import Pace, Steps, give_way
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.clones import THROW_AWAY, Clone, Origin
from statefs.snapshots.copies import Listed, listed
from statefs.snapshots.naming import LATEST
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

INODES_PER_STEP: Final = 2000
"""Inodes copied at a time where that takes some milliseconds, fewer on a slow machine."""
SEPARATOR: Final = "@"
"""In a name given to mkdir(2): what follows says which snapshot is meant."""


def clone(
    store: Store,
    snapshot: Snapshot,
    name: bytes,
    path: str = "",
    on_progress: OnProgress | None = None,
) -> Steps[dict[str, Any]]:
    """Make a writable copy of a snapshot, or of a folder of it, in clones/.

    Args:
        path: of the folder, relative to the snapshot.
        on_progress: told how many files and folders are copied; may raise to give up.

    Raises:
        NoSuchPath: there is no such folder. UsageError: it cannot be called so. CloneExists.
        OSError: the disk refused.
    """
    store.reserve.require()
    clones, epoch = store.clones, snapshot.epoch
    top = clones.top(name, PastTree(store.database, epoch), path.encode())
    what: Listed = yield partial(_listed, store, top, epoch)
    pace = Pace(INODES_PER_STEP)
    origin = Origin(snapshot.name, epoch, path.strip("/").encode())
    making = clones.make(name, origin, what, lambda: pace.rows)
    done, total = 0, len(what.folders) + len(what.files)
    try:
        with closing(making):
            while _goes_on(making, pace):
                done = min(total, done + pace.rows)
                if on_progress is not None:
                    on_progress(done, total)
                yield give_way
    except BaseException:
        store.host.space_changed()
        raise
    yield store.database.sync
    yield store.host.list_changed
    made = store.volume.names.lookup(CLONES_ROOT, name)
    return document_of(Clone(name, origin.snapshot, origin.path, made.btime_ns))


def _goes_on(making: Generator[None, None, None], pace: Pace) -> bool:
    """Do a step; return whether there is another."""
    with pace.step():
        return next(making, making) is None


def _listed(store: Store, top: int, epoch: Epoch) -> Listed:
    with store.reader() as reader:
        return listed(reader, top, epoch)


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


@contextmanager
def throw_away(store: Store) -> Iterator[bytes]:
    """Give the name for a clone that is deleted behind the `with` block, however that ends."""
    delete_left_over(store)
    name = THROW_AWAY + uuid.uuid4().hex[:12].encode()
    store.clones.in_use.add(name)
    try:
        yield name
    finally:
        store.clones.in_use.discard(name)
        delete_left_over(store)


def delete_left_over(store: Store) -> None:
    """Delete clones of checks that have ended, were given up or killed; a critical section."""
    names = store.clones.left_over()
    for name in names:
        store.freeing(partial(store.clones.hide, name))
    if names:
        store.host.list_changed()
        store.host.space_changed()


def document_of(clone: Clone) -> dict[str, Any]:
    """Return a clone as plain values."""
    return {
        "name": path_text(clone.name),
        "snapshot": clone.snapshot,
        "path": path_text(clone.path),
        "created": iso_time(clone.created_ns),
    }
