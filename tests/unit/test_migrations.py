"""An older store is brought to the wanted format step by step, after a backup."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from statefs.errors import CorruptStore, NewerStore
from statefs.layout import StoreLayout
from statefs.maintenance.migrations import STEPS, migrate
from statefs.maintenance.store import init_store, open_store
from statefs.metadata.connection import Database
from statefs.metadata.schema import FORMAT_VERSION


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """A store of the current format."""
    init_store(tmp_path / "store")
    return StoreLayout(tmp_path / "store")


def version_of(database: Path) -> int:
    """Return the format version that a database is stamped with."""
    connection = apsw.Connection(str(database))
    try:
        return int(connection.pragma("user_version"))
    finally:
        connection.close()


def note(value: str) -> str:
    """Return the statement by which a step leaves a trace."""
    return f"INSERT INTO store VALUES ('trace-{value}', 1)"


def test_a_current_store_is_left_alone(layout: StoreLayout) -> None:
    """Nothing to do means no backup either."""
    migrate(layout)
    assert not layout.backups.exists()
    assert version_of(layout.meta_db) == FORMAT_VERSION


@pytest.mark.damages_store("its format is one that this program does not know")
def test_steps_are_taken_in_order_after_a_backup(layout: StoreLayout) -> None:
    """Two formats later: both steps ran, and the backup is the database as it was before."""
    trace: list[str] = []

    def step(name: str, database: Database) -> None:
        trace.append(name)
        database.execute(note(name))

    steps = {
        FORMAT_VERSION: lambda database: step("first", database),
        FORMAT_VERSION + 1: lambda database: step("second", database),
    }
    migrate(layout, steps, FORMAT_VERSION + 2)
    assert trace == ["first", "second"]
    assert version_of(layout.meta_db) == FORMAT_VERSION + 2
    (backup,) = layout.backups.iterdir()
    assert version_of(backup) == FORMAT_VERSION
    assert backup.stat().st_mode & 0o777 == 0o600
    connection = apsw.Connection(str(backup))
    found = connection.execute("SELECT count(*) FROM store WHERE key GLOB 'trace-*'").fetchall()
    connection.close()
    assert found == [(0,)]


def test_a_step_that_fails_leaves_the_store_as_it_was(layout: StoreLayout) -> None:
    """Step and stamp share a transaction, so the store opens as before."""

    def step(database: Database) -> None:
        database.execute(note("half"))
        raise RuntimeError("the step broke")

    with pytest.raises(RuntimeError):
        migrate(layout, {FORMAT_VERSION: step}, FORMAT_VERSION + 1)
    assert version_of(layout.meta_db) == FORMAT_VERSION
    store = open_store(layout.root)
    assert store.database.value("SELECT count(*) FROM store WHERE key = 'trace-half'") == 0
    store.close()


def test_a_format_that_no_step_leads_from_is_refused(layout: StoreLayout) -> None:
    """A version nobody wrote is damage, and one line says so."""
    with pytest.raises(CorruptStore, match="which no statefs wrote"):
        migrate(layout, {}, FORMAT_VERSION + 1)


@pytest.mark.damages_store("its format is one that this program does not know")
def test_a_newer_store_is_refused_and_not_touched(layout: StoreLayout) -> None:
    """A program that does not know a format must not write in it."""
    connection = apsw.Connection(str(layout.meta_db))
    connection.pragma("user_version", FORMAT_VERSION + 1)
    connection.close()
    before = layout.meta_db.read_bytes()
    with pytest.raises(NewerStore, match="install a newer statefs"):
        open_store(layout.root)
    assert layout.meta_db.read_bytes() == before


def test_there_is_a_step_from_every_older_format() -> None:
    """A new format comes with the way to it, and with a golden store of the old one."""
    assert sorted(STEPS) == list(range(1, FORMAT_VERSION))
