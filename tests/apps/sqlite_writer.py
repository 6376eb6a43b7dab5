"""Writes rows to a SQLite database until it is stopped; run by test_sqlite.py as a program.

Arguments: the database, the journal mode, the writer's number. Each transaction moves money between
two accounts and adds a row; after its commit the row's number goes to standard output. After each
one the money is counted through a memory map of the database, while the other writers go on.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from typing import Final

BUSY_SECONDS: Final = 60.0
MAP_BYTES: Final = 1 << 26
ACCOUNTS: Final = 50
MONEY_EACH: Final = 1_000
PAYLOAD_BYTES_MAX: Final = 6_000
"""More than a page, so that rows have overflow pages."""
PAUSE_SECONDS_MAX: Final = 0.03
"""SQLite's lock is not fair: a writer that never pauses keeps it, the others wait ever longer."""


def write_rows(path: str, journal_mode: str, writer: int) -> None:
    """Commit one transaction after the other and report each."""
    chance = random.Random(writer)
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    (mode,) = database.execute(f"PRAGMA journal_mode = {journal_mode}").fetchone()
    assert mode == journal_mode, mode
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA wal_autocheckpoint = 100")
    database.execute(f"PRAGMA mmap_size = {MAP_BYTES}")
    number = 0
    while True:
        source, target = chance.sample(range(ACCOUNTS), 2)
        payload = chance.randbytes(chance.randrange(PAYLOAD_BYTES_MAX))
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE accounts SET money = money - 1 WHERE id = ?", (source,))
        database.execute("INSERT INTO moves VALUES (?, ?, ?)", (writer, number, payload))
        database.execute("UPDATE accounts SET money = money + 1 WHERE id = ?", (target,))
        database.execute("COMMIT")
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1
        (money,) = database.execute("SELECT sum(money) FROM accounts").fetchone()
        assert money == ACCOUNTS * MONEY_EACH, f"half of a transaction is seen: {money}"
        time.sleep(chance.uniform(0, PAUSE_SECONDS_MAX))


if __name__ == "__main__":
    write_rows(sys.argv[1], sys.argv[2], int(sys.argv[3]))
