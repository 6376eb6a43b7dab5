"""How rows are born, change and end: what every snapshot sees afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statefs.ids import LIVING, Epoch
from statefs.metadata.connection import Database, create_database
from statefs.metadata.temporal import EXTENTS, INLINE, VERSIONED, XATTRS, RowLife, Temporal
from tests.unit.engine_store import EngineStore

INO, NAME = 2000, b"user.x"


@pytest.fixture
def temporal(engine: EngineStore) -> Iterator[Temporal]:
    """The writer of a store in epoch 5 whose newest snapshot is that of epoch 3.

    The store itself knows nothing of it: each test leaves no row behind, by rolling back.
    """
    engine.database.begin()
    yield Temporal(engine.database, Epoch(5), Epoch(3))
    engine.database.roll_back()


def versions(engine: EngineStore) -> list[tuple[int, int, bytes]]:
    """Return (valid_from, valid_to, value) of the attribute's versions."""
    return [
        (row[0], row[1], row[2])
        for row in engine.database.rows(
            "SELECT valid_from, valid_to, value FROM xattrs WHERE ino = ? ORDER BY valid_to", (INO,)
        )
    ]


def insert(engine: EngineStore, since: int, value: bytes = b"old") -> None:
    """Insert the attribute as born in an earlier epoch."""
    engine.database.execute(
        "INSERT INTO xattrs VALUES (?, ?, ?, ?, ?)", (INO, NAME, LIVING, since, value)
    )


def test_a_row_is_born_living_in_the_current_epoch(engine: EngineStore, temporal: Temporal) -> None:
    """Its valid_to is infinity."""
    temporal.born(XATTRS, INO, NAME, b"new")
    assert versions(engine) == [(5, LIVING, b"new")]


@pytest.mark.parametrize("born", [4, 5])
def test_a_row_that_no_snapshot_sees_changes_in_place(
    engine: EngineStore, temporal: Temporal, born: int
) -> None:
    """Also one of an earlier epoch whose snapshot is gone; it is then as if born now."""
    insert(engine, born)
    temporal.change(XATTRS, born, (INO, NAME), (b"new",))
    assert versions(engine) == [(5, LIVING, b"new")]


@pytest.mark.parametrize("born", [1, 3])
def test_a_row_that_a_snapshot_sees_leaves_its_past_behind(
    engine: EngineStore, temporal: Temporal, born: int
) -> None:
    """The copy ends where the living row begins."""
    insert(engine, born)
    temporal.change(XATTRS, born, (INO, NAME), (b"new",))
    assert versions(engine) == [(born, 5, b"old"), (5, LIVING, b"new")]


def test_a_second_change_in_the_epoch_leaves_no_second_copy(
    engine: EngineStore, temporal: Temporal
) -> None:
    """No snapshot can have seen what was between."""
    insert(engine, 1)
    temporal.change(XATTRS, 1, (INO, NAME), (b"new",))
    temporal.change(XATTRS, 5, (INO, NAME), (b"newer",))
    assert versions(engine) == [(1, 5, b"old"), (5, LIVING, b"newer")]


@pytest.mark.parametrize(("born", "left"), [(3, [(3, 5, b"old")]), (4, []), (5, [])])
def test_a_row_that_ends_stays_only_if_a_snapshot_sees_it(
    engine: EngineStore, temporal: Temporal, born: int, left: list[tuple[int, int, bytes]]
) -> None:
    """A file made and removed between two snapshots leaves nothing."""
    insert(engine, born)
    temporal.end(XATTRS, born, INO, NAME)
    assert versions(engine) == left


def test_ended_and_born_again_are_two_rows(engine: EngineStore, temporal: Temporal) -> None:
    """Removing a name and making it again in one epoch does not collide with the past row."""
    insert(engine, 2)
    temporal.end(XATTRS, 2, INO, NAME)
    temporal.born(XATTRS, INO, NAME, b"new")
    temporal.end(XATTRS, 5, INO, NAME)
    temporal.born(XATTRS, INO, NAME, b"newest")
    assert versions(engine) == [(2, 5, b"old"), (5, LIVING, b"newest")]


def test_ending_all_tells_which_objects_lost_a_row(engine: EngineStore, temporal: Temporal) -> None:
    """Those of deleted rows: an object that a past row still names is not free."""
    execute = engine.database.execute
    for start, since, number in ((0, 2, 90), (10, 4, 91), (20, 5, 92)):
        row = (INO, start, LIVING, since, start + 10, number)
        execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?, ?)", row)
    assert sorted(temporal.end_all(EXTENTS, INO)) == [91, 92]
    rows = engine.database.rows("SELECT valid_to, object FROM extents WHERE ino = ?", (INO,))
    assert rows == [(5, 90)]


def test_erasing_since_an_epoch_backdates_the_end(engine: EngineStore) -> None:
    """What a nameless file became after it lost its name, no snapshot keeps."""
    ino = engine.file("f", b"one")
    first = engine.save()
    engine.table.opened(ino)
    engine.names.unlink(16, b"f")
    engine.data.write(ino, 0, b"two")
    engine.save()
    engine.data.write(ino, 0, b"six")
    engine.table.closed(ino)
    lives = "SELECT valid_from, valid_to FROM {} WHERE ino = ?"
    for table in ("inodes", "inline"):
        assert engine.database.rows(lives.format(table), (ino,)) == [(1, 2)]
    assert engine.past_content(first, ino) == b"one"


def test_erasing_keeps_nothing_that_only_a_deleted_snapshot_saw(engine: EngineStore) -> None:
    """The backdated end must leave an epoch that some snapshot shows."""
    engine.save()
    ino = engine.file("f", b"one")
    engine.attributes.set_xattr(ino, b"user.x", b"1")
    middle = engine.save()
    engine.table.opened(ino)
    engine.names.unlink(16, b"f")
    engine.save()
    engine.delete(middle)
    engine.table.closed(ino)
    assert [engine.rows(table) for table in ("xattrs", "inline")] == [0, 0]
    assert engine.problems() == []


def test_forgetting_deletes_what_one_snapshot_alone_saw(
    engine: EngineStore, temporal: Temporal
) -> None:
    """Between its neighbours' epochs, in steps; rows that a neighbour sees stay."""
    for name, since, until in (
        (b"a", 1, 3),
        (b"b", 2, 3),
        (b"c", 2, 4),
        (b"d", 3, 4),
        (b"e", 2, 5),
    ):
        engine.database.execute(
            "INSERT INTO xattrs VALUES (?, ?, ?, ?, ?)", (INO, name, until, since, b"")
        )
    insert(engine, 2)
    assert list(temporal.forget(XATTRS, (1, 2, 4), lambda: 2)) == [[0, 0], [0]]
    left = engine.database.rows("SELECT name FROM xattrs WHERE ino = ? ORDER BY name", (INO,))
    assert left == [(b"a",), (b"e",), (NAME,)]


@pytest.mark.parametrize("life", VERSIONED, ids=lambda life: life.table)
def test_forgetting_looks_at_no_row_that_stays(engine: EngineStore, life: RowLife) -> None:
    """Each part of its statements is a search in a key or an index by all that is asked for."""
    for sql, values in ((life.next_end_sql, (1, 2)), (life.forget_sql, (2, 1, 10))):
        plan = [row[3] for row in engine.database.rows(f"EXPLAIN QUERY PLAN {sql}", values)]
        looks = [line for line in plan if line.startswith(("SCAN", "SEARCH"))]
        assert looks and all(line.startswith("SEARCH") for line in looks), plan
        ended = f"USING COVERING INDEX {life.table}_ended (valid_to"
        assert any(ended in line for line in looks), plan


def test_forgetting_does_not_dwell_on_epochs_of_others(
    engine: EngineStore, temporal: Temporal
) -> None:
    """A step ends after so many epochs, although it has found nothing to delete."""
    for until in range(3, 10):
        engine.database.execute(
            "INSERT INTO xattrs VALUES (?, ?, ?, ?, ?)", (INO, b"%d" % until, until, 1, b"")
        )
    assert list(temporal.forget(XATTRS, (1, 2, 9), lambda: 3)) == [[], []]
    assert engine.database.value("SELECT count(*) FROM xattrs") == 7


steps = st.lists(
    st.sampled_from(["born", "change", "end", "save", "forget first", "forget last"]), max_size=40
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
@pytest.mark.parametrize("life", [XATTRS, INLINE], ids=lambda life: life.table)
def test_every_snapshot_sees_what_was_true_when_it_was_taken(
    tmp_path_factory: pytest.TempPathFactory, life: Any, steps: list[str]
) -> None:
    """Against a dictionary of values, with the newest and the oldest snapshot deleted at times."""
    path = tmp_path_factory.mktemp("temporal") / "meta.db"
    create_database(path)
    database = Database(path)
    temporal = Temporal(database, Epoch(1), Epoch(0))
    database.execute("INSERT INTO store VALUES ('epoch', 1)")
    key = (INO, NAME) if life is XATTRS else (INO,)
    value: bytes | None = None
    born, saved, counter = 0, dict[int, bytes | None](), 0
    with database.transaction():
        for step in steps:
            counter += 1
            new = b"%d" % counter
            if step == "born" and value is None:
                temporal.born(life, *key, new)
                value, born = new, temporal.epoch
            elif step == "change" and value is not None:
                temporal.change(life, born, key, (new,))
                value, born = new, temporal.epoch
            elif step == "end" and value is not None:
                temporal.end(life, born, *key)
                value = None
            elif step == "save":
                saved[temporal.epoch] = value
                temporal.write_next_epoch()
                temporal.enter_next_epoch()
            elif step.startswith("forget") and saved:
                gone = min(saved) if step.endswith("first") else max(saved)
                del saved[gone]
                temporal.pinned = Epoch(max(saved, default=0))
                before = max((epoch for epoch in saved if epoch < gone), default=0)
                after = min((epoch for epoch in saved if epoch > gone), default=temporal.epoch)
                for _ in temporal.forget(life, (before, gone, after), lambda: 2):
                    pass
        column = "value" if life is XATTRS else "data"
        query = f"SELECT {column} FROM {life.table} WHERE valid_from <= ?1 AND valid_to > ?1"
        for epoch, expected in (*saved.items(), (LIVING - 1, value)):
            found = [row[0] for row in database.rows(query, (epoch,))]
            assert found == ([] if expected is None else [expected])
        seen = len({v for v in saved.values() if v is not None} | ({value} - {None}))
        assert database.value(f"SELECT count(*) FROM {life.table}") == seen
    database.close()


def test_all_versioned_tables_have_a_life() -> None:
    """Every table with valid_from is written through `temporal` alone."""
    assert {life.table for life in VERSIONED} == {
        "inodes", "entries", "xattrs", "extents", "inline", "digests",
    }  # fmt: skip


def test_only_one_module_writes_lifetimes() -> None:
    """No other statement of the engine sets them; a repair does in the database that it makes."""
    root = Path(__file__).parents[2] / "statefs"
    writers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(text in path.read_text() for text in ("SET valid_", "(valid_to, valid_from,"))
    }
    repair = {f"maintenance/repair/{name}.py" for name in ("filling", "rebuilding")}
    assert writers == {"metadata/temporal.py"} | repair
