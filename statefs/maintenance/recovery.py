"""Making a store that was not closed cleanly consistent again, before anyone sees it.

After a kill -9 every committed row is there; what may lag behind are sizes and times of files that
were being written (their object files know), unfinished saves and deletes, files without a name,
and an object file made by a transaction that never came.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from statefs.content import displaced, rows
from statefs.content.objects import ObjectFiles
from statefs.durable import sync_filesystem
from statefs.ids import LIVING, NOW, ObjectId
from statefs.metadata.connection import Database
from statefs.metadata.inodes import living_totals
from statefs.metadata.schema import DELETING, PENDING
from statefs.metadata.temporal import EXTENTS, Temporal

log = logging.getLogger(__name__)

_TAIL: Final = (
    "SELECT start, object, valid_from FROM extents"
    f' WHERE ino = ? AND valid_to = {LIVING} AND "end" = {LIVING}'
)
_SETTLED_SIZE: Final = (
    f"SELECT size FROM inodes WHERE ino = ?1 AND valid_to = {LIVING}"
    " AND NOT EXISTS (SELECT 1 FROM dirty WHERE ino = ?1)"
)


def recover(
    database: Database,
    objects: ObjectFiles,
    root: Path,
    *,
    may_have_lost_power: bool,
    keeps_orphans: bool = False,
) -> None:
    """Repair what an unclean end may have left; harmless after a clean one.

    What it commits the caller makes durable (`Database.sync`).

    Args:
        root: the store's folder. What the earlier process wrote there is made durable, for it may
            not have been, and nobody knows any more for which files.
        may_have_lost_power: since the store was opened; then an object that was not synced may be
            short or missing without being damaged.
        keeps_orphans: the mount goes on, and programs still have files without a name open.

    Raises:
        OSError: an object file cannot be read, or the disk refuses a sync.
    """
    if may_have_lost_power:
        _put_back_displaced(database)
        _make_unfinished_save_whole(database, objects)
        _make_dirty_files_whole(database, objects)
    sync_filesystem(root)  # before any row says that nothing is owed: the power may go now, too
    with database.transaction():
        database.execute(
            "UPDATE snapshots SET state = ?, label = NULL WHERE state = ?", (DELETING, PENDING)
        )
    _recover_sizes(database, objects)
    if not keeps_orphans:
        _drop_orphans(database)
    _remove_strays(database, objects)
    files, size = living_totals(database)
    with database.transaction():
        database.set_store_value("files", files)
        database.set_store_value("bytes", size)
        database.execute("DELETE FROM displaced")


def _put_back_displaced(database: Database) -> None:
    """Let ranges whose new bytes may have been lost be what they were before.

    A file that was written to its end has an extent behind it, for what was to be appended.
    """
    temporal = Temporal.of(database)
    for (ino,) in database.rows("SELECT DISTINCT ino FROM displaced"):
        before = rows.extents(database, ino, NOW)
        after = list(before)
        displaced.put_back(database, ino, after, temporal.epoch)
        size = database.value(_SETTLED_SIZE, (ino,))
        if size is not None:  # else it is found out later
            after = [extent for extent in after if extent.start < size]
        gone, come = set(before) - set(after), set(after) - set(before)
        with database.transaction():
            for extent in gone:
                temporal.end(EXTENTS, extent.valid_from, ino, extent.start)
            for extent in come:
                if extent.object:
                    temporal.born(EXTENTS, ino, extent.start, extent.end, extent.object)
            for number in {extent.object for extent in gone}:
                database.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (number,))
                database.execute(
                    "DELETE FROM objects WHERE id = ?1"
                    " AND NOT EXISTS (SELECT 1 FROM extents WHERE object = ?1)", (number,),
                )  # fmt: skip
            displaced.forget(database, [ino])


def _dirty_files(database: Database, temporal: Temporal) -> list[tuple[int, int | None]]:
    """Return the files that were being written, each with its object of this epoch, if any."""
    query = "SELECT id FROM objects WHERE ino = ? AND epoch = ? ORDER BY id DESC"
    return [
        (ino, database.value(query, (ino, temporal.epoch)))
        for (ino,) in database.rows("SELECT ino FROM dirty")
    ]


def _recover_sizes(database: Database, objects: ObjectFiles) -> None:
    """Take sizes and times of files that were being written from their object files."""
    temporal = Temporal.of(database)
    for ino, number in _dirty_files(database, temporal):
        try:
            state = None if number is None else objects.stat(number)
        except FileNotFoundError:
            log.error("the object file %x of inode %d is missing", number, ino)
            state = None
        with database.transaction():
            if number is not None and state is not None:
                size = _recovered_size(database, temporal, ino, number, state.st_size)
                _write_recovered(database, ino, size, state)
            database.execute("DELETE FROM dirty WHERE ino = ?", (ino,))


def _recovered_size(
    database: Database, temporal: Temporal, ino: int, number: int, length: int
) -> int | None:
    """Return the size that a file has got by its object, None to leave the row's.

    After a loss of power the object may be shorter than what was appended to it, or empty: the file
    ends where the object's bytes end, but never before what other objects hold.
    """
    tail = database.execute(_TAIL, (ino,)).fetchone()
    if tail is None or tail[1] != number:
        return None
    start, _, born = tail
    if length <= start:
        temporal.end(EXTENTS, born, ino, start)
        database.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (number,))
    return int(max(length, start))


def _make_dirty_files_whole(database: Database, objects: ObjectFiles) -> None:
    """Give the objects of files that were being written the length that rows count on."""
    for _, number in _dirty_files(database, Temporal.of(database)):
        if number is not None:
            _make_whole(objects, number, _length_needed(database, number))


def _length_needed(database: Database, number: int) -> int:
    """Return the length of a dirty file's object that extents in its midst count on.

    A log that another file's fsync has made durable may tell of an object whose name or bytes were
    not.
    """
    needed = database.value(
        f'SELECT max("end") FROM extents WHERE object = ? AND "end" < {LIVING}', (number,)
    )
    return int(needed or 0)


def _make_unfinished_save_whole(database: Database, objects: ObjectFiles) -> None:
    """Give the objects of a pending snapshot's epoch the length that rows say.

    A save takes the dirty marks away first and then syncs the objects; until it has, they may lag
    behind the rows as those of dirty files do. What is missing reads as zeros.
    """
    rows = database.rows(
        'SELECT o.id, coalesce(max(min(e."end", i.size)), 0) FROM objects o'
        " JOIN snapshots s ON s.epoch = o.epoch AND s.state = ?"
        " LEFT JOIN extents e ON e.object = o.id"
        f" LEFT JOIN inodes i ON i.ino = e.ino AND i.valid_to = {LIVING}"
        " GROUP BY o.id",
        (PENDING,),
    )
    for number, needed in rows:
        _make_whole(objects, number, needed)


def _make_whole(objects: ObjectFiles, number: int, needed: int) -> None:
    """Make an object that is lost, and as long as is needed: what was not synced reads as zeros."""
    if not objects.is_there(number):
        log.warning("object file %x was not synced and is lost", number)
        objects.create(ObjectId(number))
    if objects.stat(number).st_size < needed:
        log.warning("object file %x was not synced and has lost bytes", number)
        objects.truncate(number, needed)


def _write_recovered(database: Database, ino: int, size: int | None, state: os.stat_result) -> None:
    """Write size and times; in place, as a dirty file's row is younger than any snapshot.

    A time set by utimens after the last write stays: its ctime is the later one.
    """
    database.execute(
        "UPDATE inodes SET size = coalesce(?1, size), blocks = ?2,"
        " mtime_ns = CASE WHEN ?3 > ctime_ns THEN ?3 ELSE mtime_ns END,"
        f" ctime_ns = max(ctime_ns, ?3) WHERE ino = ?4 AND valid_to = {LIVING}",
        (size, state.st_blocks, state.st_mtime_ns, ino),
    )


def _drop_orphans(database: Database) -> None:
    """Destroy files that lost their last name while they were open: nobody has them open now."""
    temporal = Temporal.of(database)
    for (ino,) in database.rows("SELECT ino FROM orphans"):
        with database.transaction():
            for number in temporal.erase_orphan(ino):
                database.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (number,))


def _remove_strays(database: Database, objects: ObjectFiles) -> None:
    """Remove object files without a row.

    Their making was never committed, or a loss of power undid their removal but not its commit.
    """
    known = {row[0] for row in database.rows("SELECT id FROM objects")}
    for number in sorted(objects.present() - known):
        log.info("removed object file %x, which belonged to nothing", number)
        objects.remove(number)
