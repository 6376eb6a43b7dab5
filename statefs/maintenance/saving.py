"""Taking and deleting snapshots: the order of critical sections and waits for the disk.

A save ends the epoch in one critical section (`Catalog.begin`), waits for the disk after it, and
only then shows the snapshot; a crash before that drops it (maintenance/recovery.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from statefs.errors import NoSuchSnapshot, PosixError, SnapshotPinned
from statefs.maintenance.applications import at_rest, noted
from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.documents import AROUND, Operation, VolumeManifest
from statefs.telemetry.events import SaveError, StateSaved

if TYPE_CHECKING:
    from statefs.maintenance.store import Store


def save(
    store: Store,
    reason: str,
    message: str,
    labels: dict[str, str],
    operation: Operation | None = None,
) -> Steps[Snapshot]:
    """Take a snapshot of everything that was written before the call.

    Args:
        operation: what it is taken for, if `statefs undo` is to know.

    Raises:
        UsageError, SnapshotExists: see `Catalog.check_request`. InvalidConfig,
            HookFailed: see `at_rest`. OSError: the disk refused.
    """
    store.catalog.check_request(reason, message, labels)
    began = time.monotonic()
    try:
        store.reserve.require()
        snapshot, problems = yield from at_rest(
            store,
            reason,
            lambda volumes: _end_epoch(store, reason, message, labels, volumes, operation),
        )
    except Exception as error:
        store.events.tell(SaveError, reason=reason, error=str(error))
        raise
    tell_saved(store, snapshot, time.monotonic() - began)
    if problems:
        snapshot = yield from amend(store, snapshot, volumes=noted(snapshot.volumes, problems))
    before = _begun(store, operation)
    if operation is None or before is None:
        yield from publish(store)
    else:
        begun = before.operation or Operation(kind=operation.kind, phase="before")
        linked = msgspec.structs.replace(begun, other=snapshot.uuid)
        yield from amend(store, before, operation=linked)
    return snapshot


def tell_saved(store: Store, snapshot: Snapshot, seconds: float) -> None:
    """Tell that a snapshot was taken."""
    store.events.tell(
        StateSaved, snapshot=snapshot.name, reason=snapshot.reason, files=snapshot.files,
        bytes=snapshot.bytes, seconds=seconds,
    )  # fmt: skip


def _begun(store: Store, operation: Operation | None) -> Snapshot | None:
    """Return the snapshot before an operation that has ended, which does not name the one after."""
    if operation is None or operation.kind not in AROUND or operation.phase != "after":
        return None
    found = store.catalog.by_uuid(operation.other)
    if found is None or found.operation is None:
        return found
    is_begun = (found.operation.kind, found.operation.phase) == (operation.kind, "before")
    return found if is_begun and found.operation.other is None else None


def _end_epoch(
    store: Store,
    reason: str,
    message: str,
    labels: dict[str, str],
    volumes: Sequence[VolumeManifest],
    operation: Operation | None,
) -> Steps[Snapshot]:
    yield store.host.write_back
    pending = store.catalog.begin(reason, message, labels, operation, prepared=volumes)
    return (yield from make_durable(store, pending))


def make_durable(store: Store, pending: Snapshot) -> Steps[Snapshot]:
    """Make the bytes of a pending snapshot durable, then show it; give it up when that fails."""
    try:
        yield partial(store.sync, store.owed_objects())
        yield lambda: store.write_document(pending)
        store.owe_index()  # until `publish` has come to its end
        snapshot = store.catalog.complete(pending)
    except BaseException:
        abandon(store, pending)
        raise
    yield store.database.sync
    return snapshot


def abandon(store: Store, pending: Snapshot) -> None:
    """Give up a save that failed; what cannot be undone now is undone by recovery."""
    store.owe_index()  # it tells when the list of snapshots was touched last
    with suppress(OSError, PosixError), store.owing_documents():
        store.freeing(lambda: store.catalog.begin_delete(pending.epoch))
        store.remove_documents(pending)


def delete(store: Store, snapshot: Snapshot) -> Steps[Snapshot]:
    """Delete a snapshot: gone at once, its space given back later.

    Raises:
        NoSuchSnapshot: somebody else was faster. SnapshotPinned: it may not go.
        OSError: the disk refused.
    """
    present = store.catalog.by_view(snapshot.view)
    if present is None:
        raise NoSuchSnapshot(f"the snapshot {snapshot.name} has just been deleted")
    if present.pin is not None and present.pin.holds(store.clock.now_ns()):
        raise SnapshotPinned(
            f"the snapshot {snapshot.name} is {present.pin}; 'statefs unpin' lets it go"
        )
    yield from delete_all(store, [present])
    return present


def delete_all(store: Store, snapshots: Sequence[Snapshot]) -> Steps[None]:
    """Delete snapshots that nobody has pinned. Raises OSError: the disk refused."""
    with store.owing_documents():
        for snapshot in snapshots:
            store.freeing(partial(store.catalog.begin_delete, snapshot.epoch))
        yield store.database.sync
        for snapshot in snapshots:
            store.remove_documents(snapshot)
        yield from publish(store)
    store.host.space_changed()


def amend(store: Store, snapshot: Snapshot, **columns: Any) -> Steps[Snapshot]:
    """Change what is told about a snapshot (`Catalog.amend`), durably, and in its documents."""
    with store.owing_documents():
        amended = store.catalog.amend(snapshot, **columns)
        yield store.database.sync
        yield lambda: store.write_document(amended)
        yield from publish(store)
    return amended


def publish(store: Store) -> Steps[None]:
    """Let it be known that the list has changed, and write index.json."""
    store.owe_index()
    store.refresh_policy()
    data = store.namespace.index_bytes()
    yield store.host.list_changed
    yield lambda: store.write_index(data)
