"""What tells where each table of a database begins, where that is lost.

SQLite keeps the first pages of tables and indexes together at the beginning of a file that can
give pages back (`auto_vacuum`), in the order in which they were made. So where a table begins
follows from the format that the store was made with and was migrated from.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

import apsw

from statefs.maintenance.repair.salvage import ALL_TABLES
from statefs.metadata.schema import APPLICATION_ID, FORMAT_VERSION, PAGE_BYTES

_COUNTS: Final = slice(28, 40)
"""Of the first page: the number of pages, the first free one, the number of those."""
_BTREE: Final = 100
"""Where the tree begins on the first page, after the header of the file."""
_LEAF: Final = 13
_KINDS: Final = {False: (2, 10), True: (5, 13)}
"""Of a first page: of a table without row numbers, and with them. Source:
sqlite.org/fileformat2.html, 1.6, "B-tree Pages"."""

BEGINNINGS: Final[tuple[dict[str, int], ...]] = (
    {
        "store": 3, "inodes": 4, "entries": 5, "xattrs": 6, "extents": 7, "inline": 8, "shared": 9,
        "digests": 10, "objects": 11, "snapshots": 12, "dirty": 17, "orphans": 19, "garbage": 20,
    },
    {
        "store": 3, "inodes": 4, "entries": 5, "xattrs": 6, "extents": 7, "inline": 8, "shared": 9,
        "digests": 10, "objects": 11, "snapshots": 12, "dirty": 17, "orphans": 18, "garbage": 19,
    },
    {
        "store": 3, "inodes": 4, "entries": 5, "xattrs": 6, "extents": 7, "inline": 8,
        "digests": 9, "objects": 10, "snapshots": 11, "dirty": 16, "orphans": 17, "garbage": 18,
        "shared": 32,
    },
    {
        "store": 3, "inodes": 4, "entries": 5, "xattrs": 6, "extents": 7, "inline": 8,
        "objects": 9, "snapshots": 10, "dirty": 15, "orphans": 16, "garbage": 17, "digests": 28,
        "shared": 32,
    },
)  # fmt: skip
"""Where tables begin in stores made with format 5, 4, 3 or 2, and 1."""
LAST_BEGINNING: Final = max(page for begin in BEGINNINGS for page in begin.values())
INCREMENTAL: Final = 2
"""Of auto_vacuum: as all stores have it (docs/on-disk-format.md, R01)."""


def has_schema(path: Path) -> bool:
    """Return whether a database tells of its tables."""
    try:
        connection = apsw.Connection(str(path))
        try:
            return bool(connection.execute("SELECT count(*) FROM sqlite_schema").get)
        finally:
            connection.close()
    except apsw.Error:
        return False


def put_schema_back(damaged: Path) -> None:
    """Give a database that does not tell of its tables a first page that does, for reading alone.

    No other page is changed. How many pages there are, and which of them are free, SQLite finds out
    by itself where it is not said.

    Args:
        damaged: of the current format; without a log.
    """
    with damaged.open("r+b") as file:
        kinds = [_kind(file, page) for page in range(LAST_BEGINNING + 1)]
        begin = max(
            BEGINNINGS, key=lambda begin: sum(_fits(kinds, *each) for each in begin.items())
        )
        page = _first_page(damaged.with_name("schema.db"), begin)
        file.seek(0)
        file.write(page)


def _kind(file: BinaryIO, page: int) -> int:
    """Return the kind of a page, which its first byte tells; 0 where it tells of none."""
    if page < 2:
        return 0
    file.seek((page - 1) * PAGE_BYTES)
    return (file.read(1) or b"\0")[0]


def _fits(kinds: list[int], name: str, page: int) -> bool:
    return kinds[page] in _KINDS[_has_row_numbers(name)]


def _has_row_numbers(name: str) -> bool:
    table = ALL_TABLES[name]
    return table.order == (table.number,)


def _first_page(scratch: Path, begin: dict[str, int]) -> bytes:
    """Return the first page of a database whose tables begin at these pages."""
    scratch.unlink(missing_ok=True)
    connection = apsw.Connection(str(scratch))
    try:
        connection.pragma("page_size", PAGE_BYTES)
        connection.pragma("auto_vacuum", INCREMENTAL)
        for name, table in ALL_TABLES.items():
            columns = ",".join(f'"{column}"' for column in table.columns)
            if _has_row_numbers(name):
                columns = columns.replace(
                    f'"{table.number}"', f"{table.number} INTEGER PRIMARY KEY", 1
                )
                connection.execute(f"CREATE TABLE {name}({columns})")
            else:
                key = ",".join(table.order)
                connection.execute(
                    f"CREATE TABLE {name}({columns},PRIMARY KEY({key}))WITHOUT ROWID"
                )
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", FORMAT_VERSION)
        connection.pragma("writable_schema", 1)
        for name, number in begin.items():
            query = "UPDATE sqlite_schema SET rootpage = ? WHERE name = ?"
            connection.execute(query, (number, name))
    finally:
        connection.close()
    page = bytearray(scratch.read_bytes()[:PAGE_BYTES])
    scratch.unlink()
    assert page[_BTREE] == _LEAF, "what tells of the tables must fit into one page"
    page[_COUNTS] = bytes(_COUNTS.stop - _COUNTS.start)
    return bytes(page)
