"""Reading what can be read of a database that may be damaged, into a plain one beside it.

Where a page of a table is gone, the table is read from its beginning, from its end, and number by
number in between: whatever SQLite can still find by its key. Types are checked: what has been
damaged may be anything. Indexes are not used but as tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from statefs.metadata.schema import PAGE_BYTES
from statefs.snapshots.catalog import Snapshot

PROBES_MAX: Final = 5_000_000
"""Numbers looked up one by one between two damaged places: some ten seconds."""
_COUNTS: Final = slice(28, 40)
"""Of the first page: the number of pages, the first free one, the number of those."""
ROWS_TOGETHER: Final = 1000
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
    "inline": Table(("ino", *_VERSIONED, "data"), ("id",), "id"),
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
_INDEXES: Final = (
    ("inodes", "ino"), ("entries", "ino"), ("entries", "parent"), ("xattrs", "ino"),
    ("extents", "ino"), ("extents", "object"), ("inline", "ino"), ("digests", "ino"),
    ("objects", "id"),
)  # fmt: skip


class Salvaged(NamedTuple):
    """What was read of a database.

    Args:
        rows: how many, of all tables.
        troubles: what could not be read, in words; none when all could.
    """

    rows: int
    troubles: list[str]


def make_plain(path: Path) -> apsw.Connection:
    """Make a database with the tables and without any of their rules; return it open."""
    path.unlink(missing_ok=True)
    connection = apsw.Connection(str(path))
    for pragma in ("journal_mode", "synchronous"):
        connection.pragma(pragma, "OFF")
    for name, table in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({_listed(table.columns)})")
    connection.execute("CREATE TABLE store (key, value)")
    connection.execute(f"CREATE TABLE snapshots ({_listed(Snapshot._fields)})")
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
    troubles: list[str] = []
    source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    total = 0
    try:
        with plain:
            for name in (*TABLES, "store", "snapshots"):
                total += _Reader(source, plain, name, troubles).read()
    finally:
        source.close()
    return Salvaged(total, troubles)


class _Reader:
    """Reads one table."""

    def __init__(
        self,
        source: apsw.Connection,
        plain: apsw.Connection,
        name: str,
        troubles: list[str],
    ) -> None:
        self._source = source
        self._name = name
        self._troubles = troubles
        self._columns, self._order, self._number = (TABLES | _OTHERS)[name]
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
        self._troubles.append(f"{self._name}: {trouble}")
        if not self._number:
            return self._rows
        high, _ = self._scan(" DESC", low)
        if high is not None:
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
                batch.append(tuple(row))
                if len(batch) >= ROWS_TOGETHER:
                    self._keep(batch)
                    batch = []
        except apsw.Error as error:
            trouble = str(error)
        self._keep(batch)
        return last, trouble

    def _probe(self, low: int, high: int) -> None:
        """Look up each number between two that could be read."""
        query = f"SELECT {_listed(self._columns)} FROM {self._name} WHERE {self._number} = ?"
        for number in range(low + 1, min(high, low + PROBES_MAX)):
            with suppress(apsw.Error):
                self._keep([tuple(row) for row in self._source.execute(query, (number,))])

    def _keep(self, rows: list[tuple[Any, ...]]) -> None:
        good = [row for row in rows if self._is_possible(row)]
        if len(good) < len(rows):
            self._troubles.append(f"{self._name}: {len(rows) - len(good)} rows make no sense")
        self._insert(good)
        self._rows += len(good)

    def _is_possible(self, row: tuple[Any, ...]) -> bool:
        if self._name not in TABLES:
            return True  # looked at more closely later
        blobs = () if self._name == "inodes" else _BLOBS  # its `blocks` are a number
        return all(
            isinstance(value, bytes | None) if column in blobs else isinstance(value, int)
            for column, value in zip(self._columns, row, strict=True)
        )


def put_header_back(damaged: Path, good: Path) -> None:
    """Give a database whose first page is damaged that of another one of the same format.

    The page says where each table begins, which changes with the format only; and how many pages
    there are and which of them are free, which SQLite finds out by itself where it is not said.
    Source: sqlite.org/fileformat2.html, 1.3.7 and 1.5.
    """
    with good.open("rb") as source, damaged.open("r+b") as target:
        page = bytearray(source.read(PAGE_BYTES))
        page[_COUNTS] = bytes(_COUNTS.stop - _COUNTS.start)
        target.write(page)


def rows_of(plain: apsw.Connection, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Return rows of a plain database."""
    return plain.execute(query, values)
