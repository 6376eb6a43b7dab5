"""The one writer of valid_from and valid_to: how rows are born, change and end.

* A row is *pinned* when the newest snapshot sees it. A change to a pinned row leaves a copy that
  ended at the current epoch, and the living row goes on as born now; any other is updated in place.
* A pinned row that ends stays as a past one; any other is deleted: no snapshot can see it.
* Rows of what lies in clones/ (`ids.in_clones`) are never pinned: snapshots leave them out.

Nothing here opens a transaction; the caller's does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from statefs.ids import LIVING, Epoch, in_clones
from statefs.metadata.connection import Database
from statefs.metadata.inodes import InodeFlag


class RowLife:
    """Birth, change and end of the rows of one versioned table.

    Args:
        table: the table's name.
        key: columns that name a row apart from its lifetime.
        columns: the other columns, without valid_from and valid_to.
    """

    def __init__(self, table: str, key: tuple[str, ...], columns: tuple[str, ...]) -> None:
        everything = (*key, *columns)
        names = ", ".join(f'"{name}"' for name in everything)
        marks = ", ".join("?" * len(everything))
        living = " AND ".join(f"{name} = ?" for name in key) + f" AND valid_to = {LIVING}"
        self.table = table
        self.key = key
        self.columns = columns
        self.born_sql = (
            f"INSERT INTO {table} (valid_to, valid_from, {names}) VALUES ({LIVING}, ?, {marks})"
        )
        self.keep_past_sql = (
            f"INSERT INTO {table} (valid_to, valid_from, {names})"
            f" SELECT ?, valid_from, {names} FROM {table} WHERE {living}"
        )
        assignments = ", ".join(f'"{name}" = ?' for name in columns)
        self.change_sql = f"UPDATE {table} SET valid_from = ?, {assignments} WHERE {living}"
        self.end_sql = f"UPDATE {table} SET valid_to = ? WHERE {living}"
        self.delete_sql = f"DELETE FROM {table} WHERE {living}"
        self.next_end_sql = (
            f"SELECT min(valid_to) FROM {table}"
            f" WHERE valid_to > ? AND valid_to <= ? AND valid_to < {LIVING}"
        )
        self.seen_sql = (
            f"SELECT valid_from, {names} FROM {table}"
            f" WHERE {key[0]} = ?1 AND valid_to > ?2 AND valid_from <= ?2"
        )
        picked = "id" if table == "inline" else ", ".join(key)
        told = {"extents": "object", "inodes": "ino"}.get(table, "0")
        self.forget_sql = (
            f"DELETE FROM {table} WHERE valid_to = ?1 AND ({picked}) IN (SELECT {picked}"
            f" FROM {table} WHERE valid_to = ?1 AND valid_to < {LIVING} AND valid_from > ?2"
            f" LIMIT ?3) RETURNING {told}"
        )


INODES: Final = RowLife(
    "inodes",
    ("ino",),
    (
        "mode",
        "nlink",
        "uid",
        "gid",
        "rdev",
        "size",
        "blocks",
        "atime_ns",
        "mtime_ns",
        "ctime_ns",
        "btime_ns",
        "parent",
        "flags",
    ),
)
ENTRIES: Final = RowLife("entries", ("parent", "name"), ("ino", "cookie"))
XATTRS: Final = RowLife("xattrs", ("ino", "name"), ("value",))
EXTENTS: Final = RowLife("extents", ("ino", "start"), ("end", "object"))
INLINE: Final = RowLife("inline", ("ino",), ("data",))
DIGESTS: Final = RowLife("digests", ("ino",), ("content", "sha256", "blocks"))
VERSIONED: Final = (INODES, ENTRIES, XATTRS, EXTENTS, INLINE, DIGESTS)
KEPT: Final = (
    "(snapshots.state < 2 OR EXISTS (SELECT 1 FROM shared WHERE shared.epoch = snapshots.epoch))"
)
"""Snapshots whose rows stay: of those that are being deleted, the ones that clones share with."""

_KEEP_DIGEST: Final = (
    "INSERT INTO digests (valid_to, valid_from, ino, content, sha256, blocks)"
    " SELECT ?1, valid_from, ino, content, sha256, blocks FROM digests"
    f" WHERE ino = ?2 AND valid_to = {LIVING} AND valid_from <= ?3"
)
_PUT_DIGEST: Final = (
    "INSERT OR REPLACE INTO digests (valid_to, valid_from, ino, content, sha256, blocks)"
    f" VALUES ({LIVING}, ?, ?, ?, ?, ?)"
)
_DROP_DIGEST: Final = f"DELETE FROM digests WHERE ino = ? AND valid_to = {LIVING}"
_DROP_STRAY_DIGEST: Final = (
    f"DELETE FROM digests WHERE ino = ?1 AND valid_to = {LIVING}"
    " AND NOT EXISTS (SELECT 1 FROM inodes WHERE ino = ?1)"
)
_SHARE: Final = (
    "INSERT INTO shared (ino, source, epoch) SELECT c.new, c.old, ? FROM copied c"
    f" CROSS JOIN inodes i ON i.ino = c.new AND i.valid_to = {LIVING}"
    f" WHERE i.size > 0 AND NOT i.flags & {InodeFlag.EXTENTS:d}"
)
_SOUND: Final = (
    "coalesce((SELECT g.sha256 FROM snapshots n CROSS JOIN digests g ON g.ino = {0}.ino"
    " AND g.valid_to > n.epoch AND g.valid_from <= n.epoch WHERE n.epoch >= {0}.valid_from"
    " AND n.epoch < {0}.valid_to AND n.state_digest IS NOT NULL LIMIT 1) = sha256({0}.data), 1)"
)
"""Whether a row of `inline` is what a sealed snapshot has seen; true where none has."""
_SOUND_INLINE: Final = (
    f"SELECT {_SOUND.format('r')}, ino, data FROM inline r"
    " WHERE ino = ?1 AND valid_to > ?2 AND valid_from <= ?2"
)
_COPY_SHARED: Final = (
    "INSERT INTO inline (valid_to, valid_from, ino, data)"
    f" SELECT {LIVING}, ?, s.ino, d.data FROM json_each(?) j CROSS JOIN shared s ON s.ino = j.value"
    " CROSS JOIN inline d ON d.ino = s.source AND d.valid_to > s.epoch AND d.valid_from <= s.epoch"
    f" WHERE {_SOUND.format('d')}"
)
_UNSHARE: Final = "DELETE FROM shared WHERE ino IN (SELECT value FROM json_each(?))"
_DROP_ALL_DIGESTS: Final = (
    "DELETE FROM digests WHERE (ino, valid_to) IN"
    f" (SELECT ino, valid_to FROM digests WHERE valid_to = {LIVING} LIMIT ?) RETURNING 0"
)


class Temporal:
    """Writes versioned rows in the current epoch.

    Args:
        database: the store's database.
        epoch: the current epoch, as read from the database.
        pinned: the newest snapshot's epoch, 0 without any: older rows may not change in place.
    """

    def __init__(self, database: Database, epoch: Epoch, pinned: Epoch) -> None:
        database.connection.create_scalar_function("sha256", _sha256, 1, deterministic=True)
        self._execute = database.execute
        self.epoch = epoch
        self.pinned = pinned

    @classmethod
    def of(cls, database: Database) -> Temporal:
        """Return the writer for a database as its rows are."""
        pinned = database.value(f"SELECT coalesce(max(epoch), 0) FROM snapshots WHERE {KEPT}")
        return cls(database, Epoch(database.store_value("epoch")), Epoch(pinned))

    def pins(self, ino: int, born: int) -> bool:
        """Return whether the newest snapshot sees a living row.

        Args:
            ino: its inode, of an entry the folder: the first column of its key.
            born: its valid_from.
        """
        return born <= self.pinned and not in_clones(ino)

    def born(self, life: RowLife, *values: Any) -> None:
        """Insert a living row; `values` are the key's columns, then the others, in order."""
        self._execute(life.born_sql, (self.epoch, *values))

    def change(
        self, life: RowLife, born: int, key: tuple[Any, ...], columns: tuple[Any, ...]
    ) -> None:
        """Give the living row of `key` new columns.

        Args:
            born: its valid_from; a row of an older epoch leaves its past behind.
            key: the key's columns, in order.
            columns: all other columns, in order.
        """
        if born <= self.pinned and not in_clones(key[0]):
            self._execute(life.keep_past_sql, (self.epoch, *key))
        self._execute(life.change_sql, (self.epoch, *columns, *key))

    def end(self, life: RowLife, born: int, *key: Any) -> None:
        """End the living row of `key`, which was born in epoch `born`."""
        if born <= self.pinned and not in_clones(key[0]):
            self._execute(life.end_sql, (self.epoch, *key))
        else:
            self._execute(life.delete_sql, key)
            # The newest snapshot has been deleted; it may have been sealed with this inode.
            if life is INODES and self.pinned < self.epoch - 1:
                self._execute(_DROP_STRAY_DIGEST, key)

    def end_all(self, life: RowLife, ino: int) -> list[int]:
        """End all living rows of an inode in one table.

        Returns:
            The object files that deleted rows named (extents), else zeros.
        """
        if life is INLINE:
            self.unshare([ino])
        table, named = life.table, "object" if life is EXTENTS else "0"
        cursor = self._execute(
            f"DELETE FROM {table} WHERE ino = ? AND valid_to = {LIVING} AND valid_from > ?"
            f" RETURNING {named}",
            (ino, 0 if in_clones(ino) else self.pinned),
        )
        deleted = [row[0] for row in cursor.fetchall()]
        self._execute(
            f"UPDATE {table} SET valid_to = ? WHERE ino = ? AND valid_to = {LIVING}",
            (self.epoch, ino),
        )
        return deleted

    def erase_since(self, life: RowLife, ino: int, epoch: Epoch) -> list[int]:
        """End all rows of an inode as if that had happened in the earlier epoch `epoch`.

        For a file without a name: what it was after it lost the name, no snapshot can reach.

        Returns:
            The object files that deleted rows named (extents), else zeros.
        """
        if in_clones(ino):
            return self.end_all(life, ino)
        table, named = life.table, "object" if life is EXTENTS else "0"
        cursor = self._execute(
            f"DELETE FROM {table} WHERE ino = ?1 AND valid_to > ?2 AND NOT EXISTS (SELECT 1"
            f" FROM snapshots s WHERE s.epoch >= valid_from AND s.epoch < ?2) RETURNING {named}",
            (ino, epoch),
        )
        deleted = [row[0] for row in cursor.fetchall()]
        self._execute(
            f"UPDATE {table} SET valid_to = ? WHERE ino = ? AND valid_to > ?", (epoch, ino, epoch)
        )
        if life is INODES:
            self._execute(_DROP_STRAY_DIGEST, (ino,))
        return deleted

    def erase_orphan(self, ino: int) -> set[int]:
        """End all that an orphan is and has as of when it lost its last name.

        Returns:
            The object files that deleted rows named.
        """
        (epoch,) = self._execute("SELECT epoch FROM orphans WHERE ino = ?", (ino,)).fetchone()
        for life in (INODES, XATTRS, INLINE):
            self.erase_since(life, ino, epoch)
        objects = set(self.erase_since(EXTENTS, ino, epoch))
        for table in ("orphans", "dirty", "displaced"):
            self._execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))
        return objects

    def bring_back(self, life: RowLife, ino: int, epoch: Epoch) -> bool:
        """Make the living rows of an inode in one table those that a past epoch saw.

        Small content that is damaged does not come back: as a new row it would be taken for good.

        Args:
            epoch: of a snapshot; one taken now pins every living row, so none is lost.

        Returns:
            Whether all of them came back.
        """
        cut = 1 + len(life.key)
        found = self._execute(life.seen_sql, (ino, LIVING - 1)).fetchall()
        now = {row[1:cut]: (row[0], row[cut:]) for row in found}
        query = _SOUND_INLINE if life is INLINE else life.seen_sql
        found = self._execute(query, (ino, epoch)).fetchall()
        then = {
            row[1:cut]: row[cut:]
            for row in found
            if row[0] or now.get(row[1:cut], (0, None))[1] == row[cut:]
        }
        for key, (born, columns) in now.items():
            if key not in then:
                self.end(life, born, *key)
            elif columns != then[key]:
                self.change(life, born, key, then[key])
        for key, columns in then.items():
            if key not in now:
                self.born(life, *key, *columns)
        return len(then) == len(found)

    def copy(self, life: RowLife, epoch: Epoch) -> None:
        """Give every inode in the temporary table `copied` (new, old) the rows of its original.

        What is not in `copied_folders` (old, new) holds no copy. Small content that is damaged is
        not copied (`bring_back`).

        Args:
            epoch: as which the originals are seen.
        """
        names = [f'"{name}"' for name in (*life.key, *life.columns)]
        values = ["c.new" if name == '"ino"' else f"r.{name}" for name in names]
        joined = f"copied c CROSS JOIN {life.table} r ON r.ino = c.old"
        is_sound = _SOUND.format("r") if life is INLINE else "1"
        if life is INODES:
            values[names.index('"parent"')] = (
                "coalesce((SELECT new FROM copied_folders WHERE old = r.parent), 0)"
            )
        elif life is ENTRIES:
            values[0] = "p.new"
            joined = (
                "copied c CROSS JOIN entries r INDEXED BY entries_ino ON r.ino = c.old"
                " CROSS JOIN copied_folders p ON p.old = r.parent"
            )
        self._execute(
            f"INSERT INTO {life.table} (valid_to, valid_from, {', '.join(names)})"
            f" SELECT {LIVING}, ?2, {', '.join(values)} FROM {joined}"
            f" WHERE r.valid_to > ?1 AND r.valid_from <= ?1 AND {is_sound}",
            (epoch, self.epoch),
        )

    def share(self, epoch: Epoch) -> None:
        """Let inodes in the temporary table `copied` share the small content of their originals.

        Args:
            epoch: of the snapshot as which the originals are seen.
        """
        self._execute(_SHARE, (epoch,))

    def copy_shared(self, epoch: Epoch, limit: int) -> int:
        """Give inodes rows of their own of what they share with a snapshot, if it is not damaged.

        Args:
            limit: how many inodes.

        Returns:
            How many there were.
        """
        chosen = self._execute("SELECT ino FROM shared WHERE epoch = ? LIMIT ?", (epoch, limit))
        inos = [row[0] for row in chosen.fetchall()]
        self._execute(_COPY_SHARED, (self.epoch, json.dumps(inos)))
        self.unshare(inos)
        return len(inos)

    def unshare(self, inos: Sequence[int]) -> None:
        """Forget what inodes share with snapshots, if they lie in clones."""
        cloned = [ino for ino in inos if in_clones(ino)]
        if cloned:
            self._execute(_UNSHARE, (json.dumps(cloned),))

    def delete_cloned(self, life: RowLife, inos: Sequence[int]) -> list[int]:
        """Delete all rows of inodes of a clone in one table, of `ENTRIES` those that lead to them.

        Returns:
            The object files that they named (extents), else zeros.
        """
        if life is INLINE:
            self.unshare(inos)
        cursor = self._execute(
            f"DELETE FROM {life.table} WHERE ino IN (SELECT value FROM json_each(?))"
            f" RETURNING {'object' if life is EXTENTS else '0'}",
            (json.dumps(inos),),
        )
        return [row[0] for row in cursor.fetchall()]

    def put_digest(
        self, epoch: Epoch, before: int, ino: int, values: tuple[bytes | None, ...] | None
    ) -> None:
        """Write what an inode hashes to from the snapshot on that is being sealed.

        Rows of `digests` live in the epochs of sealed snapshots: they are written when one is
        sealed, oldest first, not when a file changes.

        Args:
            epoch: of the snapshot being sealed.
            before: of the newest snapshot before it, 0 without any: it may see the row there is.
            values: content, sha256, blocks; None for what the snapshot does not have.
        """
        self._execute(_KEEP_DIGEST, (epoch, ino, before))
        if values is None:
            self._execute(_DROP_DIGEST, (ino,))
        else:
            self._execute(_PUT_DIGEST, (epoch, ino, *values))

    def drop_stray_digests(self, inos: Iterable[int]) -> None:
        """Delete the living digests of inodes that are gone, now and in every snapshot."""
        for ino in inos:
            self._execute(_DROP_STRAY_DIGEST, (ino,))

    def drop_digests(self, limit: int) -> int:
        """Delete up to `limit` living digests, when no snapshot is left; return how many."""
        return len(self._execute(_DROP_ALL_DIGESTS, (limit,)).fetchall())

    def write_next_epoch(self) -> None:
        """Write the next epoch's number; in a snapshot's transaction."""
        self._execute("UPDATE store SET value = ? WHERE key = 'epoch'", (self.epoch + 1,))

    def enter_next_epoch(self) -> None:
        """After that transaction's commit: rows born from now on belong to the next epoch."""
        self.pinned = self.epoch
        self.epoch = Epoch(self.epoch + 1)

    def forget(
        self, life: RowLife, span: tuple[int, int, int], limit: Callable[[], int]
    ) -> Iterator[list[int]]:
        """Delete the rows of one table that only one snapshot saw, step by step.

        A step looks at no row that stays.

        Args:
            span: epochs: of the newest older snapshot that is kept (what was born by then stays),
                of the snapshot, and of the oldest newer one that is kept, or the current one (what
                ends later stays).
            limit: says how many rows the next step may delete; it looks at no more epochs, either.

        Yields:
            For each row just deleted the object file it named (extents), its inode (inodes), else
            0.
        """
        before, position, until = span
        deleted: list[int] = []
        ends, most = 0, limit()
        while end := self._execute(life.next_end_sql, (position, until)).fetchone()[0]:
            wanted = most - len(deleted)
            rows = self._execute(life.forget_sql, (end, before, wanted)).fetchall()
            deleted += [row[0] for row in rows]
            ends += 1
            if len(rows) < wanted:
                position = end
            if len(rows) == wanted or ends == most:
                yield deleted
                deleted, ends, most = [], 0, limit()
        if deleted:
            yield deleted


def _sha256(*data: Any) -> bytes:
    return hashlib.sha256(*data).digest()
