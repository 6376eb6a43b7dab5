"""Bringing an older store to the current format: a backup of meta.db, then one transaction.

Each step takes the database from one format version to the next and stamps it in the same
transaction. A step is written in plain SQL of its time: what the program does later is not its
business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from statefs.errors import CorruptStore
from statefs.layout import StoreLayout
from statefs.maintenance import steps as steps_of
from statefs.maintenance.backups import copy_database
from statefs.metadata.connection import Database
from statefs.metadata.schema import FORMAT_VERSION

log = logging.getLogger(__name__)

Step = Callable[[Database], None]

_DIGESTS: Final = """CREATE TABLE digests (
    ino INTEGER NOT NULL, valid_to INTEGER NOT NULL, valid_from INTEGER NOT NULL,
    content BLOB, sha256 BLOB NOT NULL, blocks BLOB,
    PRIMARY KEY (ino, valid_to)) WITHOUT ROWID"""
_MANIFESTS: Final = """UPDATE snapshots SET volumes = (
    SELECT json_group_array(json_object('name', value, 'consistency', 'crash-consistent',
        'format', 'files', 'bytes', NULL, 'digest', NULL)) FROM json_each(snapshots.volumes))"""
_CLONES: Final = """INSERT INTO inodes (ino, valid_to, valid_from, mode, nlink, uid, gid, rdev,
        size, blocks, atime_ns, mtime_ns, ctime_ns, btime_ns, parent, flags)
    SELECT column1, i.valid_to, s.value, 0x41ed, 2, i.uid, i.gid, 0, 0, 0,
        i.btime_ns, i.btime_ns, i.btime_ns, i.btime_ns, column1, 0
    FROM inodes i, store s, (VALUES (17), (18))
    WHERE i.ino = 16 AND i.valid_to = 9223372036854775807 AND s.key = 'epoch'"""
_TO_2: Final = (
    _DIGESTS,
    "CREATE INDEX digests_ended ON digests (valid_to) WHERE valid_to < 9223372036854775807",
    (
        "CREATE INDEX inodes_born ON inodes (valid_from)"
        " WHERE valid_to = 9223372036854775807 AND ino < 549755813888"
    ),
    "CREATE INDEX entries_ino ON entries (ino, valid_to)",
    "ALTER TABLE snapshots ADD COLUMN state_digest TEXT",
    "ALTER TABLE snapshots ADD COLUMN operation TEXT",
    "ALTER TABLE snapshots ADD COLUMN pin TEXT",
    _MANIFESTS,
    _CLONES,
)


def _to_2(database: Database) -> None:
    """Digests, pins, what snapshots were taken for, the way from a file to its names, clones/."""
    for statement in _TO_2:
        database.execute(statement)


def _to_3(database: Database) -> None:
    """Since when past rows were true, in their indexes; a column that nothing asks for goes."""
    for table in ("inodes", "entries", "xattrs", "extents", "inline", "digests"):
        database.execute(f"DROP INDEX {table}_ended")
        database.execute(
            f"CREATE INDEX {table}_ended ON {table} (valid_to, valid_from)"
            " WHERE valid_to < 9223372036854775807"
        )
    database.execute("ALTER TABLE snapshots DROP COLUMN next_id")


def _to_4(database: Database) -> None:
    """Small content that files of clones share with a snapshot."""
    database.execute(
        "CREATE TABLE shared"
        " (ino INTEGER PRIMARY KEY, source INTEGER NOT NULL, epoch INTEGER NOT NULL)"
    )
    database.execute("CREATE INDEX shared_epoch ON shared (epoch)")


def _to_5(database: Database) -> None:
    """What held ranges of files before bytes that are not durable yet."""
    database.execute(
        "CREATE TABLE displaced (ino INTEGER NOT NULL, object INTEGER NOT NULL,"
        ' start INTEGER NOT NULL, "end" INTEGER NOT NULL, old INTEGER NOT NULL,'
        " PRIMARY KEY (ino, object, start)) WITHOUT ROWID"
    )


STEPS: Final[Mapping[int, Step]] = {1: _to_2, 2: _to_3, 3: _to_4, 4: _to_5}
"""Format version -> what turns it into the next one."""


def migrate(
    layout: StoreLayout, steps: Mapping[int, Step] = STEPS, wanted: int = FORMAT_VERSION
) -> None:
    """Bring a store to format `wanted`, after a backup; nothing to do for a current one.

    Raises:
        NewerStore: the store is newer than this program.
        CorruptStore: no step leads on from its version.
    """
    database = Database(layout.meta_db, newest=wanted)
    try:
        version = database.format_version
        if version < wanted:
            path = steps_of.run(copy_database(layout))
            log.info("backed the database up to %s", path.name)
        while version < wanted:
            step = steps.get(version)
            if step is None:
                raise CorruptStore(f"the store has format {version}, which no statefs wrote")
            with database.transaction():
                step(database)
                database.execute(f"PRAGMA user_version = {version + 1}")
            version += 1
            log.info("the store is now in format %d", version)
    finally:
        database.close()
