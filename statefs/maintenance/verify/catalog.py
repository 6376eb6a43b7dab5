"""Rules of the list of snapshots, of what is counted and marked, and of the documents."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from statefs.clock import iso_time
from statefs.errors import UsageError
from statefs.ids import CLONE_BIT, LIVING, TREE_ROOT
from statefs.layout import RUNTIME
from statefs.maintenance.verify.reading import Reading
from statefs.metadata.schema import COMPLETE, DELETING, PENDING
from statefs.snapshots import naming
from statefs.snapshots.catalog import SLOTS, Snapshot
from statefs.snapshots.documents import (
    ChangedPaths,
    IndexDocument,
    IndexEntry,
    SnapshotDocument,
    decode,
    index_entry,
)
from statefs.snapshots.reasons import REASONS


def check_snapshots(reading: Reading) -> Iterator[str]:
    """R21: a snapshot shows an epoch that has ended, under names that lead to no other."""
    for snapshot in reading.snapshots:
        for trouble in _troubles(reading, snapshot):
            yield f"snapshot {snapshot.name}: {trouble}"
    names = {snapshot.name for snapshot in reading.snapshots}
    for snapshot in reading.snapshots:
        if snapshot.label in names:
            yield f"snapshot {snapshot.name}: its label is the name of a snapshot"


def _troubles(reading: Reading, snapshot: Snapshot) -> Iterator[str]:
    if not 1 <= snapshot.epoch < reading.epoch:
        yield f"epoch {snapshot.epoch} has not ended: now is {reading.epoch}"
    if snapshot.state not in (PENDING, COMPLETE, DELETING):
        yield f"there is no state {snapshot.state}"
    if not 1 <= snapshot.id <= SLOTS:
        yield f"its number {snapshot.id} is not in 1 to {SLOTS}"
    if not naming.is_name(snapshot.name):
        yield "its name is no time"
    if snapshot.reason not in REASONS:
        yield f"there is no reason '{snapshot.reason}'"
    if snapshot.files < 0 or snapshot.bytes < 0:
        yield "its counts are negative"
    label = None if snapshot.state == DELETING else snapshot.labels.get("name")
    if snapshot.label != label:
        yield f"its label is '{snapshot.label}', in labels it is '{label}'"
    if label is not None:
        try:
            naming.check_label(label)
        except UsageError as error:
            yield str(error)


def check_counts(reading: Reading) -> Iterator[str]:
    """R22: `files` and `bytes` of a snapshot are what its tree holds, runtime/ left out."""
    for snapshot in reading.snapshots:
        if snapshot.state == DELETING:
            continue
        found = counts_of(reading, snapshot)
        if found != (snapshot.files, snapshot.bytes):
            yield (
                f"snapshot {snapshot.name} holds {found[0]} files of {found[1]} bytes,"
                f" its row says {snapshot.files} of {snapshot.bytes}"
            )


def counts_of(reading: Reading, snapshot: Snapshot) -> tuple[int, int]:
    """Return how many files the tree of a snapshot holds, and of how many bytes."""
    groups = _lifetimes_of_files(reading)
    seen = [group for group in groups if group[0] <= snapshot.epoch < group[1]]
    files, size = _in_runtime(reading, snapshot.epoch)
    return sum(group[2] for group in seen) - files, sum(group[3] for group in seen) - size


def _lifetimes_of_files(reading: Reading) -> list[tuple[int, ...]]:
    """Return (valid_from, valid_to, files, bytes) of files of current/ that have a name."""
    query = (
        "SELECT valid_from, valid_to, count(*), sum(size) FROM inodes"
        f" WHERE mode & 0xF000 = {stat.S_IFREG} AND nlink > 0 AND ino < {CLONE_BIT}"
        " GROUP BY valid_from, valid_to"
    )
    return list(reading.rows(query))


def _in_runtime(reading: Reading, epoch: int) -> tuple[int, int]:
    """Return how many files runtime/ held in an epoch, and of how many bytes."""
    seen = "{0}.valid_from <= ?1 AND {0}.valid_to > ?1"
    query = (
        "WITH RECURSIVE inside (ino) AS (SELECT e.ino FROM entries r CROSS JOIN entries e"
        f" ON e.parent = r.ino AND {seen.format('e')} WHERE r.parent = {TREE_ROOT} AND r.name = ?2"
        f" AND {seen.format('r')} UNION SELECT e.ino FROM inside n CROSS JOIN entries e"
        f" ON e.parent = n.ino AND {seen.format('e')})"
        " SELECT count(*), coalesce(sum(i.size), 0) FROM inside n CROSS JOIN inodes i"
        f" ON i.ino = n.ino AND {seen.format('i')} AND i.mode & 0xF000 = {stat.S_IFREG}"
    )
    files, size = next(reading.rows(query, (epoch, RUNTIME)))
    return files, size


def check_totals(reading: Reading) -> Iterator[str]:
    """R23: after a clean close, `files` and `bytes` of the store are what the living tree holds."""
    if reading.totals is None:
        return
    living = [group for group in _lifetimes_of_files(reading) if group[1] == LIVING]
    found = (sum(group[2] for group in living), sum(group[3] for group in living))
    if found != reading.totals:
        yield (
            f"there are {found[0]} files of {found[1]} bytes,"
            f" the store counts {reading.totals[0]} of {reading.totals[1]}"
        )


def check_lists(reading: Reading) -> Iterator[str]:
    """R24: only living files are marked dirty, and orphans are the inodes without a name.

    After a clean close there are neither.
    """
    living = f"i.valid_to = {LIVING}"
    query = (
        "SELECT d.ino FROM dirty d WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.ino = d.ino"
        f" AND {living} AND i.mode & 0xF000 = {stat.S_IFREG}) ORDER BY d.ino"
    )
    for (ino,) in reading.rows(query):
        yield f"inode {ino} is marked dirty, but is no living file"
    query = (
        "SELECT o.ino FROM orphans o WHERE o.epoch NOT BETWEEN 1 AND ? OR NOT EXISTS (SELECT 1"
        f" FROM inodes i WHERE i.ino = o.ino AND {living} AND i.nlink = 0) ORDER BY o.ino"
    )
    for (ino,) in reading.rows(query, (reading.epoch,)):
        yield f"{reading.named(ino)} is an orphan, but has a name or does not exist"
    query = (
        f"SELECT DISTINCT i.ino FROM inodes i WHERE i.nlink = 0 AND {reading.count('i')} > 0"
        " AND NOT EXISTS (SELECT 1 FROM orphans o WHERE o.ino = i.ino) ORDER BY i.ino"
    )
    for (ino,) in reading.rows(query):
        yield f"inode {ino} has no name and is no orphan"
    if reading.store["clean"]:
        for table in ("dirty", "orphans"):
            number = reading.value(f"SELECT count(*) FROM {table}")
            if number:
                yield f"{table} has {number} rows after a clean close"


def check_documents(reading: Reading) -> Iterator[str]:
    """R25: index.json and the files in snapshots/ say what the database says."""
    shown = [snapshot for snapshot in reading.snapshots if snapshot.state == COMPLETE]
    yield from _index_troubles(reading, shown)
    folder = reading.layout.snapshots
    for snapshot in shown:
        path = folder / f"{snapshot.name}.json"
        try:
            document = decode(path.read_bytes(), SnapshotDocument)
        except (OSError, ValueError) as error:
            yield f"snapshots/{path.name} cannot be read: {error}"
        else:
            if document != snapshot.document():
                yield f"snapshots/{path.name} does not say what the database says"
        yield from _changed_troubles(folder / f"{snapshot.name}.changed")
    wanted = {f"{each.name}{kind}" for each in reading.snapshots for kind in (".json", ".changed")}
    for name in sorted({path.name for path in folder.glob("*")} - wanted):
        yield f"snapshots/{name} belongs to no snapshot"


def _changed_troubles(path: Path) -> Iterator[str]:
    try:
        decode(path.read_bytes(), ChangedPaths)
    except FileNotFoundError:
        return  # of a snapshot that was taken for no restore
    except (OSError, ValueError) as error:
        yield f"snapshots/{path.name} cannot be read: {error}"


def _index_troubles(reading: Reading, shown: list[Snapshot]) -> Iterator[str]:
    try:
        index = decode(reading.layout.index_json.read_bytes(), IndexDocument)
    except (OSError, ValueError) as error:
        yield f"index.json cannot be read: {error}"
        return
    told: dict[str, IndexEntry] = {entry.name: entry for entry in index.snapshots}
    for snapshot in shown:
        entry = told.pop(snapshot.name, None)
        if entry is None:
            yield f"index.json does not tell of snapshot {snapshot.name}"
        elif entry != index_entry(snapshot.document()):
            yield f"index.json tells something else of snapshot {snapshot.name} than the database"
    for name in sorted(told):
        yield f"index.json tells of snapshot {name}, which does not exist"
    names = [entry.name for entry in index.snapshots]
    if not told and names != sorted(names, key=[snapshot.name for snapshot in shown].index):
        yield "index.json does not have the newest snapshot last"
    store = reading.store
    modified = iso_time(store["last_modified_ns"])
    wanted = (store["uuid"], store["app_id"], modified)
    if (index.project_id, index.app_id, index.last_modified) != wanted:
        yield f"index.json is not of this store as of {modified}"
