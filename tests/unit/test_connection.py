"""meta.db: transactions, errors as errnos, and which commits are durable."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from statefs.errors import CorruptStore, NewerStore, NoSuchStore, PosixError
from statefs.metadata.connection import Database, create_database
from statefs.metadata.schema import FORMAT_VERSION


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    create_database(tmp_path / "meta.db")
    database = Database(tmp_path / "meta.db")
    yield database
    database.close()


def put(database: Database, key: str) -> None:
    """Commit a row."""
    with database.transaction():
        database.execute("INSERT INTO store VALUES (?, 1)", (key,))


def test_a_missing_database_is_no_store(tmp_path: Path) -> None:
    """The message says how to make one."""
    with pytest.raises(NoSuchStore, match="statefs init"):
        Database(tmp_path / "meta.db")


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """By its application id; and so is a file that is no database."""
    path = tmp_path / "meta.db"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(CorruptStore, match="not the database"):
        Database(path)
    path.write_bytes(b"no database at all" * 500)
    with pytest.raises(CorruptStore, match="cannot be read"):
        Database(path)


def test_nothing_is_repaired_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cure of a damaged database is to copy the store first."""
    (tmp_path / "meta.db").write_bytes(b"no database at all" * 500)
    monkeypatch.setattr("statefs.metadata.connection.is_on_read_only", lambda _: True)
    with pytest.raises(CorruptStore, match=f"'cp -a {tmp_path} DIR'.*where 'statefs repair'"):
        Database(tmp_path / "meta.db")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """What it means is not known; the message says what to do."""
    create_database(tmp_path / "meta.db")
    connection = apsw.Connection(str(tmp_path / "meta.db"))
    connection.pragma("user_version", FORMAT_VERSION + 1)
    connection.close()
    with pytest.raises(NewerStore, match="install a newer"):
        Database(tmp_path / "meta.db")


def test_making_a_database_over_another_fails(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    create_database(tmp_path / "meta.db")
    with pytest.raises(FileExistsError):
        create_database(tmp_path / "meta.db")


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    """The error goes on to the caller, and the next transaction begins."""

    def fail() -> None:
        with database.transaction():
            database.execute("INSERT INTO store VALUES ('a', 1)")
            raise RuntimeError("x")

    with pytest.raises(RuntimeError, match="x"):
        fail()
    put(database, "b")
    assert database.rows("SELECT key FROM store") == [("b",)]


def test_a_commit_is_counted_and_durable_only_after_a_sync(database: Database) -> None:
    """`is_commit_synced` tells of each commit, `is_synced` of all."""
    put(database, "a")
    first = database.commits
    assert not database.is_commit_synced(first)
    database.sync()
    assert database.is_commit_synced(first)
    assert database.is_synced
    put(database, "b")
    assert database.is_commit_synced(first)
    assert not database.is_commit_synced(database.commits)


def test_a_failed_sync_ends_all_promises(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After fsync has failed once its success means nothing: every change is refused, EIO."""
    put(database, "a")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError, match="broken"):
            database.sync()
    with pytest.raises(OSError, match="broken"):
        database.sync()
    with pytest.raises(PosixError) as failure:
        put(database, "b")
    assert failure.value.errno == errno.EIO
    assert not database.is_synced


def test_those_who_wait_share_a_sync(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads that want the same commit durable cost at most two syncs."""
    put(database, "a")
    syncs: list[int] = []
    waiting = threading.Barrier(3)
    monkeypatch.setattr(os, "fdatasync", syncs.append)

    def sync() -> None:
        waiting.wait()
        database.sync()

    threads = [threading.Thread(target=sync) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(syncs) == 1
    assert database.is_synced


def test_a_full_disk_is_enospc_and_the_store_goes_on(database: Database) -> None:
    """A change that does not fit is undone whole; smaller ones go on."""
    pages = database.value("PRAGMA page_count")
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(PosixError) as failure, database.transaction():
        database.execute("INSERT INTO store VALUES ('big', zeroblob(100000))")
    assert failure.value.errno == errno.ENOSPC
    assert database.rows("SELECT * FROM store") == []
    put(database, "small")


def test_a_checkpoint_moves_the_log_into_the_database(database: Database, tmp_path: Path) -> None:
    """From another thread, while the connection is in use."""
    for number in range(20):
        put(database, str(number))
    size = (tmp_path / "meta.db").stat().st_size
    thread = threading.Thread(target=database.checkpoint)
    thread.start()
    thread.join()
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "meta.db").read_bytes())
    assert copy.stat().st_size >= size
    without_log = Database(copy)
    assert without_log.value("SELECT count(*) FROM store") == 20
    without_log.close()


def test_a_disk_that_is_full_when_a_store_is_opened_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for the log: whoever opens it is told so, and not to repair anything."""
    create_database(tmp_path / "meta.db")
    real, before = os.open, len(os.listdir("/proc/self/fd"))

    def full(path: str, flags: int, *mode: int, **named: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *mode, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space"):
            Database(tmp_path / "meta.db")
    assert len(os.listdir("/proc/self/fd")) == before
    Database(tmp_path / "meta.db").close()
