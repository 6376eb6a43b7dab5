"""Copies of the database: whole and sound, of one moment, not too many, and made when due."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest

from statefs.config import Backups, Size
from statefs.errors import CorruptStore
from statefs.maintenance import backups, steps
from statefs.maintenance.backups import Copy, copies, copy_database, problems_of, superfluous
from tests.unit.engine_store import EngineStore


def names_in(path: Path) -> list[bytes]:
    """Return the names of all files that a copy knows."""
    connection = apsw.Connection(f"file:{path}?immutable=1", flags=apsw.SQLITE_OPEN_URI | 1)
    try:
        return [row[0] for row in connection.execute("SELECT name FROM entries ORDER BY name")]
    finally:
        connection.close()


def end_of(coroutine: Coroutine[Any, Any, Path]) -> Path:
    """Return what a coroutine that waits for nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return Path(end.value)
    raise AssertionError("it waits")


def test_a_copy_is_of_one_moment(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while it is made is not in it; what came before is, log and all."""
    monkeypatch.setattr(backups, "PAGES_PER_STEP", 1)
    engine.file("before", b"x")
    made: list[int] = []

    async def between(step: steps.Step) -> object:
        made.append(engine.file(f"meanwhile {len(made)}"))
        return step()

    path = end_of(steps.drive(copy_database(engine.store.layout), between))
    found = names_in(path)
    assert b"before" in found and not [name for name in found if name.startswith(b"meanwhile")]
    assert len(made) > 10
    assert path.stat().st_mode & 0o777 == 0o600
    assert problems_of(path) == []
    assert [each.path for each in copies(engine.store.layout)] == [path]


def test_a_damaged_database_is_not_copied(engine: EngineStore) -> None:
    """Its copies would push the good ones out; nothing is left of the attempt."""
    engine.file("f", b"x" * 5000)
    engine.database.checkpoint()
    (page,) = engine.database.rows("SELECT rootpage FROM sqlite_master WHERE name = 'objects_ino'")
    with engine.store.layout.meta_db.open("r+b") as file:
        file.seek((page[0] - 1) * 4096)
        good = file.read(4096)
        file.seek((page[0] - 1) * 4096)
        file.write(bytes([255]) * 4096)
    with pytest.raises(CorruptStore, match="no copy of it is kept"):
        steps.run(copy_database(engine.store.layout))
    assert steps.run(engine.store.backuper.run()) is None
    assert os.listdir(engine.store.layout.backups) == []
    assert not engine.store.backuper.is_due()
    with engine.store.layout.meta_db.open("r+b") as file:
        file.seek((page[0] - 1) * 4096)
        file.write(good)


def test_a_copy_is_due_after_a_change(engine: EngineStore) -> None:
    """An interval after the last one, and only when something was committed since."""
    backuper = engine.store.backuper
    engine.clock.time_ns = engine.store.created_ns
    assert not backuper.is_due()
    engine.clock.time_ns += 3_600_000_000_000
    assert backuper.is_due()
    path = steps.run(backuper.run())
    assert path is not None
    engine.clock.time_ns = int(copies(engine.store.layout)[0].made + 7200) * 1_000_000_000
    assert not backuper.is_due()
    engine.file("f")
    assert backuper.is_due()
    engine.store.layout.config.write_text("[backups]\ninterval = 0\n")
    assert not backuper.is_due()


def test_a_full_disk_gets_no_copy(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the room that programs need."""
    monkeypatch.setattr(backups, "ROOM_FACTOR", 1 << 50)
    assert steps.run(engine.store.backuper.run()) is None
    assert copies(engine.store.layout) == []


@pytest.mark.parametrize(
    ("count", "size", "gone"), [(10, 1000, ""), (2, 1000, "cd"), (10, 250, "cd"), (10, 1, "bcd")]
)
def test_the_oldest_are_superfluous(count: int, size: int, gone: str) -> None:
    """Beyond a number or a size, but never the newest."""
    found = [Copy(Path(name), 4, 100.0 - n, 100) for n, name in enumerate("abcd")]
    kept = Backups(count=count, max_bytes=Size(size))
    assert "".join(str(each.path) for each in superfluous(found, kept)) == gone
