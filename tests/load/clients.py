"""Programs that work in a folder and check all that they read; each is a process of its own.

`python -m tests.load.clients NAME FOLDER SECONDS SEED` is one. It ends with 0 when it saw no error
and nothing wrong, and else with a traceback: programs that use a mount must not notice anything.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 1 << 20
PIECE_BYTES_MAX: Final = 100_000
NAMES: Final = 40


def random_access(folder: Path, chance: random.Random) -> Iterator[None]:
    """Read, write, cut and map one file at random, as fsx does, beside a copy in memory."""
    path, copy = folder / "random", bytearray()
    with open(path, "w+b", buffering=0) as file:
        while True:
            start = chance.randrange(FILE_BYTES_MAX)
            piece = chance.randbytes(chance.randrange(1, PIECE_BYTES_MAX))
            match chance.randrange(5):
                case 0 | 1:
                    assert os.pwrite(file.fileno(), piece, start) == len(piece)
                    copy.extend(bytes(max(0, start - len(copy))))
                    copy[start : start + len(piece)] = piece
                case 2:
                    os.ftruncate(file.fileno(), start)
                    copy = copy[:start] + bytes(max(0, start - len(copy)))
                case 3 if copy:
                    with mmap.mmap(file.fileno(), 0) as view:
                        place = start % len(copy)
                        fits = piece[: len(copy) - place]
                        view[place : place + len(fits)] = fits
                        view.flush()
                    copy[place : place + len(fits)] = fits
            seen = os.pread(file.fileno(), len(piece), start)
            assert seen == copy[start : start + len(piece)], f"read at {start}"
            assert os.fstat(file.fileno()).st_size == len(copy)
            yield


def names(folder: Path, chance: random.Random) -> Iterator[None]:
    """Make, replace, link, move and remove files beside a table of what is there."""
    there: dict[str, list[bytes]] = {}  # links share a list
    while True:
        one, other = chance.sample([f"n{number}" for number in range(NAMES)], 2)
        match chance.randrange(5):
            case 0 | 1:
                there[one] = [chance.randbytes(chance.choice((10, 3000, 30_000)))]
                (folder / "new").write_bytes(there[one][0])
                os.rename(folder / "new", folder / one)
            case 2 if one in there:
                (folder / one).unlink()
                del there[one]
            case 3 if one in there:
                os.rename(folder / one, folder / other)
                if there.get(other) is not there[one]:  # of two links neither goes: POSIX rename
                    there[other] = there.pop(one)
            case 4 if one in there and other not in there:
                os.link(folder / one, folder / other)
                there[other] = there[one]
        assert sorted(os.listdir(folder)) == sorted(there)
        for name in chance.sample(sorted(there), min(3, len(there))):
            assert (folder / name).read_bytes() == there[name][0], name
        yield


def safe_saves(folder: Path, chance: random.Random) -> Iterator[None]:
    """Replace a JSON file in the careful way; what is read is always whole, and the last one."""
    number = 0
    while True:
        number += 1
        text = json.dumps({"number": number, "fill": "x" * chance.randrange(20_000)})
        with open(folder / "temporary", "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(folder / "temporary", folder / "state.json")
        assert json.loads((folder / "state.json").read_text())["number"] == number
        yield


def appends(folder: Path, chance: random.Random) -> Iterator[None]:
    """Append lines to a log, sometimes durably, and read all of it again from time to time."""
    path, count = folder / "log", 0
    with open(path, "ab", buffering=0) as file:
        while True:
            for _ in range(chance.randrange(1, 50)):
                file.write(b"%08d %s\n" % (count, b"y" * (count % 100)))
                count += 1
            os.fsync(file.fileno())
            with open(path, "rb") as whole:
                lines = 0
                for lines, line in enumerate(whole, 1):
                    assert line.startswith(b"%08d " % (lines - 1)), line
            assert lines == count
            if count > 20_000:
                os.ftruncate(file.fileno(), 0)
                count = 0
            yield


def transactions(folder: Path, chance: random.Random) -> Iterator[None]:
    """Move amounts between the rows of an SQLite database, whose sum stays."""
    with closing(sqlite3.connect(folder / "bank.db", isolation_level=None)) as bank:
        bank.execute(f"PRAGMA journal_mode = {chance.choice(('WAL', 'DELETE'))}")
        bank.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, amount INTEGER, fill BLOB)")
        bank.execute(
            "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 100)"
            " INSERT INTO accounts SELECT id, 100, zeroblob(900) FROM n"
        )
        while True:
            for _ in range(20):
                payer, payee, amount = chance.randint(1, 100), chance.randint(1, 100), 7
                bank.execute("BEGIN IMMEDIATE")
                for account, change in ((payer, -amount), (payee, amount)):
                    bank.execute(
                        "UPDATE accounts SET amount = amount + ? WHERE id = ?", (change, account)
                    )
                bank.execute("COMMIT")
            assert bank.execute("SELECT sum(amount) FROM accounts").fetchone() == (10_000,)
            assert bank.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            yield


CLIENTS: Final[dict[str, Callable[[Path, random.Random], Iterator[None]]]] = {
    each.__name__: each for each in (random_access, names, safe_saves, appends, transactions)
}


def main(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Work until the time is over."""
    end = time.monotonic() + seconds
    for _ in CLIENTS[name](folder, random.Random(seed)):
        if time.monotonic() >= end:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
