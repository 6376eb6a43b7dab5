"""SQLite databases of a volume: found by their header, brought to rest, checked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw

from statefs.errors import HookFailed
from statefs.hooks.commands import Deadline

HEADER: Final = b"SQLite format 3\0"
"""Source: https://www.sqlite.org/fileformat2.html, "Magic Header String"."""
SMALLEST_BYTES: Final = 512
"""The smallest page there is, so the smallest database that is not empty."""
READERS_SECONDS: Final = 1.0
"""How long a checkpoint waits for readers: the log is in the snapshot too, so it may stay long."""
PROGRESS_STEPS: Final = 100_000
"""Instructions of SQLite's machine between two looks: some milliseconds."""
PROBLEMS_MAX: Final = 5
"""How many problems of one database are told."""


def is_database(path: Path) -> bool:
    """Return whether a regular file begins as an SQLite database does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # gone meanwhile, a link, or not to be read by this user
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(HEADER), 0) == HEADER
    finally:
        os.close(fd)


def find_databases(folder: Path) -> list[Path]:
    """Return the SQLite databases in a folder and below, sorted.

    Raises:
        OSError: a folder cannot be listed.
    """
    return sorted(path for path in regular_files(folder, SMALLEST_BYTES) if is_database(path))


def regular_files(folder: Path, bytes_min: int = 0) -> Iterator[Path]:
    """Yield the regular files in a folder and below that have at least `bytes_min` bytes.

    Raises:
        OSError: a folder cannot be listed; one that is gone by then is no error.
    """
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif (
                        entry.is_file(follow_symlinks=False)
                        and entry.stat(follow_symlinks=False).st_size >= bytes_min
                    ):
                        yield Path(entry.path)
        except FileNotFoundError:
            continue


def bring_to_rest(database: Path, deadline: Deadline) -> str | None:
    """Wait until nobody writes, then move the log into the database.

    The lock is given up again: a snapshot is one moment, and SQLite recovers from any moment.

    Returns:
        What a person should know, None when all is well.

    Raises:
        HookFailed: another program kept the database locked until the deadline.
    """
    try:
        with closing(_opened(database)) as connection:
            connection.set_busy_timeout(int(deadline.require(str(database)) * 1000))
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            if connection.pragma("journal_mode") != "wal":
                return None
            patience = min(deadline.left_seconds(), READERS_SECONDS)
            connection.set_busy_timeout(int(patience * 1000))
            ((is_busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return f"{database}: readers kept the log from being emptied" if is_busy else None
    except apsw.BusyError:
        raise HookFailed(
            f"{database}: another program kept the database locked for {deadline.seconds:g} s"
        ) from None
    except (apsw.Error, UnicodeError) as error:
        return f"{database}: not brought to rest: {error}"


def check(database: Path) -> str | None:
    """Return what `integrity_check` finds wrong with a database in a writable copy, if anything.

    Raises:
        HookFailed: it cannot be told, e.g. for an extension that is missing here.
    """
    try:
        with closing(_opened(database)) as connection:
            # A look at Python now and then, so that a signal ends a long check.
            connection.set_progress_handler(lambda: False, PROGRESS_STEPS)
            rows = list(connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})"))
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return str(error)
    except (apsw.Error, UnicodeError) as error:
        raise HookFailed(f"{database}: {error}") from error
    said = [str(row[0]) for row in rows]
    return None if said == ["ok"] else "; ".join(said)


def _opened(database: Path) -> apsw.Connection:
    return apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
