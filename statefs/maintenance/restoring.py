"""Restores, and what undoes them: a safety snapshot, then the rows, with no change in between.

* settle, write back, sync: beside the programs; most of what is owed to the disk is paid.
* held, from here on no request of the kernel is answered:

  * begin, sync, complete: the before-restore snapshot, durable;
  * plan, restore: one critical section, one transaction.

* refresh: the kernel asks anew for what it had cached.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from statefs.errors import FilesInUse, NoSuchSnapshot, UsageError
from statefs.ids import NOW
from statefs.maintenance.saving import make_durable, publish
from statefs.maintenance.steps import Steps
from statefs.snapshots import undoing
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.documents import Operation
from statefs.snapshots.reports import path_text
from statefs.snapshots.restore import restore
from statefs.snapshots.restore_plan import (
    CHANGED,
    Plan,
    Planner,
    Scope,
    parsed_paths,
    unquoted,
)
from statefs.snapshots.views import PastTree

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

WRITERS_NAMED_MAX: Final = 5
"""Programs named in a refusal; one is mostly enough to know what is meant."""


def bring_back(
    store: Store,
    snapshot: Snapshot,
    scope: Scope,
    operation: Operation,
    *,
    force: bool,
    dry_run: bool = False,
) -> Steps[dict[str, Any]]:
    """Make what a scope holds current again as a snapshot has it.

    Args:
        operation: what the safety snapshot says it was taken for.
        force: although programs have files open for writing there.
        dry_run: only tell what would change.

    Returns:
        `restored` (the snapshot's name), `saved` (that of the safety snapshot, null when nothing
        was done), `changes` (path and what becomes of it).

    Raises:
        UsageError: a path is not in the snapshot. FilesInUse: see `force`. OSError: the disk.
    """
    yield store.host.write_back
    plan = _plan(store, snapshot, scope)
    if dry_run or plan.is_empty:
        return _told(snapshot, None, plan)
    if not force:
        yield lambda: _refuse_writers(store, scope)
    store.reserve.require()
    yield store.sync
    with store.host.held():
        pending = store.catalog.begin("before-restore", "", {}, operation)
        saved = yield from make_durable(store, pending)
        plan = _plan(store, snapshot, scope)
        restored = store.freeing(partial(restore, store.volume.table, plan))
    yield lambda: store.host.refresh(restored)
    yield store.database.sync
    yield from publish(store)
    return _told(snapshot, saved, plan)


def _plan(store: Store, snapshot: Snapshot, scope: Scope) -> Plan:
    store.settle()
    return Planner(store.database, snapshot.epoch, NOW, scope).plan()


def _told(snapshot: Snapshot, saved: Snapshot | None, plan: Plan) -> dict[str, Any]:
    return {
        "restored": snapshot.name,
        "saved": None if saved is None else saved.name,
        "changes": [
            {"path": path_text(path) or ".", "what": what}
            for path, what in sorted(plan.paths.items())
        ],
    }


def _refuse_writers(store: Store, scope: Scope) -> None:
    """Raise FilesInUse where programs have files of a scope open for writing."""
    writers = store.host.writers()
    if not writers:
        return
    with store.reader() as reader:
        tree = PastTree(reader, NOW)
        found = {
            f"{writer} has {path_text(path)} open"
            for writer in writers
            for path in tree.paths(writer.ino)
            if scope.holds(path)
        }
    if found:
        named = sorted(found)[:WRITERS_NAMED_MAX]
        more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
        raise FilesInUse(
            f"programs write what is to be restored: {', '.join(named)}{more}; end them, or add"
            " --force to restore it under their hands"
        )


# What undoes it.


def undo(store: Store, *, force: bool, of: str | None = None) -> Steps[dict[str, Any]]:
    """Put back what a command (`statefs try`), or the last restore, command or undo changed.

    Args:
        of: the UUID of the snapshot that was taken after the command, whatever came since; None
            for the last operation.

    Raises:
        NoSuchSnapshot: there is nothing to undo, or what it needs has been deleted.
    """
    undone = undoing.last_operation(store.catalog.snapshots) if of is None else _by_uuid(store, of)
    if undone is None or undone.operation is None:
        raise NoSuchSnapshot("nothing to undo: no restore and no 'statefs try' was made here")
    before, scope = _undone(store, undone)
    operation = Operation(kind="undo", phase="before", other=undone.uuid)
    return (yield from bring_back(store, before, scope, operation, force=force))


def _undone(store: Store, snapshot: Snapshot) -> tuple[Snapshot, Scope]:
    """Return the snapshot that holds what an operation replaced, and what it changed."""
    operation = snapshot.operation
    assert operation is not None
    other = _by_uuid(store, operation.other)
    if operation.kind == "undo":
        return snapshot, _undone(store, other)[1]
    if operation.kind == "try" and operation.phase == "after":
        return other, _changed_between(store, other, snapshot, Scope())
    if operation.kind == "try":
        raise UsageError(
            f"'statefs try' has not come to its end: 'statefs restore' of {snapshot.name} goes"
            " back to before its command"
        )
    scope = Scope(parsed_paths(map(unquoted, operation.paths)))
    return snapshot, _changed_between(store, snapshot, other, scope)


def _by_uuid(store: Store, uuid: str | None) -> Snapshot:
    for snapshot in store.catalog.snapshots:
        if snapshot.uuid == uuid:
            return snapshot
    raise NoSuchSnapshot(
        "the snapshot that the last operation goes back to is deleted: choose one by"
        " 'statefs list' and restore it"
    )


def _changed_between(store: Store, one: Snapshot, other: Snapshot, scope: Scope) -> Scope:
    """Return what of a scope differs between two snapshots.

    A folder that is the same in both changed when a name in it came or went: what else it holds is
    not in the scope for that.
    """
    older, newer = sorted((one, other), key=lambda each: each.epoch)
    planner = Planner(store.database, older.epoch, newer.epoch, scope)
    paths = planner.plan().paths
    alone = frozenset(
        path for path, what in paths.items() if what == CHANGED and planner.is_same_folder(path)
    )
    return Scope(frozenset(paths) - alone, alone, may_be_missing=True)
