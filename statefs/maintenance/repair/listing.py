"""The rows of `store` and `snapshots` that a repaired database begins with."""

from __future__ import annotations

import uuid
from typing import Any, Final

import apsw
import msgspec
from msgspec.structs import replace

from statefs.errors import UsageError
from statefs.ids import FIRST_FREE_INO
from statefs.locking import boot_id
from statefs.maintenance.repair.losses import Loss, Report
from statefs.metadata.schema import COMPLETE, DELETING, PENDING
from statefs.snapshots import naming
from statefs.snapshots.catalog import SLOTS, Snapshot, snapshot_of
from statefs.snapshots.digest import is_state_digest
from statefs.snapshots.documents import LastOperation
from statefs.snapshots.reasons import REASONS

EPOCH_MAX: Final = 1 << 40
"""More snapshots than anyone takes: a larger number is damage."""
_NUMBERS: Final = (
    "SELECT max(ino & 549755813887) FROM inodes", "SELECT max(cookie) FROM entries",
    "SELECT max(id) FROM objects", "SELECT max(object) FROM garbage",
    "SELECT max(ino & 549755813887) FROM inline", "SELECT max(ino & 549755813887) FROM extents",
    "SELECT max(ino & 549755813887) FROM entries", "SELECT max(parent & 549755813887) FROM entries",
)  # fmt: skip


def read_store(plain: apsw.Connection) -> dict[str, Any]:
    """Return the keys of the table `store`, possible ones alone."""
    rows = plain.execute("SELECT key, value FROM store")
    found: dict[str, Any] = {key: value for key, value in rows if isinstance(key, str)}
    for key in ("uuid", "lineage"):
        if not _is_uuid(found.get(key)):
            found.pop(key, None)
    current = found.get("current_as")
    if not (current is None or _is_uuid(current) or is_state_digest(current)):
        del found["current_as"]
    try:
        msgspec.json.decode(found.get("last_operation") or "null", type=LastOperation | None)
    except (msgspec.MsgspecError, TypeError):
        del found["last_operation"]
    return {key: value for key, value in found.items() if _is_possible(key, value)}


def _is_possible(key: str, value: object) -> bool:
    texts = ("uuid", "lineage", "app_id", "boot_id", "current_as", "last_operation")
    if key in texts:
        return isinstance(value, str | None)
    return isinstance(value, int) and 0 <= value < 1 << 63


def _is_uuid(value: object) -> bool:
    try:
        return str(uuid.UUID(str(value))) == value
    except ValueError:
        return False


def current_epoch(plain: apsw.Connection, store: dict[str, Any], at_least: int) -> int:
    """Return the current epoch: what the store says, or what follows from rows and objects."""
    said = store.get("epoch", 0)
    if not 1 <= said < EPOCH_MAX:
        query = "SELECT max(valid_from) FROM inodes WHERE valid_from < ?"
        said = next(plain.execute(query, (EPOCH_MAX,)))[0] or 1
    snapshots = plain.execute("SELECT epoch FROM snapshots")
    epochs = [each for (each,) in snapshots if isinstance(each, int) and each < EPOCH_MAX]
    return int(max(said, at_least, 1, *(each + 1 for each in epochs or [0])))


def next_number(plain: apsw.Connection, store: dict[str, Any], at_least: int) -> int:
    """Return a number from which none has been handed out."""
    numbers = [next(plain.execute(query))[0] or 0 for query in _NUMBERS]
    numbers = [number for number in numbers if number < 1 << 39]
    return int(max(FIRST_FREE_INO, store.get("next_id", 0), at_least, *(n + 1 for n in numbers)))


def read_snapshots(plain: apsw.Connection, epoch: int, report: Report) -> list[Snapshot]:
    """Return the complete snapshots whose rows make sense, oldest first."""
    found: dict[int, Snapshot] = {}
    names: set[str] = set()
    slots: set[int] = set()
    columns = ", ".join(f'"{name}"' for name in Snapshot._fields)
    for row in plain.execute(f"SELECT {columns} FROM snapshots ORDER BY epoch"):
        snapshot = _possible(row, epoch)
        if snapshot is None:
            name = row[Snapshot._fields.index("name")]
            state = row[Snapshot._fields.index("state")]
            if state not in (
                PENDING,
                DELETING,
            ):  # never there, or deleted
                report.lose(Loss(what="the row of a snapshot is lost", snapshots=[str(name)]))
            continue
        taken = {snapshot.name, snapshot.uuid, snapshot.label} - {None}
        if snapshot.epoch in found or names & taken or snapshot.id in slots:
            continue
        names |= {str(each) for each in taken}
        slots.add(snapshot.id)
        found[snapshot.epoch] = snapshot
    for epoch, snapshot in found.items():
        if snapshot.label in {other.name for other in found.values()}:
            found[epoch] = _without_label(snapshot)
    return [found[epoch] for epoch in sorted(found)]


def _possible(row: tuple[Any, ...], epoch: int) -> Snapshot | None:
    """Return the snapshot that a row stands for, put right where that loses nothing; or None."""
    try:
        snapshot = snapshot_of(row)
    except (msgspec.MsgspecError, TypeError, ValueError):
        return None
    numbers: tuple[object, ...] = (snapshot.epoch, snapshot.created_ns, snapshot.id)
    if not all(isinstance(number, int) for number in numbers):
        return None
    if snapshot.state in (PENDING, DELETING) or not 1 <= snapshot.epoch < epoch:
        return None
    if not (naming.is_name(str(snapshot.name)) and _is_uuid(snapshot.uuid)):
        return None
    if not 1 <= snapshot.id <= SLOTS:
        return None
    snapshot = snapshot._replace(
        state=COMPLETE,
        message=str(snapshot.message),
        reason=snapshot.reason if snapshot.reason in REASONS else "manual",
        label=snapshot.labels.get("name"),
        files=0,
        bytes=0,
    )
    try:
        if snapshot.label is not None:
            naming.check_label(snapshot.label)
    except UsageError:
        return _without_label(snapshot)
    return snapshot


def unsealed(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot that is to be sealed anew."""
    volumes = [replace(volume, digest=None) for volume in snapshot.volumes]
    return snapshot._replace(state_digest=None, volumes=volumes)


def _without_label(snapshot: Snapshot) -> Snapshot:
    labels = {key: value for key, value in snapshot.labels.items() if key != "name"}
    return snapshot._replace(label=None, labels=labels)


def store_rows(
    store: dict[str, Any], epoch: int, next_id: int, last_slot: int, now_ns: int
) -> dict[str, Any]:
    """Return all keys of `store` for a database that recovery will go over."""
    kept = {
        "uuid": str(uuid.uuid4()),
        "lineage": str(uuid.uuid4()),
        "app_id": None,
        "created_ns": now_ns,
    } | store
    return kept | {
        "epoch": epoch,
        "next_id": next_id,
        "last_slot": min(SLOTS, max(last_slot, store.get("last_slot", 0))),
        "last_modified_ns": now_ns,
        "clean": 0,
        "boot_id": boot_id(),  # what is missing now is damage, and not what a power cut took
        "files": 0,
        "bytes": 0,
    }
