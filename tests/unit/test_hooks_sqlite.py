"""SQLite databases: found by header, brought to rest, checked; with the real engine.

The other program is a connection of the same library here: a second library in one process would
not see its locks (https://www.sqlite.org/howtocorrupt.html, 2.2.1). tests/apps has two processes.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from statefs.errors import HookFailed
from statefs.hooks.commands import Deadline
from statefs.hooks.sqlite import bring_to_rest, check, find_databases


def make_database(path: Path, mode: str = "wal") -> apsw.Connection:
    """Return a connection to a new database with a hundred rows."""
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE t (x)")
    with connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
    return connection


def test_databases_are_found_by_their_header(tmp_path: Path) -> None:
    """Whatever they are called and however deep; links, empty files and texts are none."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    wanted = [tmp_path / "a" / "b" / "data", tmp_path / "store.txt"]
    for path in wanted:
        make_database(path).close()
    (tmp_path / "x.db").write_bytes(b"SQLite is not what this is" + bytes(1000))
    (tmp_path / "y.sqlite").touch()
    (tmp_path / "link.db").symlink_to(wanted[0])
    os.mkfifo(tmp_path / "fifo.db")
    assert find_databases(tmp_path) == wanted


def test_the_log_is_moved_into_the_database(tmp_path: Path) -> None:
    """While its program has it open: the log is empty, so the file alone has everything."""
    path = tmp_path / "a.db"
    with closing(make_database(path)) as connection:
        log = path.with_name("a.db-wal")
        assert log.stat().st_size > 0
        assert bring_to_rest(path, Deadline(10)) is None
        assert log.stat().st_size == 0
        connection.execute("INSERT INTO t VALUES (1)")


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_writer_that_does_not_end_is_refused(tmp_path: Path, mode: str) -> None:
    """The error names the database and how long was waited; after the writer's end all is well."""
    path = tmp_path / "a.db"
    with closing(make_database(path, mode)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(HookFailed, match=r"a\.db: another program kept .* locked for 0.2 s"):
            bring_to_rest(path, Deadline(0.2))
        connection.execute("COMMIT")
        assert bring_to_rest(path, Deadline(10)) is None


def test_readers_do_not_hold_a_save_up(tmp_path: Path) -> None:
    """The log cannot be emptied then, which is told; it is in the snapshot, too."""
    path = tmp_path / "a.db"
    with closing(make_database(path)) as writer, closing(apsw.Connection(str(path))) as reader:
        reader.execute("BEGIN")
        list(reader.execute("SELECT count(*) FROM t"))
        writer.execute("INSERT INTO t VALUES (1)")
        note = bring_to_rest(path, Deadline(10))
        assert note is not None and note.endswith("readers kept the log from being emptied")


def test_a_file_that_only_begins_like_a_database_is_told(tmp_path: Path) -> None:
    """It is no reason not to save."""
    path = tmp_path / "a.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    note = bring_to_rest(path, Deadline(10))
    assert note is not None and "not brought to rest" in note
    assert check(path) is not None


def test_a_sound_database_passes_the_check(tmp_path: Path) -> None:
    """With its log beside it, too."""
    path = tmp_path / "a.db"
    with closing(make_database(path)):
        assert check(path) is None


def test_damage_inside_of_a_database_is_found(tmp_path: Path) -> None:
    """A page that was overwritten is told."""
    path = tmp_path / "a.db"
    connection = make_database(path, "delete")
    with connection:
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 1000)
    connection.close()
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\x55" * 4096)
    problem = check(path)
    assert problem is not None and "\n" not in problem
