"""SQLite on the mount: every snapshot of a database in use is one that SQLite recovers."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

from tests.apps import sqlite_writer
from tests.apps.programs import Reporting, reporting
from tests.harness.mounted_state import MountedState
from tests.harness.trees import digest_of

WRITERS: Final = 3
SAVES: Final = 5
MIB: Final = 1 << 20
LARGE_BYTES: Final = 90 * MIB


def make_bank(path: Path, journal_mode: str) -> None:
    """Make the database that sqlite_writer.py works on."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {journal_mode}")
        database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, money INTEGER)")
        database.execute("CREATE TABLE moves (writer, number, payload, UNIQUE (writer, number))")
        database.executemany(
            "INSERT INTO accounts VALUES (?, ?)",
            [(number, sqlite_writer.MONEY_EACH) for number in range(sqlite_writer.ACCOUNTS)],
        )


def check_bank(path: Path, known: list[int]) -> list[int]:
    """Check a database that is not in use, which recovers it first.

    Args:
        path: the database; its journal or log beside it.
        known: for each writer the number of rows that were acknowledged for certain.

    Returns:
        For each writer the number of rows.
    """
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        total = database.execute("SELECT sum(money) FROM accounts").fetchone()
        found = database.execute(
            "SELECT count(*), max(number) + 1 FROM moves GROUP BY writer ORDER BY writer"
        ).fetchall()
    assert total == (sqlite_writer.ACCOUNTS * sqlite_writer.MONEY_EACH,), (
        "half of a transaction is there"
    )
    assert all(rows == end for rows, end in found), "a committed row is missing"
    counts = [rows for rows, _ in found]
    assert all(rows >= least for rows, least in zip(counts, known, strict=True)), (counts, known)
    return counts


def copy_database(folder: Path, copy: Path) -> Path:
    """Copy a snapshot's database with its journal or log, as a user would; return its path."""
    shutil.copytree(folder, copy)
    return copy / "bank.db"


@pytest.mark.parametrize("journal_mode", ["wal", "delete", "truncate", "persist"])
def test_snapshots_of_a_database_in_use_recover(
    app_state: MountedState, disk: Path, journal_mode: str
) -> None:
    """Several processes write while saves are taken; no snapshot lacks what was committed."""
    folder = app_state.files / "bank"
    folder.mkdir()
    bank = folder / "bank.db"
    make_bank(bank, journal_mode)
    known: dict[str, list[int]] = {}
    with ExitStack() as stack:
        writers = [
            start_writer(stack, bank, journal_mode, number, disk) for number in range(WRITERS)
        ]
        for writer in writers:
            writer.lines_after(1)
        for number in range(SAVES):
            writers[number % WRITERS].lines_after(3)
            acknowledged = [len(writer.lines()) for writer in writers]
            known[app_state.save()] = acknowledged
        for writer in writers:
            writer.assert_running()
    last = [len(writer.lines()) for writer in writers]
    counts = [
        check_bank(copy_database(app_state.snapshots / name / "files" / "bank", disk / name), rows)
        for name, rows in known.items()
    ]
    counts.append(check_bank(bank, last))
    for rows_of_writer in zip(*counts, strict=True):
        assert list(rows_of_writer) == sorted(rows_of_writer)


def start_writer(
    stack: ExitStack, bank: Path, journal_mode: str, number: int, disk: Path
) -> Reporting:
    """Start sqlite_writer.py until the end of `stack`."""
    program = [sys.executable, sqlite_writer.__file__]
    words = [str(bank), journal_mode, str(number)]
    return stack.enter_context(reporting(*program, *words, log=disk / f"writer{number}.log"))


def make_large_database(path: Path) -> None:
    """Make a database of 90 MiB with rows of all sizes."""
    chance = random.Random(90)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE blocks (id INTEGER PRIMARY KEY, version, bytes)")
        written = 0
        while written < LARGE_BYTES:
            block = chance.randbytes(chance.randrange(1, 40_000))
            database.execute("INSERT INTO blocks (version, bytes) VALUES (0, ?)", (block,))
            written += len(block)


def update_by_sqlite(path: Path) -> None:
    """Change every seventh row and drop every eleventh: pages all over the file."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE blocks SET version = 1, bytes = zeroblob(5000) WHERE id % 7 = 0")
        database.execute("DELETE FROM blocks WHERE id % 11 = 0")


def overwrite_by_write(path: Path) -> None:
    """Write at 400 places that respect no page or block, two of them around the old end."""
    chance = random.Random(400)
    size = path.stat().st_size
    places = [(chance.randrange(size), chance.randrange(1, 70_000)) for _ in range(398)]
    with open(path, "r+b", buffering=0) as file:
        for place, length in [*places, (size - 5, 10), (size + 100_000, 10)]:
            os.pwrite(file.fileno(), chance.randbytes(length), place)


def overwrite_by_map(path: Path) -> None:
    """Store into a shared map at 400 places."""
    chance = random.Random(401)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        for _ in range(400):
            place = chance.randrange(len(view) - 9_000)
            view[place : place + 9_000] = chance.randbytes(9_000)


@pytest.mark.parametrize("overwrite", [update_by_sqlite, overwrite_by_write, overwrite_by_map])
def test_a_large_database_overwritten_right_after_a_save(
    app_state: MountedState, disk: Path, overwrite: Callable[[Path], None]
) -> None:
    """Current and snapshot equal, byte for byte, copies that never were in the mount.

    The case that corrupted fuse-overlayfs silently (its issue 475).
    """
    before, after = disk / "before.db", disk / "after.db"
    make_large_database(before)
    shutil.copyfile(before, after)
    overwrite(after)
    current = app_state.files / "large.db"
    shutil.copyfile(before, current)
    snapshot = app_state.snapshots / app_state.save() / "files" / "large.db"
    overwrite(current)
    wanted = (digest_of(before), digest_of(after))
    assert wanted[0] != wanted[1]
    assert (digest_of(snapshot), digest_of(current)) == wanted
    app_state.remount()
    assert (digest_of(snapshot), digest_of(current)) == wanted
