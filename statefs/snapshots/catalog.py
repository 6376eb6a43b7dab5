"""The snapshots of a store: taking one, choosing one, deleting one. Rows, not yet any tree.

A save has three steps, so that the caller may wait between them without holding up the mount:
`begin` ends the epoch in one transaction; then the caller makes the epoch's bytes durable; then
`complete` shows the snapshot. Recovery drops one that was not completed.
"""

from __future__ import annotations

import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from statefs import __version__
from statefs.clock import iso_time
from statefs.config import Duration, Retention, Size
from statefs.errors import SnapshotExists, UsageError
from statefs.ids import LIVING, TREE_ROOT, VIEW_MAX, Epoch, View
from statefs.layout import RUNTIME
from statefs.metadata.entries import living_entry
from statefs.metadata.schema import COMPLETE, DELETING, PENDING
from statefs.metadata.temporal import DIGESTS, EXTENTS, INLINE, INODES, KEPT, VERSIONED
from statefs.snapshots import naming
from statefs.snapshots.digest import DIGEST_PREFIX
from statefs.snapshots.documents import (
    IndexDocument,
    IndexEntry,
    LastOperation,
    Operation,
    Pin,
    RetentionPolicy,
    SnapshotDocument,
    VolumeManifest,
    index_entry,
)
from statefs.snapshots.reasons import REASONS
from statefs.volume.volume import Volume

SLOTS: Final = VIEW_MAX // 2
"""Snapshot numbers; each has two views: 2n under its name, 2n + 1 under its label."""
MESSAGE_CHARACTERS_MAX: Final = 10_000
REPLACING: Final = ("restore", "undo")
"""Operations whose snapshot is taken right before rows are replaced."""


class Snapshot(NamedTuple):
    """A row of the table `snapshots`; the columns are explained in metadata/schema.py."""

    id: int
    epoch: Epoch
    state: int
    uuid: str
    name: str
    label: str | None
    created_ns: int
    parent_uuid: str | None
    reason: str
    message: str
    labels: dict[str, str]
    app_version: str
    files: int
    bytes: int
    volumes: list[VolumeManifest]
    state_digest: str | None = None
    operation: Operation | None = None
    pin: Pin | None = None

    @property
    def view(self) -> View:
        """The view under the snapshot's name."""
        return View(2 * self.id)

    @property
    def label_view(self) -> View:
        """The view under the snapshot's label."""
        return View(2 * self.id + 1)

    def document(self) -> SnapshotDocument:
        """Return the snapshot's metadata.json."""
        return SnapshotDocument(
            snapshot_id=self.uuid,
            name=self.name,
            timestamp=iso_time(self.created_ns),
            parent_snapshot_id=self.parent_uuid,
            reason=self.reason,  # type: ignore[arg-type]  # checked by `Catalog.begin`
            message=self.message,
            labels=self.labels,
            app_version=self.app_version,
            volume_manifests=self.volumes,
            files=self.files,
            bytes=self.bytes,
            state_digest=self.state_digest,
            sealed=self.state_digest is not None,
            operation=self.operation,
            pin=self.pin,
        )


_SELECT: Final = f"SELECT {', '.join(Snapshot._fields)} FROM snapshots"


_JSON: Final[dict[str, Any]] = {
    "labels": dict[str, str],
    "volumes": list[VolumeManifest],
    "operation": Operation | None,
    "pin": Pin | None,
}
"""Columns that hold JSON, and the type that it is of."""


def snapshot_of(row: tuple[Any, ...]) -> Snapshot:
    """Return the snapshot of a row of the table, its columns in the order of the fields."""
    fields = Snapshot(*row)
    decoded = {
        name: msgspec.json.decode(getattr(fields, name) or "null", type=kind)
        for name, kind in _JSON.items()
    }
    return fields._replace(**decoded)


def columns_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot's columns as they are stored."""
    columns = snapshot._asdict()
    for name in _JSON:
        value = columns[name]
        columns[name] = None if value is None else msgspec.json.encode(value).decode()
    return columns


def document_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot's document as plain values."""
    document: dict[str, Any] = msgspec.to_builtins(snapshot.document())
    return document


def _shown_policy(policy: Retention) -> RetentionPolicy:
    shown: dict[str, Any] = {}
    for name in RetentionPolicy.__struct_fields__:
        value = getattr(policy, name)
        shown[name] = int(value) if isinstance(value, Duration | Size) else value
    return RetentionPolicy(**shown)


class Catalog:
    """All snapshots of a store.

    Args:
        volume: the store's living tree.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._table = volume.table
        self._database = volume.table.database
        self.generation = 0
        self.last_modified_ns = 0
        self._policy = Retention()
        self._entries: dict[int, IndexEntry] = {}
        self._load()

    def _load(self) -> None:
        rows = self._database.rows(f"{_SELECT} WHERE state = ? ORDER BY epoch", (COMPLETE,))
        self._show([snapshot_of(row) for row in rows])

    def _show(self, snapshots: list[Snapshot]) -> None:
        """Take `snapshots`, oldest first, for all there are."""
        self.snapshots = snapshots
        self._by_view = {view: s for s in snapshots for view in (s.view, s.label_view)}
        self._by_epoch = {s.epoch: s for s in snapshots}
        self._by_name = {s.name: s for s in snapshots}
        self._by_label = {s.label: s for s in snapshots if s.label is not None}
        self._entries = {
            s.epoch: self._entries.get(s.epoch) or index_entry(s.document()) for s in snapshots
        }
        self.newest_sealed = next((s for s in reversed(snapshots) if s.state_digest), None)
        self.last_modified_ns = int(self._database.store_value("last_modified_ns"))
        self._current_as = self._database.store_value("current_as")
        self._table.checks.snapshots_changed()
        self.generation += 1

    def _note_change(self) -> None:
        """Write down when the list of snapshots changed; in the transaction that does it."""
        self._database.set_store_value("last_modified_ns", self._table.clock.now_ns())

    def show_policy(self, policy: Retention) -> None:
        """Tell in index.json from now on that `policy` is in force."""
        if policy != self._policy:
            self._policy = policy
            self.generation += 1

    def by_view(self, view: int) -> Snapshot | None:
        """Return the complete snapshot shown in `view`, or None."""
        return self._by_view.get(View(view))

    def by_folder(self, name: str) -> tuple[Snapshot, View] | None:
        """Return the snapshot whose folder in snapshots/ has this name or label, and its view."""
        snapshot = self._by_name.get(name)
        if snapshot is not None:
            return snapshot, snapshot.view
        snapshot = self._by_label.get(name)
        return None if snapshot is None else (snapshot, snapshot.label_view)

    def choose(self, selector: str) -> Snapshot:
        """Return the snapshot that a selector means (snapshots/naming.py).

        Raises:
            NoSuchSnapshot, AmbiguousSnapshot, UsageError.
        """
        named = [
            naming.Named(s.epoch, s.name, s.label, s.labels, s.created_ns) for s in self.snapshots
        ]
        chosen = naming.choose(selector, named, self._table.clock.now_ns())
        return self._by_name[chosen.name]

    def check_request(self, reason: str, message: str, labels: dict[str, str]) -> None:
        """Refuse what cannot be saved.

        Raises:
            UsageError: an unknown reason, an impossible label; SnapshotExists: a taken one.
        """
        if reason not in REASONS:
            raise UsageError(f"unknown reason '{reason}': use one of {', '.join(REASONS)}")
        if len(message) > MESSAGE_CHARACTERS_MAX:
            raise UsageError(f"a message may have {MESSAGE_CHARACTERS_MAX} characters at most")
        if "" in labels:
            raise UsageError(f"a label needs a key, not '={labels['']}' (for example name=v1)")
        label = labels.get("name")
        if label is not None:
            naming.check_label(label)
            if self.by_folder(label) is not None:
                raise SnapshotExists(
                    f"a snapshot '{label}' exists: delete it or choose another name"
                )

    def begin(
        self,
        reason: str,
        message: str,
        labels: dict[str, str],
        operation: Operation | None = None,
        prepared: Sequence[VolumeManifest] = (),
    ) -> Snapshot:
        """End the epoch: what is in the tree now is what the snapshot will show.

        One transaction whose size does not depend on the tree; writes what was newer in memory.

        Args:
            prepared: the volumes whose applications took part (maintenance/applications.py).

        Raises:
            UsageError, SnapshotExists: see `check_request`. PosixError: the disk refused.
        """
        self.check_request(reason, message, labels)
        table, database = self._table, self._database
        now = table.clock.now_ns()
        hidden = database.rows("SELECT name FROM snapshots WHERE state != ?", (COMPLETE,))
        taken = {*self._by_name, *self._by_label, *(row[0] for row in hidden)}
        label = labels.get("name")
        stale = table.stale_nodes()
        for node in stale:
            node.blocks = self._volume.data.blocks(node)
        newest = self.newest
        with table.change(*stale):
            table.store_stale(stale)
            files, size = self._without_runtime()
            snapshot = Snapshot(
                self._free_slot(), table.epoch, PENDING, str(uuid.uuid4()),
                naming.name_for(now, taken), label, now, newest.uuid if newest else None,
                reason, message, labels, __version__, files, size,
                self._volumes(prepared), operation=operation,
            )  # fmt: skip
            self._insert(snapshot)
            table.temporal.write_next_epoch()
        table.settled(stale)
        table.enter_next_epoch()
        return snapshot

    def _insert(self, snapshot: Snapshot) -> None:
        columns = columns_of(snapshot)
        marks = ", ".join("?" * len(columns))
        self._database.execute(
            f"INSERT INTO snapshots ({', '.join(columns)}) VALUES ({marks})",
            tuple(columns.values()),
        )

    def amend(self, snapshot: Snapshot, **columns: Any) -> Snapshot:
        """Change what is told about a complete snapshot, not what it shows; in one transaction.

        Args:
            columns: of `Snapshot`: state_digest, volumes, operation, pin, labels.

        Returns:
            The snapshot as it is now; the caller writes its document and index.json.
        """
        amended = snapshot._replace(**columns)
        stored = columns_of(amended)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._database.transaction():
            self._database.execute(
                f"UPDATE snapshots SET {assignments} WHERE epoch = ?",
                (*(stored[name] for name in columns), snapshot.epoch),
            )
            self._note_change()
        self._entries.pop(snapshot.epoch, None)
        self._show([amended if s.epoch == snapshot.epoch else s for s in self.snapshots])
        return amended

    def _free_slot(self) -> int:
        hidden = self._database.rows("SELECT id FROM snapshots WHERE state != ?", (COMPLETE,))
        used = {*(s.id for s in self.snapshots), *(row[0] for row in hidden)}
        newest = int(self._database.store_value("last_slot"))
        slot = newest % SLOTS + 1
        while slot in used:
            slot = slot % SLOTS + 1
        self._database.set_store_value("last_slot", slot)
        return slot

    def _volumes(self, prepared: Sequence[VolumeManifest]) -> list[VolumeManifest]:
        """Return the prepared volumes, after the other folders in volumes/ by their names."""
        entry = living_entry(self._database, TREE_ROOT, b"volumes")
        rows = self._volume.names.listing(entry.ino, 0, 1000) if entry else []
        names = [name.decode("utf-8", "replace") for _, name, node in rows if node.is_dir]
        known = {manifest.path for manifest in prepared}
        others = [VolumeManifest(name=name, path=f"volumes/{name}") for name in names]
        return [*(each for each in others if each.path not in known), *prepared]

    def _without_runtime(self) -> tuple[int, int]:
        """Return files and bytes of the living tree, less what lies in runtime/."""
        entry = living_entry(self._database, TREE_ROOT, RUNTIME)
        if entry is None:
            return self._table.files, self._table.bytes
        # CROSS JOIN keeps the order as written: SQLite may not scan all inodes for the few inside.
        row = self._database.execute(
            "WITH RECURSIVE inside (ino) AS ("
            f" SELECT ino FROM entries WHERE parent = ?1 AND valid_to = {LIVING}"
            " UNION SELECT e.ino FROM inside i CROSS JOIN entries e ON e.parent = i.ino"
            f" WHERE e.valid_to = {LIVING})"
            " SELECT count(*), CAST(total(n.size) AS INTEGER) FROM inside i"
            f" CROSS JOIN inodes n ON n.ino = i.ino AND n.valid_to = {LIVING}"
            f" WHERE n.mode & 0xF000 = {stat.S_IFREG}",
            (entry.ino,),
        ).fetchone()
        assert row is not None
        return self._table.files - row[0], self._table.bytes - row[1]

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """Show a snapshot whose bytes are durable now."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE snapshots SET state = ? WHERE epoch = ?", (COMPLETE, snapshot.epoch)
            )
            self._table.forget_displaced_epoch(snapshot.epoch)
            self._note_change()
            self._note_taken(snapshot)
        shown = snapshot._replace(state=COMPLETE)
        self._show([*self.snapshots, shown])
        return shown

    def _note_taken(self, snapshot: Snapshot) -> None:
        """Write down what `current/` is as, and the last operation; in a transaction."""
        operation = snapshot.operation
        # Right after this one its rows are replaced: not known until `note_restored`.
        is_replaced = operation is not None and operation.kind in REPLACING
        self._database.set_store_value("current_as", None if is_replaced else snapshot.uuid)
        if operation is not None:
            last = LastOperation(kind=operation.kind, snapshot_id=snapshot.uuid, name=snapshot.name)
            self._database.set_store_value("last_operation", msgspec.json.encode(last).decode())

    def note_restored(self, snapshot: Snapshot) -> None:
        """Write down that `current/`, but for `runtime/` and times, is what a snapshot shows."""
        with self._database.transaction():
            self._database.set_store_value("current_as", snapshot.uuid)
        self._show(self.snapshots)

    def last_operation(self) -> LastOperation | None:
        """Return what the last restore, command or undo was; None where none was made."""
        found = self._database.store_value("last_operation")
        return None if found is None else msgspec.json.decode(found, type=LastOperation)

    def begin_delete(self, epoch: int) -> None:
        """Hide a snapshot for ever, complete or pending; its rows go later (maintenance/gc.py)."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE snapshots SET state = ?, label = NULL WHERE epoch = ?", (DELETING, epoch)
            )
            gone = self.by_epoch(epoch)
            if gone is not None and gone.uuid == self._current_as:
                self._database.set_store_value("current_as", gone.state_digest)
            self._note_change()
        self._show([s for s in self.snapshots if s.epoch != epoch])
        self._table.unpin(Epoch(self.newest_pinned()))

    @property
    def newest(self) -> Snapshot | None:
        """The newest complete snapshot, None without any."""
        return self.snapshots[-1] if self.snapshots else None

    @property
    def newest_epoch(self) -> int:
        """The epoch of the newest complete snapshot, 0 without any."""
        return self.newest.epoch if self.newest else 0

    def by_uuid(self, uuid: str | None) -> Snapshot | None:
        """Return the complete snapshot of a UUID, or None."""
        return next((each for each in self.snapshots if each.uuid == uuid), None)

    def by_epoch(self, epoch: int) -> Snapshot | None:
        """Return the complete snapshot of an epoch, or None."""
        return self._by_epoch.get(Epoch(epoch))

    def pinned_before(self, epoch: int) -> int:
        """Return the epoch of the newest snapshot before `epoch` that is kept, 0 without any."""
        return int(
            self._database.value(
                f"SELECT coalesce(max(epoch), 0) FROM snapshots WHERE epoch < ? AND {KEPT}",
                (epoch,),
            )
        )

    def newest_pinned(self) -> int:
        """Return the epoch of the newest snapshot that is kept, 0 without any."""
        return int(
            self._database.value(f"SELECT coalesce(max(epoch), 0) FROM snapshots WHERE {KEPT}")
        )

    def deleting(self) -> list[int]:
        """Return the epochs of snapshots whose rows are still to be deleted, oldest first."""
        return [
            row[0]
            for row in self._database.rows(
                "SELECT epoch FROM snapshots WHERE state = ? ORDER BY epoch", (DELETING,)
            )
        ]

    def is_shared(self, epoch: int) -> bool:
        """Return whether clones share small content with the snapshot of `epoch`."""
        query = "SELECT EXISTS (SELECT 1 FROM shared WHERE epoch = ?)"
        return bool(self._database.value(query, (epoch,)))

    def delete_rows(self, epoch: int, limit: Callable[[], int]) -> Iterator[None]:
        """Delete what only the snapshot of `epoch` saw, step by step.

        At its end the snapshot's own row is gone too. It may be given up and begun anew. While
        clones share small content with the snapshot (`is_shared`), that, its row and the digests
        stay, which tell whether the content is what it was.

        Args:
            limit: says how many rows at most the next step is to delete.
        """
        database, table = self._database, self._table
        table.unpin(Epoch(self.newest_pinned()))
        is_shared = self.is_shared(epoch)
        before = self.pinned_before(epoch)
        after = database.value(
            f"SELECT min(epoch) FROM snapshots WHERE epoch > ? AND {KEPT}", (epoch,)
        )
        span = (before, epoch, table.epoch if after is None else after)
        # A digest goes before its inode: verify knows of none without one, also half-way.
        for life in (DIGESTS, *(each for each in VERSIONED if each is not DIGESTS)):
            if is_shared and life in (INLINE, INODES, DIGESTS):
                continue
            forgetting = table.temporal.forget(life, span, limit)
            while True:
                with table.change():
                    deleted = next(forgetting, None)
                    if deleted is None:
                        break
                    if life is EXTENTS:
                        table.discard_objects(set(deleted))
                    elif life is INODES:
                        table.temporal.drop_stray_digests(set(deleted))
                yield
        if is_shared:
            return
        while not self.newest_pinned():
            with table.change():
                if not table.temporal.drop_digests(limit()):
                    break
            yield
        with table.change():
            database.execute("DELETE FROM snapshots WHERE epoch = ?", (epoch,))

    @property
    def current_state_digest(self) -> str | None:
        """What current/ hashed to after the last save or restore; None while it is not known."""
        found = (each.state_digest for each in self.snapshots if each.uuid == self._current_as)
        is_digest = str(self._current_as).startswith(DIGEST_PREFIX)
        return self._current_as if is_digest else next(found, None)

    def index(self) -> IndexDocument:
        """Return index.json as it is now."""
        values = dict(self._database.rows("SELECT key, value FROM store"))
        return IndexDocument(
            project_id=values["uuid"],
            app_id=values["app_id"],
            current_state_digest=self.current_state_digest,
            snapshots=list(self._entries.values()),
            retention_policy=_shown_policy(self._policy),
            last_modified=iso_time(self.last_modified_ns),
        )
