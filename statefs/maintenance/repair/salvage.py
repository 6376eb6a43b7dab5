"""Reading what can be read of a database that may be damaged, into a plain one beside it.

Where a page of a table is gone, the table is read from its beginning, from its end, and number by
number in between: whatever SQLite can still find by its key. Numbers that it cannot tell of are
gaps, which a copy may fill (filling.py). Types are checked: what has been damaged may be anything.
Indexes are not used but as tables.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from statefs.durable import open_plain
from statefs.metadata.schema import PAGE_BYTES
from statefs.snapshots.catalog import Snapshot

PROBES_MAX: Final = 5_000_000
"""Numbers looked up one by one between two damaged places: some ten seconds."""
ROWS_TOGETHER: Final = 1000
NUMBER_MIN: Final = -(1 << 63)
NUMBER_MAX: Final = (1 << 63) - 1
_BLOBS: Final = ("name", "value", "data", "content", "sha256", "blocks")
_VERSIONED: Final = ("valid_to", "valid_from")


class Table(NamedTuple):
    """A table to be read.

    Args:
        columns: of its rows, those that are numbers and those that are bytes.
        key: what it is ordered by, and the column of a number that rows are looked up by.
    """

    columns: tuple[str, ...]
    order: tuple[str, ...]
    number: str


TABLES: Final[dict[str, Table]] = {
    "inodes": Table(
        ("ino", *_VERSIONED, "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "atime_ns",
         "mtime_ns", "ctime_ns", "btime_ns", "parent", "flags"), ("ino", "valid_to"), "ino"),
    "entries": Table(
        ("parent", "name", *_VERSIONED, "ino", "cookie"), ("parent", "name", "valid_to"), "parent"),
    "xattrs": Table(("ino", "name", *_VERSIONED, "value"), ("ino", "name", "valid_to"), "ino"),
    "extents": Table(
        ("ino", "start", *_VERSIONED, "end", "object"), ("ino", "start", "valid_to"), "ino"),
    "inline": Table(("id", "ino", *_VERSIONED, "data"), ("id",), "id"),
    "shared": Table(("ino", "source", "epoch"), ("ino",), "ino"),
    "digests": Table(
        ("ino", *_VERSIONED, "content", "sha256", "blocks"), ("ino", "valid_to"), "ino"),
    "objects": Table(("id", "ino", "epoch"), ("id",), "id"),
    "dirty": Table(("ino",), ("ino",), "ino"),
    "orphans": Table(("ino", "epoch"), ("ino",), "ino"),
    "garbage": Table(("object",), ("object",), "object"),
}  # fmt: skip
_OTHERS: Final[dict[str, Table]] = {
    "store": Table(("key", "value"), ("key",), ""),
    "snapshots": Table(Snapshot._fields, ("id",), "id"),
}
ALL_TABLES: Final = TABLES | _OTHERS
_INDEXES: Final = (
    ("inodes", "ino"), ("entries", "ino"), ("entries", "parent"), ("xattrs", "ino"),
    ("extents", "ino"), ("extents", "object"), ("inline", "ino"), ("digests", "ino"),
    ("objects", "id"),
)  # fmt: skip


class Gap(NamedTuple):
    """Numbers of a table of which a damaged database cannot tell: all of them, or whether any is.

    Args:
        first, last: both included.
    """

    table: str
    first: int
    last: int


class Salvaged(NamedTuple):
    """What was read of a database.

    Args:
        rows: how many, of all tables.
        troubles: what could not be read, in words; none when all could.
        gaps: what was not read.
    """

    rows: int
    troubles: list[str]
    gaps: list[Gap]


def copy_readable(source: Path, target: Path) -> int:
    """Copy a file from a disk that may not return all of it; zeros stand for what it does not.

    Returns:
        How many bytes that are.

    Raises:
        OSError: it cannot be opened, as a link cannot, or the target not be written.
    """
    lost = 0
    with open(open_plain(source, os.O_RDONLY), "rb") as file, target.open("wb") as copy:
        size = os.fstat(file.fileno()).st_size
        for position in range(0, size, PAGE_BYTES):
            wanted = min(PAGE_BYTES, size - position)
            try:
                data = os.pread(file.fileno(), wanted, position)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                data, lost = bytes(wanted), lost + wanted
            copy.write(data)
    return lost


def make_plain(path: Path) -> apsw.Connection:
    """Make a database with the tables and without any of their rules; return it open.

    In it, too, for filling.py: `older`, inodes that are there as a copy has them and may have
    changed since (an epoch), in their size as well if they are `is_sizeless`; `stale`, small
    content of a copy that has been replaced since; `unknown`, inodes that from an epoch on may have
    had more rows in a table (`kind`) than could be read.
    """
    path.unlink(missing_ok=True)
    connection = apsw.Connection(str(path))
    for pragma in ("journal_mode", "synchronous"):
        connection.pragma(pragma, "OFF")
    for name, table in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({_listed(table.columns)})")
    connection.execute("CREATE TABLE store (key, value)")
    connection.execute(f"CREATE TABLE snapshots ({_listed(Snapshot._fields)})")
    connection.execute("CREATE TABLE older (ino INTEGER PRIMARY KEY, since, is_sizeless)")
    connection.execute("CREATE TABLE stale (ino INTEGER PRIMARY KEY, data)")
    connection.execute("CREATE TABLE unknown (kind, ino, since, PRIMARY KEY (kind, ino))")
    return connection


def index(plain: apsw.Connection) -> None:
    """Make rows of a plain database quick to find."""
    for table, column in _INDEXES:
        plain.execute(f"CREATE INDEX {table}_{column} ON {table} ({column})")


def _listed(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def salvage(path: Path, plain: apsw.Connection) -> Salvaged:
    """Read all that can be read of a database into a plain one.

    Args:
        path: of a copy that may be changed: its log is moved into it first.
    """
    found = Salvaged(0, [], [])
    source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        with plain:
            for name in ALL_TABLES:
                rows = _Reader(source, plain, name, found).read()
                found = found._replace(rows=found.rows + rows)
    finally:
        source.close()
    return found


def all_lost(trouble: str) -> Salvaged:
    """Return that nothing could be read, and why."""
    gaps = [Gap(name, NUMBER_MIN, NUMBER_MAX) for name in ALL_TABLES]
    return Salvaged(0, [trouble], gaps)


class _Reader:
    """Reads one table.

    Args:
        source: the database.
        plain: where its rows go.
        name: of the table.
        found: told of troubles and gaps.
    """

    def __init__(
        self, source: apsw.Connection, plain: apsw.Connection, name: str, found: Salvaged
    ) -> None:
        self._source = source
        self._name = name
        self._found = found
        self._columns, self._order, self._number = ALL_TABLES[name]
        marks = ", ".join("?" * len(self._columns))
        self._insert: Callable[[list[tuple[Any, ...]]], object] = lambda rows: plain.executemany(
            f"INSERT INTO {name} VALUES ({marks})", rows
        )
        self._rows = 0

    def read(self) -> int:
        """Read it; return how many rows were good."""
        low, trouble = self._scan("")
        if trouble is None:
            return self._rows
        self._found.troubles.append(f"{self._name}: {trouble}")
        high = self._scan(" DESC", low)[0] if self._number else None
        if high is None:
            self._lose(NUMBER_MIN if low is None else low, NUMBER_MAX)
        else:
            self._probe(low or 0, high)
        return self._rows

    def _scan(self, way: str, stop: int | None = None) -> tuple[int | None, str | None]:
        """Read rows in order until one cannot be read, or `stop` is reached.

        Returns:
            The number of the last one, and what was wrong with the next.
        """
        order = ", ".join(f"{column}{way}" for column in self._order)
        number = self._number or "0"
        columns = _listed(self._columns)
        last: int | None = None
        batch: list[tuple[Any, ...]] = []
        trouble = None
        try:
            for reached, *row in self._source.execute(
                f"SELECT {number}, {columns} FROM {self._name} ORDER BY {order}"
            ):
                if stop is not None and isinstance(reached, int) and reached <= stop:
                    break
                last = reached if isinstance(reached, int) else last
                batch.append((reached, *row))
                if len(batch) >= ROWS_TOGETHER:
                    self._keep(batch)
                    batch = []
        except apsw.Error as error:
            trouble = str(error)
        self._keep(batch)
        return last, trouble

    def _probe(self, low: int, high: int) -> None:
        """Look up each number between two whose rows have been read, at least in part."""
        query = f"SELECT {_listed(self._columns)} FROM {self._name} WHERE {self._number} = ?"
        end = min(high, low + PROBES_MAX)
        for number in range(low, end + 1):
            try:
                rows = [(number, *row) for row in self._source.execute(query, (number,))]
            except apsw.Error:
                self._lose(number, number)
            else:
                if low < number < high:
                    self._keep(rows)
        if end < high:
            self._lose(end + 1, high)

    def _lose(self, first: int, last: int) -> None:
        """Note a gap, as one with the gap before it where they touch."""
        gaps = self._found.gaps
        if gaps and gaps[-1].table == self._name and gaps[-1].last == first - 1:
            first = gaps.pop().first
        gaps.append(Gap(self._name, first, last))

    def _keep(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Write rows, each with its number before it, that can be; the others are lost."""
        good = []
        bad = 0
        for number, *row in rows:
            if self._is_possible(row):
                good.append(tuple(row))
                continue
            bad += 1
            if isinstance(number, int):
                self._lose(number, number)
        if bad:
            self._found.troubles.append(f"{self._name}: {bad} rows make no sense")
        self._insert(good)
        self._rows += len(good)

    def _is_possible(self, row: list[Any]) -> bool:
        if self._name not in TABLES:
            return True  # looked at more closely later
        blobs = () if self._name == "inodes" else _BLOBS  # its `blocks` are a number
        return all(
            isinstance(value, bytes | None) if column in blobs else isinstance(value, int)
            for column, value in zip(self._columns, row, strict=True)
        )
