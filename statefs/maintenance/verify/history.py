"""Rules of the database as such: pages, keys, lifetimes, numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from statefs.ids import CLONE_BIT, FIRST_FREE_INO, LIVING
from statefs.maintenance.verify.reading import ROOTS, Reading, in_clones
from statefs.metadata.schema import APPLICATION_ID, FORMAT_VERSION
from statefs.metadata.temporal import INLINE, VERSIONED, RowLife
from statefs.snapshots.digest import is_state_digest

INTEGRITY_LINES: Final = 20
"""SQLite's own complaints that are worth reading."""
INCREMENTAL: Final = 2
"""PRAGMA auto_vacuum of a database that can give pages back."""
NUMBERS: Final = (
    "created_ns", "epoch", "next_id", "last_slot", "last_modified_ns", "clean", "files", "bytes",
)  # fmt: skip
"""Keys of the table `store` whose values are not negative."""
_USED_INODES: Final = (
    f"SELECT min(number), max(number) FROM (SELECT ino & ~{CLONE_BIT} AS number FROM inodes"
    f" WHERE ino NOT IN {tuple(map(int, ROOTS))})"
)


def check_pages(reading: Reading) -> Iterator[str]:
    """R01: SQLite finds its file sound, and it is a statefs database of this format."""
    for (line,) in reading.rows(f"PRAGMA integrity_check({INTEGRITY_LINES})"):
        if line != "ok":
            yield f"meta.db: {' '.join(line.split())}"
    for pragma, wanted in (
        ("application_id", APPLICATION_ID),
        ("user_version", FORMAT_VERSION),
        ("auto_vacuum", INCREMENTAL),
    ):
        found = reading.value(f"PRAGMA {pragma}")
        if found != wanted:
            yield f"meta.db: {pragma} is {found}, not {wanted}"


def check_store_keys(reading: Reading) -> Iterator[str]:
    """R02: `store` holds every key, with a value that it can have."""
    store = reading.store
    for key in ("app_id", "uuid", "lineage", *NUMBERS):
        if key not in store:
            yield f"the key {key} is missing"
    for key in ("uuid", "lineage"):
        if key in store and not _is_uuid(store[key]):
            yield f"the key {key} is no UUID: {store[key]!r}"
    for key in NUMBERS:
        least = {"epoch": 1, "next_id": FIRST_FREE_INO}.get(key, 0)
        if key in store and not (isinstance(store[key], int) and store[key] >= least):
            yield f"the key {key} cannot be {store[key]!r}"
    current_as = store.get("current_as")
    if not (current_as is None or _is_uuid(current_as) or is_state_digest(current_as)):
        yield f"the key current_as is no UUID and no state digest: '{current_as}'"
    if store.get("clean", 0) not in (0, 1):
        yield f"the key clean cannot be {store['clean']!r}"


def _is_uuid(value: object) -> bool:
    try:
        return str(UUID(str(value))) == value
    except ValueError:
        return False


def _key(life: RowLife) -> str:
    return ", ".join(f"r.{name}" for name in life.key)


def check_lifetimes(reading: Reading) -> Iterator[str]:
    """R03: a row begins before it ends, and neither later than the current epoch."""
    for life in VERSIONED:
        query = (
            f"SELECT r.valid_from, r.valid_to, {_key(life)} FROM {life.table} r"
            " WHERE valid_from < 1 OR valid_from > ?1 OR valid_to <= valid_from"
            f" OR (valid_to > ?1 AND valid_to != {LIVING}) ORDER BY 3, 2"
        )
        for since, until, *key in reading.rows(query, (reading.epoch,)):
            end = "for ever" if until == LIVING else f"until {until}"
            yield f"{life.table} {key} lives from epoch {since} {end}; now is {reading.epoch}"


def overlaps(life: RowLife) -> str:
    """Return a query for rows that end after the next one of their key begins.

    Returns:
        SQL for (valid_from, valid_to, key...).
    """
    same = " AND ".join(f"n.{name} = r.{name}" for name in life.key)
    later = "n.valid_to > r.valid_to"
    if life is INLINE:  # the one table whose primary key is not its key
        later = "(n.valid_to, n.id) > (r.valid_to, r.id)"
    return (
        f"SELECT r.valid_from, r.valid_to, {_key(life)} FROM {life.table} r"
        f" WHERE r.valid_to < {LIVING} AND (SELECT n.valid_from FROM {life.table} n WHERE {same}"
        f" AND {later} ORDER BY n.valid_to LIMIT 1) < r.valid_to ORDER BY 3, 2"
    )


def check_versions(reading: Reading) -> Iterator[str]:
    """R04: two versions of one key are never true in the same epoch."""
    for life in VERSIONED:
        for _, until, *key in reading.rows(overlaps(life)):
            yield f"{life.table} {key} has two versions in epoch {until - 1}"
    query = (
        "SELECT ino FROM inline INDEXED BY inline_ino GROUP BY ino, valid_to HAVING count(*) > 1"
    )
    for (ino,) in reading.rows(query):
        yield f"inline [{ino}] has two versions that end together"


def check_past_is_pinned(reading: Reading) -> Iterator[str]:
    """R05: a row that has ended is seen by some snapshot, else it would never be freed.

    Rows of clones do not end.
    """
    for life in VERSIONED:
        query = (
            f"SELECT r.valid_from, r.valid_to, {_key(life)} FROM {life.table} r"
            f" WHERE r.valid_to < {LIVING} AND (NOT seen(r.valid_from, r.valid_to)"
            f" OR {in_clones(f'r.{life.key[0]}')}) ORDER BY 3, 2"
        )
        for since, until, *key in reading.rows(query):
            yield f"{life.table} {key}: no snapshot sees an epoch from {since} until {until}"


def check_numbers(reading: Reading) -> Iterator[str]:
    """R06: every number in use has been handed out."""
    newest = reading.store["next_id"]
    for what, query in (
        ("inode", _USED_INODES),
        ("cookie", "SELECT min(cookie), max(cookie) FROM entries"),
        ("object", "SELECT min(id), max(id) FROM objects"),
        ("garbage", "SELECT min(object), max(object) FROM garbage"),
    ):
        for number in next(reading.rows(query)):
            if number is not None and not FIRST_FREE_INO <= number < newest:
                yield (
                    f"{what} {number} was never handed out: numbers go from {FIRST_FREE_INO}"
                    f" to below {newest}"
                )
    if newest > CLONE_BIT:
        yield f"the next number, {newest}, does not fit the 39 bits of an inode number"
