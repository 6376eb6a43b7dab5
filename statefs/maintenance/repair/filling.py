"""Filling the gaps of a damaged database with rows of a sound copy of it.

What the database still answers for it knows best. So a row of the copy counts only where a number
could not be read (`salvage.Gap`), and only for as long as it is known to be true:

* at the moments that were past when the copy was made: the past does not change;
* after that what belongs to an inode, as long as the inode has not changed: each change of content
  or attributes gives it another ctime;
* a name, if its inode has no other one by now and says that it lies in this folder;
* an inode that something leads to still. It may have changed, so it is noted as `older`.

What has changed is lost. Where it was small, what it was before goes to lost+found (`stale`). Where
only a part of an inode's rows may have been read, it is noted since when (`unknown`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import apsw

from statefs.ids import LIVING
from statefs.maintenance.repair.salvage import TABLES, Gap
from statefs.maintenance.repair.trees import ROOTS
from statefs.metadata.inodes import InodeFlag
from statefs.snapshots.catalog import Snapshot

_FOLDER: Final = "i.mode & 0xF000 = 0x4000"
_OTHER_NAMES: Final = (
    f"SELECT count(*) FROM main.entries n WHERE n.ino = c.ino AND n.valid_to = {LIVING}"
)
_NAMED: Final = (
    f"EXISTS (SELECT 1 FROM main.inodes i WHERE i.ino = c.ino AND i.valid_to = {LIVING} AND CASE"
    f" WHEN {_FOLDER} OR i.nlink = 1 THEN i.parent IN (c.parent, 0) AND ({_OTHER_NAMES}) = 0"
    f" ELSE i.nlink > ({_OTHER_NAMES}) END)"
)
"""Whether a living entry `c` of the copy is one still."""
_UNCHANGED: Final = (
    "SELECT max(s.valid_to) FROM main.inodes s CROSS JOIN copy.inodes k ON k.ino = s.ino"
    f" AND k.valid_to = {LIVING} AND (k.ctime_ns, k.mtime_ns, k.size, k.flags) ="
    " (s.ctime_ns, s.mtime_ns, s.size, s.flags) WHERE s.ino = c.ino"
    " AND NOT EXISTS (SELECT 1 FROM main.dirty d WHERE d.ino = s.ino)"
)
"""Until when the inode of a living row `c` of the copy has been as it was."""
_KEYS: Final = {
    "inodes": ("ino",), "entries": ("parent", "name"), "xattrs": ("ino", "name"),
    "extents": ("ino", "start"), "inline": ("ino",), "digests": ("ino",),
}  # fmt: skip
_CONSTANT: Final = ("uuid", "lineage", "app_id", "created_ns")
"""Of the table `store`: never another than when the store was made."""


_KINDS: Final = {"extents": InodeFlag.EXTENTS, "xattrs": InodeFlag.XATTRS}
"""Tables of several rows for an inode, and the flag of one that has some: a part may be missing."""


def note_unknown(plain: apsw.Connection, gaps: Collection[Gap]) -> None:
    """Note inodes of which some rows may not have been read, in the table `unknown`."""
    with plain:
        for gap in gaps:
            if gap.table in _KINDS:
                plain.execute(
                    "INSERT OR IGNORE INTO main.unknown SELECT ?, i.ino, 0 FROM main.inodes i"
                    " WHERE i.ino BETWEEN ? AND ? AND i.flags & ?",
                    (gap.table, gap.first, gap.last, int(_KINDS[gap.table])),
                )


def fill(
    plain: apsw.Connection, gaps: Collection[Gap], copy: Path, snapshots: Collection[str]
) -> bool:
    """Fill gaps; return whether there was anything to fill them with.

    Args:
        plain: what could be read of the damaged database, indexed.
        copy: a plain database with all rows of the copy, indexed; nobody has it open.
        snapshots: the names of those there are, by their documents.
    """
    plain.execute("ATTACH ? AS copy", (str(copy),))
    try:
        with plain:
            filling = _Filling(plain, gaps)
            filling.run(snapshots)
        return filling.taken > 0
    finally:
        plain.execute("DETACH copy")


class _Filling:
    """One run of `fill`; `taken` counts the rows that came from the copy."""

    def __init__(self, plain: apsw.Connection, gaps: Collection[Gap]) -> None:
        self._plain = plain
        self._all_gaps = gaps
        self._gaps: dict[str, list[Gap]] = defaultdict(list)
        for gap in gaps:
            self._gaps[gap.table].append(gap)
        self._epoch = self._number("SELECT value FROM copy.store WHERE key = 'epoch'")
        self._sealed = self._number(
            "SELECT max(epoch) + 1 FROM copy.snapshots WHERE state_digest IS NOT NULL"
        )
        self.taken = 0

    def _number(self, query: str) -> int:
        return int(next(self._plain.execute(query), (0,))[0] or 0)

    def run(self, snapshots: Collection[str]) -> None:
        """Fill all gaps: inodes first, for what they say decides on the rest."""
        self._note_older("inodes", 1, "")
        self._take("inodes", "c.valid_to")
        note_unknown(self._plain, self._all_gaps)
        self._note_older("entries", 0, f" AND {_NAMED}")
        self._take("entries", self._until(f"CASE WHEN {_NAMED} THEN {LIVING} END"))
        self._drop_nameless()
        self._settle_unknown()
        for table in ("inline", "extents", "xattrs"):
            self._take(table, self._until(f"({_UNCHANGED} AND s.valid_to > c.valid_from)"))
        self._take("digests", f"min(c.valid_to, {self._sealed})")
        self._trust_sizes()
        self._keep_stale()
        self._take_lists(snapshots)

    def _until(self, otherwise: str) -> str:
        """Return SQL for the end of a row of the copy: the living were true until it was made."""
        return (
            f"CASE WHEN c.valid_to < {LIVING} THEN c.valid_to"
            f" ELSE coalesce({otherwise}, {self._epoch}) END"
        )

    def _each_gap(self, table: str, statement: str) -> int:
        """Run a statement for each gap of a table; return how many rows that changed."""
        before = self._plain.total_changes()
        for gap in self._gaps[table]:
            self._plain.execute(statement, {"first": gap.first, "last": gap.last})
        return self._plain.total_changes() - before

    def _take(self, table: str, until: str) -> None:
        """Take rows of a versioned table, unless one of their key is true at the same time."""
        names = [f'c."{each}"' if each != "valid_to" else until for each in TABLES[table].columns]
        same = " AND ".join(f's."{each}" = c."{each}"' for each in _KEYS[table])
        self.taken += self._each_gap(
            table,
            f"INSERT INTO main.{table} SELECT {', '.join(names)} FROM copy.{table} c"
            f" WHERE c.{TABLES[table].number} BETWEEN :first AND :last AND c.valid_from < {until}"
            f" AND NOT EXISTS (SELECT 1 FROM main.{table} s WHERE {same}"
            f" AND s.valid_to > c.valid_from AND s.valid_from < {until})",
        )

    def _note_older(self, table: str, is_inode: int, condition: str) -> None:
        """Note the inodes of living rows that are about to be taken."""
        same = " AND ".join(f"s.{each} = c.{each}" for each in _KEYS[table])
        self._each_gap(
            table,
            f"INSERT OR IGNORE INTO main.older SELECT c.ino, {self._epoch}, {is_inode}"
            f" FROM copy.{table} c"
            f" WHERE c.{TABLES[table].number} BETWEEN :first AND :last AND c.valid_to = {LIVING}"
            f" AND NOT EXISTS (SELECT 1 FROM main.{table} s WHERE {same}"
            f" AND s.valid_to = {LIVING}){condition}",
        )

    def _drop_nameless(self) -> None:
        """End inodes of the copy that nothing leads to any more: they have been removed since."""
        rows: list[tuple[Any, ...]] = self._plain.execute(
            f"DELETE FROM main.older WHERE ino NOT IN {ROOTS} AND NOT EXISTS"
            f" (SELECT 1 FROM main.entries n WHERE n.valid_to = {LIVING}"
            " AND older.ino IN (n.ino, n.parent)) RETURNING ino"
        ).fetchall()
        is_living = f"ino = ? AND valid_to = {LIVING}"
        query = f"DELETE FROM main.inodes WHERE {is_living} AND valid_from >= {self._epoch}"
        self._plain.executemany(query, rows)
        query = f"UPDATE main.inodes SET valid_to = {self._epoch} WHERE {is_living}"
        self._plain.executemany(query, rows)

    def _settle_unknown(self) -> None:
        """Find out since when rows may be missing, now that the copy has them as they were."""
        mixed = (
            "c.kind = 'extents' AND c.ino IN (SELECT ino FROM main.older WHERE is_sizeless)"
            " AND EXISTS (SELECT 1 FROM main.extents x WHERE x.ino = c.ino"
            f" AND x.valid_to = {LIVING})"
        )
        self._plain.execute(
            f"UPDATE main.unknown AS c SET since = CASE WHEN {mixed} THEN {self._epoch}"
            f" ELSE coalesce(({_UNCHANGED}), {self._epoch}) END"
        )
        self._plain.execute(f"DELETE FROM main.unknown WHERE since = {LIVING}")

    def _trust_sizes(self) -> None:
        """Let the sizes of the copy count where the content is where it was, holes at its end too.

        Of all other inodes of the copy the content says how large they are (histories.py).
        """
        extents = (
            'SELECT t.start, t."end", t.object FROM {0}.extents t WHERE t.ino = older.ino'
            f" AND t.valid_to = {LIVING}"
        )
        main, copy = extents.format("main"), extents.format("copy")
        self._plain.execute(
            "UPDATE main.older SET is_sizeless = 0 WHERE EXISTS (SELECT 1 FROM main.inodes i"
            f" WHERE i.ino = older.ino AND i.valid_to = {LIVING}"
            f" AND i.flags & {InodeFlag.EXTENTS:d})"
            f" AND NOT EXISTS ({main} EXCEPT {copy}) AND NOT EXISTS ({copy} EXCEPT {main})"
            f' AND NOT EXISTS ({main} AND t."end" = {LIVING}) AND NOT EXISTS'
            f" (SELECT 1 FROM main.inline d WHERE d.ino = older.ino AND d.valid_to = {LIVING})"
        )

    def _keep_stale(self) -> None:
        """Keep small content that is not what a living file has now, which is lost."""
        self._each_gap(
            "inline",
            "INSERT OR IGNORE INTO main.stale SELECT c.ino, c.data FROM copy.inline c"
            f" WHERE c.id BETWEEN :first AND :last AND c.valid_to = {LIVING} AND NOT EXISTS"
            f" (SELECT 1 FROM main.inline s WHERE s.ino = c.ino AND s.valid_to = {LIVING})"
            " AND EXISTS (SELECT 1 FROM main.inodes i WHERE i.ino = c.ino"
            f" AND i.valid_to = {LIVING} AND NOT i.flags & {InodeFlag.EXTENTS:d})",
        )

    def _take_lists(self, snapshots: Collection[str]) -> None:
        """Take what has no lifetime: of snapshots those alone that have not been deleted since."""
        columns = ", ".join(f'c."{name}"' for name in Snapshot._fields)
        known = json.dumps(sorted(snapshots))
        for gap in self._gaps["snapshots"]:
            self._plain.execute(
                f"INSERT INTO main.snapshots SELECT {columns} FROM copy.snapshots c WHERE c.id"
                " BETWEEN ? AND ? AND c.name IN (SELECT value FROM json_each(?))"
                " AND NOT EXISTS (SELECT 1 FROM main.snapshots s WHERE s.epoch = c.epoch)",
                (gap.first, gap.last, known),
            )
            self.taken += self._plain.changes()
        self.taken += self._each_gap(
            "objects",
            "INSERT INTO main.objects SELECT c.id, c.ino, c.epoch FROM copy.objects c"
            " WHERE c.id BETWEEN :first AND :last"
            " AND NOT EXISTS (SELECT 1 FROM main.objects s WHERE s.id = c.id)",
        )
        self.taken += self._each_gap(
            "shared",
            "INSERT INTO main.shared SELECT c.ino, c.source, c.epoch FROM copy.shared c"
            f" WHERE c.ino BETWEEN :first AND :last AND ({_UNCHANGED}) = {LIVING}",
        )
        if self._gaps["store"]:
            self._plain.execute(
                "INSERT INTO main.store SELECT c.key, c.value FROM copy.store c"
                f" WHERE c.key IN {_CONSTANT}"
                " AND NOT EXISTS (SELECT 1 FROM main.store s WHERE s.key = c.key)"
            )
