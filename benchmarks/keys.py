"""`python -m benchmarks.keys`: what a lookup costs SQLite, with one key or with partial indexes.

Builds the tables of names and inodes in memory in two ways, with and without a history, and looks
names up, now and in the past. No mount and no statefs in between: only the layout of the rows
differs. The figures are quoted in docs/decisions/0001-one-key-for-past-and-present.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator
from time import process_time_ns
from typing import Final, NamedTuple

import apsw

from statefs.ids import LIVING

FOLDERS: Final = 100
LOOKUPS: Final = 20_000
ROUNDS: Final = 7
CHANGED_PART: Final = 0.01
"""The part of all files that changes between two snapshots."""


class Layout(NamedTuple):
    """A way to lay rows out: statements that make the tables, and those that look rows up."""

    name: str
    tables: tuple[str, ...]
    living: tuple[str, str]
    past: tuple[str, str]


_ENTRY: Final = "parent INTEGER, name BLOB, valid_to INTEGER, valid_from INTEGER, ino INTEGER"
_INODE: Final = "ino INTEGER, valid_to INTEGER, valid_from INTEGER, size INTEGER, times BLOB"
_NOW: Final = f"valid_to = {LIVING}"
_THEN: Final = "valid_to > ? ORDER BY valid_to LIMIT 1"
_SINCE: Final = "valid_from <= ? ORDER BY valid_from DESC LIMIT 1"

LAYOUTS: Final = (
    Layout(
        "one key",
        (
            f"CREATE TABLE entries ({_ENTRY}, PRIMARY KEY (parent, name, valid_to)) WITHOUT ROWID",
            f"CREATE TABLE inodes ({_INODE}, PRIMARY KEY (ino, valid_to)) WITHOUT ROWID",
        ),
        (
            f"SELECT ino FROM entries WHERE parent = ? AND name = ? AND {_NOW}",
            f"SELECT * FROM inodes WHERE ino = ? AND {_NOW}",
        ),
        (
            f"SELECT ino FROM entries WHERE parent = ? AND name = ? AND {_THEN}",
            f"SELECT * FROM inodes WHERE ino = ? AND {_THEN}",
        ),
    ),
    Layout(
        "partial indexes",
        (
            f"CREATE TABLE entries ({_ENTRY})",
            f"CREATE TABLE inodes ({_INODE})",
            f"CREATE UNIQUE INDEX e_living ON entries (parent, name) WHERE {_NOW}",
            f"CREATE UNIQUE INDEX i_living ON inodes (ino) WHERE {_NOW}",
            "CREATE INDEX e_past ON entries (parent, name, valid_from)",
            "CREATE INDEX i_past ON inodes (ino, valid_from)",
        ),
        (
            f"SELECT ino FROM entries WHERE parent = ? AND name = ? AND {_NOW}",
            f"SELECT * FROM inodes WHERE ino = ? AND {_NOW}",
        ),
        (
            f"SELECT ino FROM entries WHERE parent = ? AND name = ? AND {_SINCE}",
            f"SELECT * FROM inodes WHERE ino = ? AND {_SINCE}",
        ),
    ),
)


def built(layout: Layout, files: int, snapshots: int) -> apsw.Connection:
    """Return a database of `files` files, some of which changed before each snapshot."""
    database = apsw.Connection(":memory:")
    for statement in layout.tables:
        database.execute(statement)
    chance = random.Random(1)
    with database:
        for ino in range(files):
            database.execute(
                "INSERT INTO entries VALUES (?, ?, ?, 1, ?)", (*name_of(ino), LIVING, ino)
            )
            database.execute("INSERT INTO inodes VALUES (?, ?, 1, 5, ?)", (ino, LIVING, bytes(60)))
        for epoch in range(2, snapshots + 2):
            for ino in chance.sample(range(files), int(files * CHANGED_PART)):
                for table, key in (("entries", "ino"), ("inodes", "ino")):
                    change(database, table, key, ino, epoch)
    return database


def change(database: apsw.Connection, table: str, key: str, ino: int, epoch: int) -> None:
    """Leave a copy of a living row behind that ended, and let the row be born now."""
    where = f"{key} = ? AND {_NOW}"
    if table == "entries":
        where = f"parent = ? AND name = ? AND {_NOW}"
    row = (*name_of(ino),) if table == "entries" else (ino,)
    columns = (
        "parent, name, {}, valid_from, ino"
        if table == "entries"
        else ("ino, {}, valid_from, size, times")
    )
    database.execute(
        f"INSERT INTO {table} SELECT {columns.format('?')} FROM {table} WHERE {where}",
        (epoch, *row),
    )
    database.execute(f"UPDATE {table} SET valid_from = ? WHERE {where}", (epoch, *row))


def name_of(ino: int) -> tuple[int, bytes]:
    """Return the folder and the name of a file."""
    return ino % FOLDERS, b"file-%d" % ino


def microseconds(work: Callable[[], None]) -> float:
    """Return the processor time of one of `LOOKUPS` pieces of work, the median of some rounds."""
    times = []
    for _ in range(ROUNDS):
        started = process_time_ns()
        work()
        times.append((process_time_ns() - started) / LOOKUPS / 1000)
    return statistics.median(times)


def figures(layout: Layout, files: int, snapshots: int) -> Iterator[tuple[str, float]]:
    """Return what is measured of a layout: (what, microseconds or bytes)."""
    database = built(layout, files, snapshots)
    execute = database.execute
    chance = random.Random(2)
    wanted = [chance.randrange(files) for _ in range(LOOKUPS)]
    epochs = [chance.randrange(1, snapshots + 2) for _ in range(LOOKUPS)]

    def now() -> None:
        entry, inode = layout.living
        for ino in wanted:
            ((found,),) = execute(entry, name_of(ino))
            assert next(execute(inode, (found,))) is not None

    def then() -> None:
        entry, inode = layout.past
        for ino, epoch in zip(wanted, epochs, strict=True):
            ((found,),) = execute(entry, (*name_of(ino), epoch))
            assert next(execute(inode, (found, epoch))) is not None

    yield "lookup now, us", microseconds(now)
    yield "lookup in the past, us", microseconds(then)
    pages, size = database.pragma("page_count"), database.pragma("page_size")
    yield "bytes per file", float(pages * size / files)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--snapshots", type=int, default=100)
    arguments = parser.parse_args()
    for snapshots in (0, arguments.snapshots):
        for layout in LAYOUTS:
            for what, figure in figures(layout, arguments.files, snapshots):
                print(f"{snapshots:4} snapshots  {layout.name:16} {what:24} {figure:8.2f}")


if __name__ == "__main__":
    main()
