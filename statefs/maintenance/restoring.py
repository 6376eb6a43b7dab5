"""Restores, and what undoes them: a safety snapshot, then the rows, with no change in between.

* settle, write back, plan, sync: beside the programs; most of what is owed to the disk is paid, and
  who asked is told how far it is, and may give up.
* held, from here on no request of the kernel is answered:

  * begin, sync, complete: the before-restore snapshot, durable;
  * plan again if anything has changed since, restore: one critical section, one transaction.

* refresh: the kernel asks anew for what it had cached.

What was changed is noted beside the documents, so that undo needs the safety snapshot alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from statefs.content.checks import DamagedBytes
from statefs.errors import FilesInUse, NoSuchSnapshot, UsageError
from statefs.ids import NOW
from statefs.maintenance.progress import OnProgress, reporting
from statefs.maintenance.saving import make_durable, publish, tell_saved
from statefs.maintenance.steps import Steps
from statefs.snapshots import undoing
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.diff import compare
from statefs.snapshots.documents import AROUND, ChangedPaths, Operation
from statefs.snapshots.naming import CURRENT
from statefs.snapshots.reports import path_text, writers_text
from statefs.snapshots.restore import restore
from statefs.snapshots.restore_plan import (
    CHANGED,
    Plan,
    Planner,
    Scope,
    parsed_paths,
    quoted,
    unquoted,
)
from statefs.snapshots.views import PastTree
from statefs.telemetry.events import StateLoaded

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

SNAPSHOT_COMMITS: Final = 2
"""What taking a snapshot adds to the count of commits: its begin and its end."""
PATHS_SHOWN_MAX: Final = 3
"""Paths named in a message; the snapshot's document has all of them."""
PATH_SHOWN_CHARACTERS: Final = 100


def bring_back(
    store: Store,
    call: Call,
    snapshot: Snapshot,
    scope: Scope,
    operation: Operation,
    message: str,
    *,
    force: bool,
    dry_run: bool = False,
) -> Steps[dict[str, Any]]:
    """Make what a scope holds current again as a snapshot has it.

    Args:
        call: told how far it is while nothing has been changed, and may give up until then. What
            that process has open for writing itself is its own business.
        operation: what the safety snapshot says it was taken for.
        message: the same in words, for people.
        force: although programs have files open for writing there.
        dry_run: only tell what would change.

    Returns:
        `restored` (the snapshot's name), `saved` (that of the safety snapshot, null when nothing
        was done), `changes` (path and what becomes of it), `overridden` (see `_writers`): with
        `dry_run` those under whose hands it would be, and who have it refused without `force`.

    Raises:
        NoSuchPath: a path is not in the snapshot. FilesInUse: see `force`. OSError: the disk.
    """
    yield store.host.write_back
    store.settle()
    known = store.database.commits
    on_progress = reporting(call, "finding out what changed", "files")
    plan: Plan = yield lambda: _planned_beside(store, snapshot, scope, on_progress)
    if plan.is_empty:
        return _told(snapshot, None, plan, [])
    writers: list[dict[str, Any]] = yield lambda: _writers(store, call, scope)
    if dry_run:
        return _told(snapshot, None, plan, writers)
    if writers and not force:
        raise FilesInUse(_refusal(writers))
    store.reserve.require()
    yield store.sync
    began = time.monotonic()
    with (yield store.host.refreshing) as refresh:
        with store.host.held():
            store.reserve.lend()  # on a full disk this may be what gives room back
            store.settle()
            pending = store.catalog.begin("before-restore", message, {}, operation)
            saved = yield from make_durable(store, pending)
            planner = Planner(store.database, snapshot.epoch, NOW, scope)
            if store.database.commits != known + SNAPSHOT_COMMITS:
                plan = planner.plan()
            changed = _changed(planner, plan)
            restored = store.freeing(partial(restore, store.volume.table, plan))
            is_as_then = scope.paths is None or _has_the_digest(store, snapshot)
        yield lambda: refresh(restored)  # before all that may fail: it would never look
    if is_as_then:
        store.catalog.note_restored(snapshot)
    for ino in restored.lost:
        size = store.volume.table.node(ino).size
        yield partial(store.tell_damage, DamagedBytes(ino, NOW, 0, size))
    yield lambda: store.write_changed(saved, _noted(changed))
    yield store.database.sync
    yield from publish(store)
    seconds = time.monotonic() - began
    tell_saved(store, saved, seconds)
    store.events.tell(
        StateLoaded, how=operation.kind, snapshot=snapshot.name, changes=len(plan.paths),
        seconds=seconds,
    )  # fmt: skip
    return _told(snapshot, saved, plan, writers)


def restore_message(name: str, paths: Sequence[str]) -> str:
    """Return what is said of the snapshot that is taken before a restore.

    Args:
        name: of the snapshot that is restored.
        paths: what the restore is limited to; none for everything.
    """
    shown = [_shortened(path) for path in paths[:PATHS_SHOWN_MAX]]
    more = len(paths) - len(shown)
    named = ", ".join(shown) + (f" and {more} more" if more else "")
    return f"before restore of {name}" + (f": {named}" if named else "")


def _shortened(path: str) -> str:
    half = PATH_SHOWN_CHARACTERS // 2
    return path if len(path) <= PATH_SHOWN_CHARACTERS else f"{path[:half]}...{path[-half:]}"


def _planned_beside(
    store: Store, snapshot: Snapshot, scope: Scope, on_progress: OnProgress
) -> Plan:
    """Return what would be done as of now, while programs go on."""
    with store.reader() as reader:
        return Planner(reader, snapshot.epoch, NOW, scope).plan(on_progress)


def _has_the_digest(store: Store, snapshot: Snapshot) -> bool:
    """Return whether current/ differs from a snapshot in nothing that a state digest contains."""
    differences = compare(store.database, snapshot.epoch, NOW)
    return all(pair.kind == "metadata" and pair.changed == ("mtime",) for pair in differences)


def _told(
    snapshot: Snapshot, saved: Snapshot | None, plan: Plan, writers: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "restored": snapshot.name,
        "saved": None if saved is None else saved.name,
        "changes": [
            {"path": path_text(path) or ".", "what": what}
            for path, what in sorted(plan.paths.items())
        ],
        "overridden": writers,
    }


def _writers(store: Store, call: Call, scope: Scope) -> list[dict[str, Any]]:
    """Return which programs have files of a scope open for writing: `name`, `pid` and `path`."""
    writers = [each for each in store.host.writers() if each.pid != call.pid]
    if not writers:
        return []
    with store.reader() as reader:
        tree = PastTree(reader, NOW)
        return [
            {"name": writer.name, "pid": writer.pid, "path": path_text(path)}
            for writer in writers
            for path in sorted(tree.paths(writer.ino))
            if scope.holds(path)
        ]


def _refusal(writers: list[dict[str, Any]]) -> str:
    return (
        f"programs write what is to be restored: {writers_text(writers)}; end them, or add --force"
        " to restore it under their hands"
    )


# What undoes it.


def undo(
    store: Store, call: Call, *, force: bool, of: str | None = None, dry_run: bool = False
) -> Steps[dict[str, Any]]:
    """Put back what a command (`statefs try`), or the last restore, command or undo changed.

    Args:
        of: a snapshot that was taken for an operation, by its UUID or as `Catalog.choose` takes it:
            what that one changed is put back, whatever came since; None for the last operation.
        call, force, dry_run: as of `bring_back`.

    Returns:
        As `bring_back`; and `exact`, whether just that is put back. Where it is not known any more,
        all that changed from then until `until` is, the next snapshot or current.

    Raises:
        NoSuchSnapshot: there is nothing to undo, or what it goes back to has been deleted.
        UsageError: `of` was taken for nothing that can be undone.
    """
    undone = _last(store) if of is None else _chosen(store, of)
    before, scope, until = yield from _undone(store, undone)
    assert undone.operation is not None
    message = f"before undo of {undoing.NAMED[undone.operation.kind]} ({undone.name})"
    operation = Operation(kind="undo", phase="before", other=undone.uuid)
    told = yield from bring_back(
        store, call, before, scope, operation, message, force=force, dry_run=dry_run
    )
    return told | {"exact": until is None, "until": until}


def _last(store: Store) -> Snapshot:
    """Return the snapshot of the last operation; an older one does not stand in for it."""
    last, older = store.catalog.last_operation(), undoing.last_operation(store.catalog.snapshots)
    found = older if last is None else store.catalog.by_uuid(last.snapshot_id)
    if found is not None:  # no `last` is noted by versions before this one
        return found
    if last is None:
        raise NoSuchSnapshot("nothing to undo: no restore, import or 'statefs try' was made here")
    raise NoSuchSnapshot(undoing.refusal(last, older))


def _chosen(store: Store, of: str) -> Snapshot:
    chosen = store.catalog.by_uuid(of) or store.catalog.choose(of)
    if chosen.operation is None:
        raise UsageError(
            f"{chosen.name} was taken for no restore, import or 'statefs try': 'statefs restore'"
            " makes it current again"
        )
    return chosen


def _undone(store: Store, snapshot: Snapshot) -> Steps[tuple[Snapshot, Scope, str | None]]:
    """Return what holds what an operation replaced, what it changed, and None.

    Where it is not known what it changed: what changed until a later moment, and that one's name.
    """
    operation = snapshot.operation
    assert operation is not None
    if operation.kind in AROUND:
        before, after = _around(store, snapshot, operation)
        return before, _changed_between(store, before, after, Scope()), None
    noted: ChangedPaths | None = yield lambda: store.read_changed(snapshot)
    if noted is not None:
        return snapshot, _scope_of(noted), None
    # Noted by no version before this one, and not where the power failed at that moment.
    scope = Scope(parsed_paths(map(unquoted, operation.paths)), may_be_missing=True)
    other = store.catalog.by_uuid(operation.other)
    if other is not None and operation.kind == "restore":
        return snapshot, _changed_between(store, snapshot, other, scope), None
    if other is not None:
        _, scope, until = yield from _undone(store, other)
        return snapshot, scope, until
    following = [each for each in store.catalog.snapshots if each.epoch > snapshot.epoch]
    until = following[0].name if following else CURRENT
    store.settle()
    newer = following[0].epoch if following else NOW
    planner = Planner(store.database, snapshot.epoch, newer, scope)
    return snapshot, _changed(planner, planner.plan()), until


def _around(store: Store, one: Snapshot, operation: Operation) -> tuple[Snapshot, Snapshot]:
    """Return the snapshots before and after a command or an import, of one of them."""
    if operation.other is None:
        raise UsageError(
            f"'statefs try' has not come to its end: 'statefs restore' of {one.name} goes back to"
            " before its command"
        )
    other = store.catalog.by_uuid(operation.other)
    if other is None:
        raise NoSuchSnapshot(
            f"one of the two snapshots around {undoing.NAMED[operation.kind]} is deleted: choose"
            " one by 'statefs list' and restore it"
        )
    return (other, one) if operation.phase == "after" else (one, other)


def _changed_between(store: Store, one: Snapshot, other: Snapshot, scope: Scope) -> Scope:
    """Return what of a scope differs between two snapshots."""
    older, newer = sorted((one, other), key=lambda each: each.epoch)
    planner = Planner(store.database, older.epoch, newer.epoch, scope)
    return _changed(planner, planner.plan())


def _changed(planner: Planner, plan: Plan) -> Scope:
    """Return what a plan changes; its changes are not made yet.

    A folder that stays the same one changed when a name in it came or went: what else it holds is
    not in the scope for that.
    """
    alone = frozenset(
        path
        for path, what in plan.paths.items()
        if what == CHANGED and planner.is_same_folder(path)
    )
    return Scope(frozenset(plan.paths) - alone, alone, may_be_missing=True)


def _noted(changed: Scope) -> ChangedPaths:
    paths, folders = (sorted(map(quoted, each or ())) for each in (changed.paths, changed.alone))
    return ChangedPaths(paths=paths, folders=folders)


def _scope_of(noted: ChangedPaths) -> Scope:
    paths, folders = (
        frozenset(unquoted(each).encode("utf-8", "surrogateescape") for each in words)
        for words in (noted.paths, noted.folders)
    )
    return Scope(paths, folders, may_be_missing=True)
