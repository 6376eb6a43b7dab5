"""Making a store that was not closed cleanly consistent again, before anyone sees it.

After a kill -9 every committed row is there; what may lag behind are sizes and times of files that
were being written (their object files know), unfinished saves and deletes, files without a name,
and an object file made by a transaction that never came.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from statefs.content.objects import ObjectFiles
from statefs.durable import sync_filesystem
from statefs.ids import FIRST_FREE_INO, LIVING, Epoch
from statefs.metadata.connection import Database
from statefs.metadata.inodes import living_totals
from statefs.metadata.temporal import EXTENTS, INLINE, INODES, XATTRS, Temporal
from statefs.snapshots.catalog import DELETING, PENDING
from statefs.volume.table import IDS_RESERVED

log = logging.getLogger(__name__)

_TAIL: Final = (
    f'SELECT object FROM extents WHERE ino = ? AND valid_to = {LIVING} AND "end" = {LIVING}'
)


def recover(database: Database, objects: ObjectFiles, root: Path) -> None:
    """Repair what an unclean end may have left; harmless after a clean one.

    Args:
        root: the store's folder. What the earlier process wrote there is made durable, for it may
            not have been, and nobody knows any more for which files.

    Raises:
        OSError: an object file cannot be read, or the disk refuses a sync.
    """
    with database.transaction():
        database.execute(
            "UPDATE snapshots SET state = ?, label = NULL WHERE state = ?", (DELETING, PENDING)
        )
    _recover_sizes(database, objects)
    _drop_orphans(database)
    _remove_strays(database, objects)
    files, size = living_totals(database)
    with database.transaction():
        for key, value in (("files", files), ("bytes", size)):
            database.execute("UPDATE store SET value = ? WHERE key = ?", (value, key))
    sync_filesystem(root)
    database.sync()


def _temporal(database: Database) -> Temporal:
    epoch = database.value("SELECT value FROM store WHERE key = 'epoch'")
    pinned = database.value(
        "SELECT coalesce(max(epoch), 0) FROM snapshots WHERE state < ?", (DELETING,)
    )
    return Temporal(database, Epoch(epoch), Epoch(pinned))


def _recover_sizes(database: Database, objects: ObjectFiles) -> None:
    """Take sizes and times of files that were being written from their object files."""
    epoch = _temporal(database).epoch
    for (ino,) in database.rows("SELECT ino FROM dirty"):
        number = database.value(
            "SELECT id FROM objects WHERE ino = ? AND epoch = ? ORDER BY id DESC", (ino, epoch)
        )
        size = database.value(
            f"SELECT size FROM inodes WHERE ino = ? AND valid_to = {LIVING}", (ino,)
        )
        if number is not None and size is not None:
            try:
                state = objects.stat(number)
            except FileNotFoundError:
                log.error("the object file %x of inode %d is missing", number, ino)
                continue
            if database.value(_TAIL, (ino,)) == number:
                size = state.st_size
            elif state.st_size > size:
                objects.truncate(number, size)
            with database.transaction():
                # A time set by utimens after the last write stays: its ctime is the later one.
                # In place: a dirty file's living row was born after the newest snapshot.
                database.execute(
                    "UPDATE inodes SET size = ?1, blocks = ?2,"
                    " mtime_ns = CASE WHEN ?3 > ctime_ns THEN ?3 ELSE mtime_ns END,"
                    f" ctime_ns = max(ctime_ns, ?3) WHERE ino = ?4 AND valid_to = {LIVING}",
                    (size, state.st_blocks, state.st_mtime_ns, ino),
                )
        with database.transaction():
            database.execute("DELETE FROM dirty WHERE ino = ?", (ino,))


def _drop_orphans(database: Database) -> None:
    """Destroy files that lost their last name while they were open: nobody has them open now."""
    temporal = _temporal(database)
    for ino, epoch in database.rows("SELECT ino, epoch FROM orphans"):
        with database.transaction():
            for life in (INODES, XATTRS, INLINE):
                temporal.erase_since(life, ino, epoch)
            for number in set(temporal.erase_since(EXTENTS, ino, epoch)):
                database.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (number,))
            database.execute("DELETE FROM orphans WHERE ino = ?", (ino,))


def _remove_strays(database: Database, objects: ObjectFiles) -> None:
    """Remove object files whose making was never committed: they have numbers not yet used.

    Such a number is the last that was handed out before the end: it lies in the last reservation,
    or just behind it when the reservation was part of what was not committed.
    """
    newest = database.value("SELECT max(id) FROM objects") or FIRST_FREE_INO - 1
    reserved = database.value("SELECT value FROM store WHERE key = 'next_id'")
    for number in range(max(newest + 1, reserved - IDS_RESERVED), reserved + IDS_RESERVED):
        if objects.exists(number):
            log.info("removed object file %x, whose making was never committed", number)
            objects.remove(number)
