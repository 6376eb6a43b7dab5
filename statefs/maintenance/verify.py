"""Checking a store against the numbered rules of docs/on-disk-format.md. Reads only.

Each rule is one `check_*` function over one read transaction, so that a mount may go on meanwhile.
What is found is looked for once more in a second transaction: a save or a deletion under way may
look like damage for a moment, real damage stays.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

import apsw
import msgspec

from statefs.errors import PosixError
from statefs.ids import LIVING, TREE_ROOT
from statefs.layout import StoreLayout
from statefs.metadata.connection import connect
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import VERSIONED, RowLife
from statefs.snapshots.catalog import COMPLETE, SLOTS
from statefs.snapshots.documents import IndexDocument, SnapshotDocument
from statefs.volume import acl
from statefs.volume.attributes import CAPABILITY, DURABILITY

SHOWN: Final = 20
"""Problems told of one rule; a broken store should not print a million lines."""
STORE_KEYS: Final = {
    "uuid", "lineage", "app_id", "created_ns", "epoch", "next_id", "last_slot",
    "last_modified_ns", "clean", "files", "bytes",
}  # fmt: skip
_FLAGS: Final = {
    acl.ACCESS: InodeFlag.ACCESS_ACL,
    acl.DEFAULT: InodeFlag.DEFAULT_ACL,
    CAPABILITY: InodeFlag.CAPABILITY,
    DURABILITY: InodeFlag.DURABILITY,
}
_REGULAR: Final = f"mode & 0xF000 = {stat.S_IFREG}"
_FOLDER: Final = f"mode & 0xF000 = {stat.S_IFDIR}"
_HAS_BYTES: Final = f"mode & 0xF000 IN ({stat.S_IFREG}, {stat.S_IFLNK})"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A broken rule: its number, and what breaks it."""

    rule: str
    message: str


class Reading:
    """One read transaction over a store's database."""

    def __init__(self, layout: StoreLayout) -> None:
        self.layout = layout
        self.connection = connect(layout.meta_db)
        self.connection.execute("BEGIN")

    def rows(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the first rows of a query, no more than are worth telling."""
        found: list[tuple[Any, ...]] = []
        for row in self.connection.execute(statement, parameters):
            found.append(row)
            if len(found) > SHOWN:
                break
        return found

    def all_rows(self, statement: str) -> list[Any]:
        """Return all rows of a query."""
        return self.connection.execute(statement).fetchall()

    def store(self) -> dict[str, Any]:
        """Return the table `store`."""
        return dict(self.all_rows("SELECT key, value FROM store"))

    def close(self) -> None:
        """End the transaction."""
        self.connection.close()


Check = Callable[[Reading], Iterator[str]]


def check_pages(reading: Reading) -> Iterator[str]:
    """R01: SQLite finds its own file sound."""
    for (line,) in reading.all_rows("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"meta.db: {line}"


def check_store_keys(reading: Reading) -> Iterator[str]:
    """R02: the table `store` holds every key, and numbers where numbers are meant."""
    values = reading.store()
    for key in sorted(STORE_KEYS - values.keys()):
        yield f"the key {key} is missing"
    for key in sorted(STORE_KEYS - {"uuid", "lineage", "app_id"}):
        if key in values and not isinstance(values[key], int):
            yield f"the key {key} is no number: {values[key]!r}"


def _key(life: RowLife) -> str:
    return ", ".join(f'"{name}"' for name in life.key)


def check_lifetimes(reading: Reading) -> Iterator[str]:
    """R03: a row begins before it ends, and neither lies after the current epoch."""
    epoch = reading.store()["epoch"]
    for life in VERSIONED:
        query = (
            f"SELECT {_key(life)}, valid_from, valid_to FROM {life.table} WHERE valid_from >="
            f" valid_to OR valid_from > ?1 OR (valid_to < {LIVING} AND valid_to > ?1)"
        )
        for row in reading.rows(query, (epoch,)):
            yield f"{life.table} {row[:-2]} lives from epoch {row[-2]} until {row[-1]}"


def check_versions(reading: Reading) -> Iterator[str]:
    """R04: the versions of one key do not overlap."""
    for life in VERSIONED:
        query = (
            f"SELECT * FROM (SELECT {_key(life)}, valid_from, lag(valid_to) OVER"
            f" (PARTITION BY {_key(life)} ORDER BY valid_to) AS before FROM {life.table})"
            " WHERE before > valid_from"
        )
        for row in reading.rows(query):
            yield f"{life.table} {row[:-2]} has two versions in epoch {row[-2]}"


def check_past_is_pinned(reading: Reading) -> Iterator[str]:
    """R05: a past row is seen by some snapshot; others would never be freed."""
    for life in VERSIONED:
        query = (
            f"SELECT {_key(life)}, valid_from, valid_to FROM {life.table} v WHERE valid_to <"
            f" {LIVING} AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.epoch >= v.valid_from"
            " AND s.epoch < v.valid_to)"
        )
        for row in reading.rows(query):
            yield f"{life.table} {row[:-2]}: no snapshot sees epochs {row[-2]} to {row[-1]}"


def check_entries_lead_somewhere(reading: Reading) -> Iterator[str]:
    """R06: an entry's inode exists, now and in every snapshot that has the entry."""
    query = (
        f"SELECT e.parent, e.name, e.ino FROM entries e WHERE e.valid_to = {LIVING} AND NOT EXISTS"
        f" (SELECT 1 FROM inodes i WHERE i.ino = e.ino AND i.valid_to = {LIVING})"
    )
    for parent, name, ino in reading.rows(query):
        yield f"{name!r} in folder {parent} leads to inode {ino}, which does not exist"
    query = (
        "WITH gaps AS (SELECT ino, coalesce(lag(valid_to) OVER versions, 0) AS since,"
        " valid_from AS until FROM inodes WINDOW versions AS (PARTITION BY ino ORDER BY valid_to)"
        f" UNION ALL SELECT ino, max(valid_to), {LIVING} FROM inodes GROUP BY ino),"
        " pinned AS MATERIALIZED (SELECT * FROM gaps g WHERE EXISTS (SELECT 1 FROM snapshots s"
        " WHERE s.state = ?1 AND s.epoch >= g.since AND s.epoch < g.until))"
        " SELECT e.parent, e.name, e.ino, s.name FROM entries e JOIN pinned g ON g.ino = e.ino"
        " AND max(e.valid_from, g.since) < min(e.valid_to, g.until)"
        " JOIN snapshots s ON s.state = ?1 AND s.epoch >= max(e.valid_from, g.since)"
        " AND s.epoch < min(e.valid_to, g.until)"
    )
    for parent, name, ino, snapshot in reading.rows(query, (COMPLETE,)):
        yield f"in {snapshot}, {name!r} in folder {parent} leads to inode {ino}, which is missing"


def check_links(reading: Reading) -> Iterator[str]:
    """R07: nlink is the number of names of a file, and 2 plus the subfolders of a folder."""
    query = (
        f"WITH names AS MATERIALIZED (SELECT ino, count(*) AS n FROM entries WHERE valid_to ="
        f" {LIVING} GROUP BY ino) SELECT i.ino, i.nlink, coalesce(n.n, 0) FROM inodes i"
        f" LEFT JOIN names n ON n.ino = i.ino WHERE i.valid_to = {LIVING} AND NOT i.{_FOLDER}"
        " AND i.nlink != coalesce(n.n, 0)"
    )
    for ino, nlink, names in reading.rows(query):
        yield f"inode {ino} has {names} names, but nlink {nlink}"
    query = (
        "WITH inside AS MATERIALIZED (SELECT e.parent AS ino, count(*) AS n FROM entries e"
        f" JOIN inodes i ON i.ino = e.ino AND i.valid_to = {LIVING} AND i.{_FOLDER}"
        f" WHERE e.valid_to = {LIVING} GROUP BY e.parent)"
        " SELECT i.ino, i.nlink, coalesce(n.n, 0) FROM inodes i LEFT JOIN inside n ON"
        f" n.ino = i.ino WHERE i.valid_to = {LIVING} AND i.{_FOLDER} AND i.nlink > 0"
        " AND i.nlink != 2 + coalesce(n.n, 0)"
    )
    for ino, nlink, folders in reading.rows(query):
        yield f"folder {ino} has {folders} subfolders, but nlink {nlink}"


def check_folders(reading: Reading) -> Iterator[str]:
    """R08: a folder has one name, in the folder that its column `parent` names; the root has none.

    An inode without a name is an orphan.
    """
    query = (
        "WITH names AS MATERIALIZED (SELECT ino, count(*) AS n, min(parent) AS parent FROM entries"
        f" WHERE valid_to = {LIVING} GROUP BY ino) SELECT i.ino, i.parent, coalesce(n.n, 0),"
        f" n.parent FROM inodes i LEFT JOIN names n ON n.ino = i.ino WHERE i.valid_to = {LIVING}"
        f" AND i.{_FOLDER} AND i.nlink > 0 AND i.ino != {TREE_ROOT}"
        " AND (n.n IS NOT 1 OR n.parent != i.parent)"
    )
    for ino, parent, names, found in reading.rows(query):
        yield f"folder {ino} has {names} names, one in {found}; it should have one, in {parent}"
    query = "SELECT ino FROM inodes WHERE nlink = 0 AND ino NOT IN (SELECT ino FROM orphans)"
    for (ino,) in reading.rows(query):
        yield f"inode {ino} has no name and is no orphan"


def check_flags(reading: Reading) -> Iterator[str]:
    """R09: an inode's flags say which extended attributes it has; ACLs can be read."""
    wanted: dict[int, int] = {}
    query = f"SELECT ino, name, value FROM xattrs WHERE valid_to = {LIVING}"
    for ino, name, value in reading.connection.execute(query):
        wanted[ino] = wanted.get(ino, 0) | InodeFlag.XATTRS | _FLAGS.get(name, 0)
        if name in (acl.ACCESS, acl.DEFAULT):
            try:
                acl.parse(value)
            except PosixError:
                yield f"inode {ino} has an ACL that cannot be read"
    mask = InodeFlag.XATTRS | sum(_FLAGS.values())
    query = f"SELECT ino, flags & {mask} FROM inodes WHERE valid_to = {LIVING} AND flags & {mask}"
    have: dict[Any, Any] = dict(reading.all_rows(query))
    for ino in sorted(wanted.keys() | have.keys()):
        if wanted.get(ino, 0) != have.get(ino, 0):
            yield f"inode {ino} has flags {have.get(ino, 0)}, its attributes {wanted.get(ino, 0)}"


def check_content(reading: Reading) -> Iterator[str]:
    """R10: inline content is as long as the file, and only where the content is not in objects."""
    query = (
        "SELECT i.ino, i.size, length(d.data) FROM (SELECT ino, size, CASE WHEN valid_to ="
        f" {LIVING} THEN {LIVING - 1} ELSE (SELECT max(epoch) FROM snapshots s WHERE s.state ="
        " ?1 AND s.epoch >= v.valid_from AND s.epoch < v.valid_to) END AS epoch FROM inodes v"
        f" WHERE NOT flags & {InodeFlag.EXTENTS} AND {_HAS_BYTES}) i LEFT JOIN inline d ON"
        " d.ino = i.ino AND d.valid_from <= i.epoch AND d.valid_to > i.epoch"
        " WHERE i.epoch IS NOT NULL AND i.size != coalesce(length(d.data), 0)"
    )
    for ino, size, found in reading.rows(query, (COMPLETE,)):
        yield f"inode {ino} has size {size}, but {found or 0} bytes inline"
    for table, is_set in (("inline", "flags & ?1"), ("extents", "NOT flags & ?1")):
        query = (
            f"SELECT DISTINCT i.ino FROM inodes i JOIN {table} t ON t.ino = i.ino AND t.valid_to ="
            f" {LIVING} WHERE i.valid_to = {LIVING} AND i.{is_set}"
        ).replace("i.NOT flags", "NOT i.flags")
        for (ino,) in reading.rows(query, (int(InodeFlag.EXTENTS),)):
            yield f"inode {ino} has rows in {table} that its flags deny"
    for table in ("inline", "extents", "xattrs"):
        query = (
            f"SELECT DISTINCT ino FROM {table} t WHERE valid_to = {LIVING} AND NOT EXISTS (SELECT"
            f" 1 FROM inodes i WHERE i.ino = t.ino AND i.valid_to = {LIVING})"
        )
        for (ino,) in reading.rows(query):
            yield f"{table} has rows of inode {ino}, which does not exist"


def check_extents(reading: Reading) -> Iterator[str]:
    """R11: the extents of a file hold bytes, do not overlap, and name objects that have rows."""
    query = (
        'SELECT ino, start, "end", object FROM extents WHERE start < 0 OR "end" <= start'
        " OR object NOT IN (SELECT id FROM objects)"
    )
    for ino, start, end, number in reading.rows(query):
        yield f"inode {ino}: the extent {start} to {end} in object {number:x} cannot be"
    epochs = [row[0] for row in reading.all_rows("SELECT epoch FROM snapshots WHERE state = 1")]
    for epoch in (*epochs, LIVING - 1):
        query = (
            'SELECT ino, start FROM (SELECT ino, start, lag("end") OVER (PARTITION BY ino ORDER BY'
            " start) AS before FROM extents WHERE valid_from <= ?1 AND valid_to > ?1)"
            " WHERE before > start"
        )
        for ino, start in reading.rows(query, (epoch,)):
            yield f"inode {ino}: two extents hold byte {start} (epoch {epoch})"


def check_objects(reading: Reading) -> Iterator[str]:
    """R12: every object row has its file; every file its row; unused ones are garbage."""
    rows = {row[0] for row in reading.all_rows("SELECT id FROM objects")}
    garbage = {row[0] for row in reading.all_rows("SELECT object FROM garbage")}
    present = _object_files(reading.layout)
    newest = reading.store()["next_id"]
    for number in sorted(rows - present)[:SHOWN]:
        yield f"object file {number:x} is missing"
    for number in sorted(present - rows - garbage)[:SHOWN]:
        yield f"object file {number:x} belongs to nothing (next number {newest:x})"
    query = (
        "SELECT id FROM objects WHERE id NOT IN (SELECT object FROM extents)"
        " AND id NOT IN (SELECT object FROM garbage)"
    )
    for (number,) in reading.rows(query):
        yield f"nothing refers to object {number:x}, and it is not garbage"


def _object_files(layout: StoreLayout) -> set[int]:
    return {int(path.name, 16) for path in layout.objects.glob("*/*")}


def check_snapshots(reading: Reading) -> Iterator[str]:
    """R13: a snapshot shows an epoch that has ended, under a number of its own."""
    epoch = reading.store()["epoch"]
    query = (
        "SELECT name FROM snapshots WHERE epoch >= ? OR id NOT BETWEEN 1 AND ? OR state NOT"
        " BETWEEN 0 AND 2 OR NOT json_valid(labels) OR NOT json_valid(volumes)"
    )
    for (name,) in reading.rows(query, (epoch, SLOTS)):
        yield f"the row of snapshot {name} cannot be"


def check_lists(reading: Reading) -> Iterator[str]:
    """R14: what is marked dirty exists, and an orphan has no name."""
    query = (
        "SELECT ino FROM dirty d WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.ino = d.ino"
        f" AND i.valid_to = {LIVING})"
    )
    for (ino,) in reading.rows(query):
        yield f"inode {ino} is marked dirty, but does not exist"
    query = (
        "SELECT ino FROM orphans o WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.ino = o.ino"
        f" AND i.valid_to = {LIVING} AND i.nlink = 0)"
    )
    for (ino,) in reading.rows(query):
        yield f"inode {ino} is an orphan, but has a name or does not exist"


def check_numbers(reading: Reading) -> Iterator[str]:
    """R15: no number is in use that is still to be handed out."""
    newest = reading.store()["next_id"]
    for what, query in (
        ("inode", "SELECT max(ino) FROM inodes"),
        ("entry", "SELECT max(cookie) FROM entries"),
        ("object", "SELECT max(id) FROM objects"),
    ):
        (highest,) = reading.all_rows(query)[0]
        if highest is not None and highest >= newest:
            yield f"{what} {highest} exists, but the next number is {newest}"


def check_totals(reading: Reading) -> Iterator[str]:
    """R16: after a clean close the store knows how many files it has, and how many bytes."""
    values = reading.store()
    if not values["clean"]:
        return
    query = (
        f"SELECT count(*), coalesce(sum(size), 0) FROM inodes WHERE valid_to = {LIVING}"
        f" AND {_REGULAR} AND nlink > 0"
    )
    files, size = reading.all_rows(query)[0]
    if (files, size) != (values["files"], values["bytes"]):
        yield (
            f"there are {files} files of {size} bytes, the store says"
            f" {values['files']} of {values['bytes']}"
        )


def check_documents(reading: Reading) -> Iterator[str]:
    """R17: index.json and snapshots/NAME.json can be read and tell of the snapshots there are."""
    query = f"SELECT name, uuid FROM snapshots WHERE state = {COMPLETE} ORDER BY epoch"
    wanted: dict[str, str] = dict(reading.all_rows(query))
    try:
        data = reading.layout.index_json.read_bytes()
        index = msgspec.json.decode(data, type=IndexDocument)
        told = {entry.name: entry.snapshot_id for entry in index.snapshots}
    except (OSError, msgspec.MsgspecError, json.JSONDecodeError) as error:
        yield f"index.json: {error}"
    else:
        if list(told.items()) != list(wanted.items()):
            yield f"index.json tells of {len(told)} snapshots, there are {len(wanted)}"
    for name, uuid in wanted.items():
        path = reading.layout.snapshots / f"{name}.json"
        try:
            document = msgspec.json.decode(path.read_bytes(), type=SnapshotDocument)
        except (OSError, msgspec.MsgspecError) as error:
            yield f"snapshots/{name}.json: {error}"
        else:
            if document.snapshot_id != uuid:
                yield f"snapshots/{name}.json is another snapshot's"


CHECKS: Final[dict[str, Check]] = {
    "R01": check_pages,
    "R02": check_store_keys,
    "R03": check_lifetimes,
    "R04": check_versions,
    "R05": check_past_is_pinned,
    "R06": check_entries_lead_somewhere,
    "R07": check_links,
    "R08": check_folders,
    "R09": check_flags,
    "R10": check_content,
    "R11": check_extents,
    "R12": check_objects,
    "R13": check_snapshots,
    "R14": check_lists,
    "R15": check_numbers,
    "R16": check_totals,
    "R17": check_documents,
}
"""Every rule and what checks it, in the order of the document."""


def verify(layout: StoreLayout) -> list[Problem]:
    """Return every problem found in a store, in the order of the rules.

    Raises:
        OSError: the store cannot be read at all.
    """
    found = _problems(layout)
    if not found:
        return []
    again = set(_problems(layout))
    return [problem for problem in found if problem in again]


def _problems(layout: StoreLayout) -> list[Problem]:
    reading = Reading(layout)
    try:
        problems = [
            Problem(rule=rule, message=message)
            for rule, check in CHECKS.items()
            for message in _messages(check, reading)
        ]
    finally:
        reading.close()
    return problems


def _messages(check: Check, reading: Reading) -> list[str]:
    """Run one check; what it cannot read is a problem, too."""
    try:
        return list(check(reading))
    except (apsw.Error, KeyError, TypeError) as error:
        return [f"{check.__name__} could not read the database: {error!r}"]
