"""The tables of meta.db: the canonical reference for what the store's database holds.

Every versioned row says for how long it was true: from epoch `valid_from` (included) until epoch
`valid_to` (excluded). A living row has `valid_to = 9223372036854775807` (`ids.LIVING`). A snapshot
of epoch e sees exactly the rows with `valid_from <= e < valid_to`. Versions of one key never
overlap, so the first row of a key with `valid_to > e` is the only one that can be visible at e:
a primary key that ends in `valid_to` finds the living row and any past one in a single seek, and a
long history costs `current/` nothing (docs/decisions/0001-one-key-for-past-and-present.md).

Only `metadata/temporal.py` writes `valid_from` and `valid_to`. Times are nanoseconds since
1970-01-01 UTC.
"""

from __future__ import annotations

from typing import Final

import apsw

from statefs.ids import CLONE_BIT, LIVING

APPLICATION_ID: Final = 0x53544653
"""PRAGMA application_id of a statefs database: "STFS"."""
FORMAT_VERSION: Final = 5
"""PRAGMA user_version: the version of this schema and of the whole on-disk format."""
PENDING: Final = 0
"""The state of a snapshot that is being taken: not shown, dropped at recovery."""
COMPLETE: Final = 1
"""The state of a snapshot that is shown."""
DELETING: Final = 2
"""The state of a snapshot whose rows go: not shown, finished at recovery."""
PAGE_BYTES: Final = 4096
"""SQLite's page: the unit of the host's page cache, so a commit writes no more than it must."""

_TABLES: Final = (
    # One value for each fact about the store as a whole: `uuid` and `lineage` (text), `app_id`
    # (text or null), `created_ns`, `epoch` (the current one, from 1), `next_id` (no number from
    # here on has been handed out), `last_slot` (the `id` last given to a snapshot),
    # `last_modified_ns` (when the list of snapshots last changed), `clean` (1 after a clean close,
    # else 0), `boot_id` (text: in which run of the machine the store was opened last), `files` and
    # `bytes` (regular files of current/ and their sizes; exact only while `clean` is 1),
    # `current_as` (text or null: what current/ was after the last save or restore, a snapshot's
    # UUID or a state digest) and `last_operation` (JSON: `documents.LastOperation`).
    "CREATE TABLE store (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # A file, folder, link or device. `mode` holds type and permissions as stat(2) does; `nlink`
    # is exact, 0 for a file that is unlinked and still open; `size` in bytes, of a folder 0;
    # `blocks` in units of 512 bytes; `parent` is the folder that holds it, of a file with several
    # names the one where it was named last (0 when that name is gone); a root holds itself;
    # `flags` says which kinds of extended attributes exist and where the content lies
    # (metadata/inodes.py, `InodeFlag`). Rows of what lies in clones/ (`ids.in_clones`) change in
    # place and are deleted, in each table: no snapshot sees them, whatever `valid_from` says.
    """CREATE TABLE inodes (
        ino INTEGER NOT NULL, valid_to INTEGER NOT NULL, valid_from INTEGER NOT NULL,
        mode INTEGER NOT NULL, nlink INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
        rdev INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
        atime_ns INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        btime_ns INTEGER NOT NULL, parent INTEGER NOT NULL, flags INTEGER NOT NULL,
        PRIMARY KEY (ino, valid_to)) WITHOUT ROWID""",
    # A name in a folder. `cookie` orders a listing: it is the entry's own for life, kept when a
    # rename puts another file under the name, so a listing that goes on sees each entry once.
    """CREATE TABLE entries (
        parent INTEGER NOT NULL, name BLOB NOT NULL, valid_to INTEGER NOT NULL,
        valid_from INTEGER NOT NULL, ino INTEGER NOT NULL, cookie INTEGER NOT NULL,
        PRIMARY KEY (parent, name, valid_to)) WITHOUT ROWID""",
    # An extended attribute; POSIX ACLs are the attributes system.posix_acl_access and _default in
    # the kernel's own byte form.
    """CREATE TABLE xattrs (
        ino INTEGER NOT NULL, name BLOB NOT NULL, valid_to INTEGER NOT NULL,
        valid_from INTEGER NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (ino, name, valid_to)) WITHOUT ROWID""",
    # Where the bytes [start, "end") of a file lie: at the same offsets of object file `object`.
    # Ranges without a row read as zeros. "end" may be LIVING: to the end of the file, wherever
    # that is, so that appends need no change here; such an object is exactly as long as the file
    # for as long as it may be written.
    """CREATE TABLE extents (
        ino INTEGER NOT NULL, start INTEGER NOT NULL, valid_to INTEGER NOT NULL,
        valid_from INTEGER NOT NULL, "end" INTEGER NOT NULL, object INTEGER NOT NULL,
        PRIMARY KEY (ino, start, valid_to)) WITHOUT ROWID""",
    # The whole content of a small file, or the target of a symbolic link.
    """CREATE TABLE inline (
        id INTEGER PRIMARY KEY, ino INTEGER NOT NULL, valid_to INTEGER NOT NULL,
        valid_from INTEGER NOT NULL, data BLOB NOT NULL)""",
    # A file or link of a clone whose small content is still what inode `source` held in `epoch`,
    # that of a snapshot; it has no row in `inline` then. Written to, it gets one; and all
    # get theirs when the snapshot is deleted (maintenance/gc.py); until then its rows stay.
    """CREATE TABLE shared (
        ino INTEGER PRIMARY KEY, source INTEGER NOT NULL, epoch INTEGER NOT NULL)""",
    # What a file's content or a folder's whole subtree hashes to, known for the snapshots that are
    # sealed (maintenance/sealing.py). `content` (16 bytes, null for inline content and folders)
    # names the ranges of objects that were hashed, so that the same ones are not read again;
    # `sha256` 32 bytes; `blocks` the BLAKE3 of each block of the content, null where one is all.
    """CREATE TABLE digests (
        ino INTEGER NOT NULL, valid_to INTEGER NOT NULL, valid_from INTEGER NOT NULL,
        content BLOB, sha256 BLOB NOT NULL, blocks BLOB,
        PRIMARY KEY (ino, valid_to)) WITHOUT ROWID""",
    # An object file, and the file and epoch it was made for: it may be written only in that epoch.
    """CREATE TABLE objects (
        id INTEGER PRIMARY KEY, ino INTEGER NOT NULL, epoch INTEGER NOT NULL)""",
    # A snapshot. `id` is its number, from which its two views follow (snapshots/views.py); `epoch`
    # the epoch it shows; `state` 0 pending (not shown, dropped at recovery), 1 complete, 2 being
    # deleted (not shown, finished at recovery); `label` the name given by mkdir or null; `labels`
    # JSON; `volumes` JSON, the volumeManifests of its metadata.json; `state_digest` null until it
    # is sealed; `operation` JSON or null, the restore or the command it was taken for; `pin` JSON
    # or null, who forbids its deletion, why and until when.
    """CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL UNIQUE, state INTEGER NOT NULL,
        uuid TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, label TEXT UNIQUE,
        created_ns INTEGER NOT NULL, parent_uuid TEXT, reason TEXT NOT NULL, message TEXT NOT NULL,
        labels TEXT NOT NULL, app_version TEXT NOT NULL, files INTEGER NOT NULL,
        bytes INTEGER NOT NULL, volumes TEXT NOT NULL, state_digest TEXT, operation TEXT,
        pin TEXT)""",
    # Files whose size and times are newer in memory than in `inodes`: after a crash they are
    # taken from the object file. A row is committed before the first such write is acknowledged.
    "CREATE TABLE dirty (ino INTEGER PRIMARY KEY)",
    # What the bytes [start, "end") of a file were before `object` got them, which may not be
    # durable yet: they lay in object `old`, or were zeros (0). The row comes with the extent and
    # goes when the bytes are durable; after a loss of power recovery puts back what was.
    """CREATE TABLE displaced (
        ino INTEGER NOT NULL, object INTEGER NOT NULL, start INTEGER NOT NULL,
        "end" INTEGER NOT NULL, old INTEGER NOT NULL,
        PRIMARY KEY (ino, object, start)) WITHOUT ROWID""",
    # Files without a name that a program may still have open, and the epoch that took the name.
    "CREATE TABLE orphans (ino INTEGER PRIMARY KEY, epoch INTEGER NOT NULL)",
    # Object files that may hold ranges nothing refers to, any more or (a merge under way) yet:
    # looked at by gc, then removed.
    "CREATE TABLE garbage (object INTEGER PRIMARY KEY)",
)

_INDEXES: Final = (
    # Listing a living folder; listing a past one adds the ended rows.
    f"CREATE INDEX entries_living ON entries (parent, cookie) WHERE valid_to = {LIVING}",
    f"CREATE INDEX entries_past ON entries (parent, cookie) WHERE valid_to < {LIVING}",
    # What was born in which epoch: with what ended, the work of telling two moments apart.
    # Clones are in no snapshot: that a large one was made costs nobody else anything.
    (
        "CREATE INDEX inodes_born ON inodes (valid_from)"
        f" WHERE valid_to = {LIVING} AND ino < {CLONE_BIT}"
    ),
    # The names of a file: for paths of what changed, and for whatever has several.
    "CREATE INDEX entries_ino ON entries (ino, valid_to)",
    "CREATE INDEX inline_ino ON inline (ino, valid_to)",
    "CREATE INDEX shared_epoch ON shared (epoch)",
    "CREATE INDEX extents_object ON extents (object)",
    "CREATE INDEX objects_ino ON objects (ino, epoch)",
    # What ended in which epoch: the work of telling two snapshots apart. And since when it was
    # true: that of deleting one, which only looks at what no older snapshot sees.
    *(
        (f"CREATE INDEX {table}_ended ON {table} (valid_to, valid_from) WHERE valid_to < {LIVING}")
        for table in ("inodes", "entries", "xattrs", "extents", "inline", "digests")
    ),
)


def create_tables(connection: apsw.Connection) -> None:
    """Make the tables of an empty database and stamp it with its format version."""
    for statement in (*_TABLES, *_INDEXES):
        connection.execute(statement)
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", FORMAT_VERSION)
