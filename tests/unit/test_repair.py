"""A damaged store is made sound again: every loss is told, and all the rest is as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from statefs.content import objects
from statefs.errors import CorruptStore, NewerStore, PosixError
from statefs.ids import NOW, TREE_ROOT, ObjectId
from statefs.layout import StoreLayout
from statefs.maintenance import steps
from statefs.maintenance.backups import copy_database
from statefs.maintenance.repair import repair
from statefs.maintenance.repair.losses import Report
from statefs.maintenance.repair.salvage import TABLES
from statefs.maintenance.verify import verify
from statefs.metadata.schema import PAGE_BYTES
from tests.fixtures.make_store import EXPECTED, encode, golden, shown
from tests.unit.engine_store import EngineStore, mirror, not_permitted, stat_of_no_object, tree_of
from tests.unit.test_content_checks import read
from tests.unit.test_golden_stores import VERSIONS, unpacked
from tests.unit.test_rereading import found as damage_found
from tests.unit.test_verify import BIG, DAMAGES, Damage, damage, sound  # noqa: F401

Break = Callable[[Damage], object]
Trees = list[dict[str, Any]]


def problems(layout: StoreLayout) -> list[str]:
    """Return the rules that a store breaks, after it has been opened and closed."""
    with EngineStore(layout.root) as engine:
        left = [problem.message for problem in damage_found(engine)]
    return left + [f"{each.rule}: {each.message}" for each in verify(layout)]


def trees(layout: StoreLayout) -> Trees:
    """Return the tree of current and those of all snapshots."""
    with EngineStore(layout.root) as engine:
        epochs = [each.epoch for each in engine.store.catalog.snapshots]
        return [tree_of(engine, epoch) for epoch in (None, *epochs)]


def content(tree: dict[str, Any]) -> dict[str, Any]:
    """Return path -> content of the files of a tree."""
    return {path: each["content"] for path, each in tree.items() if "content" in each}


@pytest.fixture(scope="module")
def before(sound: Path) -> Trees:  # noqa: F811
    """What a store holds that nothing has been done to."""
    mirror(sound, sound.with_name("untouched"))
    return trees(StoreLayout(sound.with_name("untouched")))


def test_a_sound_store_stays_as_it_is(before: Trees, damage: Damage) -> None:  # noqa: F811
    """Nothing is lost, nothing is put right, all snapshots stay sealed."""
    report = repair(damage.layout, read_data=True)
    assert (report.source, report.troubles, report.losses) == ("meta.db", [], [])
    assert report.put_right == {}
    assert problems(damage.layout) == []
    assert trees(damage.layout) == before
    with EngineStore(damage.layout.root) as engine:
        assert all(each.state_digest for each in engine.store.catalog.snapshots)


@pytest.mark.parametrize(("rule", "what", "make"), DAMAGES, ids=[f"{r} {w}" for r, w, _ in DAMAGES])
def test_whatever_rule_is_broken(
    damage: Damage,  # noqa: F811
    before: Trees,
    rule: str,
    what: str,
    make: Break,
) -> None:
    """All rules hold afterwards, a second repair finds nothing, and no content has changed."""
    make(damage)
    report = repair(damage.layout, read_data=True)
    assert problems(damage.layout) == [], report
    check_truth(before, damage.layout, report)
    again = repair(damage.layout, read_data=True)
    assert (again.losses, again.put_right) == ([], {})


def check_truth(before: Trees, layout: StoreLayout, report: Report) -> None:
    """Check that what is there is what was there, and that what is missing is told."""
    after = trees(layout)
    told = {path for loss in report.losses for path in (loss.path, *loss.other_names) if path}
    now = content(after[0])
    for path, data in content(before[0]).items():
        if now.get(path) != data:
            assert path not in now, (path, "has other bytes")
            is_told = any(path == each or path.startswith(f"{each}/") for each in told)
            assert is_told or data in now.values(), (path, report.losses)
    lost = [name for loss in report.losses for name in loss.snapshots]
    if not lost:
        assert [content(tree) for tree in after[1:]] == [content(tree) for tree in before[1:]]


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 8]))


def first_object(broken: Damage) -> Path:
    """Return the object that holds nearly all of the file `big`."""
    ((number,),) = broken.sql("SELECT min(id) FROM objects WHERE ino = $big")
    return broken.layout.object_path(ObjectId(number))


OBJECTS: Final[list[tuple[str, Break]]] = [
    ("flipped", lambda store: flip(first_object(store), 5000)),
    ("flipped in the past", lambda store: flip(store.object_of("sparse"), BIG // 2 - 1)),
    ("cut", lambda store: os.truncate(first_object(store), 50)),
    ("missing", lambda store: first_object(store).unlink()),
    ("missing, of current alone", lambda store: store.object_of("young").unlink()),
    ("folder missing", lambda store: shutil.rmtree(store.object_of("young").parent)),
]


@pytest.mark.parametrize(("what", "make"), OBJECTS, ids=[what for what, _ in OBJECTS])
def test_damaged_objects(damage: Damage, before: Trees, what: str, make: Break) -> None:  # noqa: F811
    """The file goes where its bytes are lost; what is left of it has a name in lost+found."""
    make(damage)
    report = repair(damage.layout, read_data=True)
    assert report.losses, "nothing was found"
    assert problems(damage.layout) == [], report
    check_truth(before, damage.layout, report)
    now = content(trees(damage.layout)[0])
    for loss in report.losses:
        if loss.found:
            assert loss.found in now
    kept = {path for path in content(before[0]) if path not in ("big", "sparse", "young")}
    assert kept <= set(now)


def pages(layout: StoreLayout) -> int:
    """Return how many pages the database has."""
    return layout.meta_db.stat().st_size // PAGE_BYTES


def zero(layout: StoreLayout, page: int) -> None:
    """Overwrite a page of the database with zeros."""
    with layout.meta_db.open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        file.write(bytes(PAGE_BYTES))


def test_each_page_of_the_database_with_a_copy(
    sound: Path,  # noqa: F811
    before: Trees,
    damage: Damage,  # noqa: F811
) -> None:
    """Whichever is zeroed (each fourth is tried): a copy of the same moment has all there was."""
    steps.run(copy_database(damage.layout))
    for page in range(0, pages(damage.layout), 4):
        shutil.copyfile(sound / "meta.db", damage.layout.meta_db)
        zero(damage.layout, page)
        report = repair(damage.layout, read_data=True)
        assert report.losses == [], (page, report)
        assert problems(damage.layout) == [], (page, report)
        assert trees(damage.layout) == before, page


def test_each_page_of_the_database_without_a_copy(
    sound: Path,  # noqa: F811
    before: Trees,
    damage: Damage,  # noqa: F811
) -> None:
    """What can still be read is there, and sound; what is gone is told."""
    for page in range(pages(damage.layout)):
        mirror(sound, damage.layout.root)
        zero(damage.layout, page)
        report = repair(damage.layout)
        assert problems(damage.layout) == [], (page, report)
        now = content(trees(damage.layout)[0])
        if content(before[0]) != {path: now.get(path) for path in content(before[0])}:
            assert report.troubles, page


def test_one_page_of_a_large_database(engine: EngineStore) -> None:
    """A few names are lost with it, and told; a header that is gone costs nothing."""
    for number in range(10):
        folder = engine.folder(f"folder {number}")
        for file in range(100):
            engine.file(f"file {number} {file}", b"x" * 100, folder)
    engine.save()
    engine.database.checkpoint()
    root = engine.root.with_name("large")
    for page, most in ((0, 0), (pages(engine.store.layout) // 2, 200)):
        mirror(engine.root, root)
        shutil.copyfile(engine.store.layout.meta_db, root / "meta.db")
        (root / "meta.db-wal").unlink()
        zero(StoreLayout(root), page)
        report = repair(StoreLayout(root))
        assert report.source == "salvage" and report.troubles
        assert len(report.losses) <= most
        with EngineStore(root) as repaired:
            assert repaired.table.files >= 1000 - most
            assert repaired.problems() == []
    shutil.rmtree(root)


@pytest.mark.parametrize("table", [*TABLES, "store", "snapshots"])
def test_the_rows_of_a_table(damage: Damage, before: Trees, table: str) -> None:  # noqa: F811
    """All of them are deleted: the rest is there, and sound."""
    damage.sql(f"DELETE FROM {table}")
    report = repair(damage.layout, read_data=True)
    assert problems(damage.layout) == [], report
    now = content(trees(damage.layout)[0])
    if table in ("inodes", "entries", "inline", "extents", "snapshots"):
        assert report.losses, table
        found = {loss.found for loss in report.losses if loss.found}
        assert found <= {path for tree in trees(damage.layout) for path in tree}
    if table in ("inodes", "entries", "extents"):
        bytes_of = set(now.values())
        assert b"y" * BIG in {data[:BIG] for data in bytes_of}
    if table in ("objects", "garbage", "dirty", "orphans", "digests", "shared", "store"):
        assert [content(tree) for tree in trees(damage.layout)] == [content(t) for t in before]


def test_without_a_database_the_objects_give_files_back(damage: Damage) -> None:  # noqa: F811
    """Larger files come back under their paths; small ones and snapshots are told as lost."""
    damage.layout.meta_db.unlink()
    report = repair(damage.layout)
    assert report.source == "objects"
    assert problems(damage.layout) == [], report
    now = content(trees(damage.layout)[0])
    assert now["lost+found/young"] == b"y" * BIG
    assert len(now["lost+found/big"]) == BIG
    assert "files/small" not in now
    snapshots = [loss.snapshots for loss in report.losses if loss.what == "a snapshot is lost"]
    assert len(snapshots) == 2


def test_a_lost_database_comes_from_the_newest_copy(damage: Damage, before: Trees) -> None:  # noqa: F811
    """What came later is in lost+found, as far as it is large enough to have an object."""
    with EngineStore(damage.layout.root) as engine:
        steps.run(copy_database(damage.layout))
        engine.file("later", b"l" * BIG, engine.names.lookup(TREE_ROOT, b"outer").ino)
        engine.save()
    damage.layout.meta_db.unlink()
    report = repair(damage.layout, read_data=True)
    assert report.source.startswith("copy meta-v")
    assert problems(damage.layout) == [], report
    after = trees(damage.layout)
    assert after[1:] == before[1:]
    now = content(after[0])
    assert now.pop("lost+found/outer/later") == b"l" * BIG
    assert now == content(before[0])
    assert [loss.what for loss in report.losses] == [
        "no row leads to these bytes",
        "a snapshot is lost",
    ]


def test_a_dry_run_changes_nothing(damage: Damage) -> None:  # noqa: F811
    """It tells what would be lost."""
    damage.sql("DELETE FROM inodes WHERE ino = $fifo")
    flip(first_object(damage), 5000)
    files = {path: path.read_bytes() for path in damage.layout.root.rglob("*") if path.is_file()}
    told = repair(damage.layout, dry_run=True, read_data=True)
    kept = {path: path.read_bytes() for path in damage.layout.root.rglob("*") if path.is_file()}
    assert kept == files
    assert not damage.layout.backups.exists()
    done = repair(damage.layout, read_data=True)
    assert told.losses == done.losses
    assert (told.kept, bool(done.kept)) == (None, True)


def test_what_this_user_may_not_look_at_is_not_lost(
    damage: Damage,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A repair by somebody without the right ends, and replaces nothing."""
    kept = damage.layout.meta_db.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat_of_no_object(damage.layout))
        with pytest.raises(PermissionError):
            repair(damage.layout)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "open_plain", not_permitted)
        with pytest.raises(PermissionError) as caught:
            repair(damage.layout, read_data=True)
    assert Path(caught.value.filename).exists(), "it is the store's file that is named"
    assert damage.layout.meta_db.read_bytes() == kept
    assert repair(damage.layout).losses == []


def test_what_was_not_moved_into_the_database_is_not_lost(damage: Damage) -> None:  # noqa: F811
    """The log is part of it; after a crash, sizes come from the objects as ever."""
    with EngineStore(damage.layout.root) as engine:
        ino = engine.file("logged", b"small")
        grown = engine.file("grown", b"g" * BIG)
        engine.data.write(grown, BIG, b"more")
        killed = engine.killed()
        killed.store.close(clean=False)
        root = killed.root
        target = engine.root.with_name("killed")
        mirror(root, target)
        assert ino and grown
    layout = StoreLayout(target)
    report = repair(layout)
    assert report.losses == []
    now = content(trees(layout)[0])
    assert now["logged"] == b"small"
    assert now["grown"] == b"g" * BIG + b"more"
    for path in (root, target):
        shutil.rmtree(path)


def test_a_store_of_a_newer_format_is_left_alone(damage: Damage) -> None:  # noqa: F811
    """This version does not know what its rows mean."""
    connection = apsw.Connection(str(damage.layout.meta_db))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(NewerStore, match="install a newer statefs"):
        repair(damage.layout)
    assert not (damage.layout.backups / ".repair").exists()


def test_what_came_after_the_copy_lies_over_what_it_knows(damage: Damage) -> None:  # noqa: F811
    """A file that was appended to has grown; one written to after a snapshot is there twice."""
    page = bytes(range(256)) * 16
    with EngineStore(damage.layout.root) as engine:
        grown = engine.file("grown", b"g" * BIG)
        known = engine.file("known", b"k" * BIG)
        engine.save()
        engine.data.write(grown, BIG, b"in the epoch of the copy")
        engine.store.settle()
        steps.run(copy_database(damage.layout))
        engine.data.write(grown, BIG + 24, b", and after it")
        engine.save()
        engine.data.write(known, 4096, page)
    damage.layout.meta_db.unlink()
    report = repair(damage.layout)
    assert problems(damage.layout) == [], report
    now = content(trees(damage.layout)[0])
    assert now["grown"] == b"g" * BIG + b"in the epoch of the copy, and after it"
    assert now["known"] == b"k" * BIG
    newer = b"k" * 4096 + page + b"k" * (BIG - 8192)
    assert now["lost+found/known"] == newer


def test_a_lost_log_leaves_the_objects(damage: Damage) -> None:  # noqa: F811
    """What the log alone knew is gone; bytes in objects that it told of have a name."""
    with EngineStore(damage.layout.root) as engine:
        engine.file("of the log", b"o" * BIG)
        killed = engine.killed()
        killed.store.close(clean=False)
        target = engine.root.with_name("lost-log")
        mirror(engine.root, target)
        shutil.rmtree(killed.root)
    layout = StoreLayout(target)
    layout.meta_db.with_name("meta.db-wal").unlink()
    report = repair(layout)
    assert problems(layout) == [], report
    assert content(trees(layout)[0])["lost+found/of the log"] == b"o" * BIG
    shutil.rmtree(target)


SERVED: Final[list[tuple[str, Break]]] = [
    *OBJECTS,
    ("inline flipped", lambda store: store.sql(
        "UPDATE inline SET data = CAST('smalm' AS BLOB) WHERE ino = $small")),
    *((f"rows of {table}", partial(Damage.sql, statement=f"DELETE FROM {table}"))
      for table in (*TABLES, "snapshots")),
    *((f"page {page}", partial(lambda store, number: zero(store.layout, number), number=page))
      for page in range(0, 80, 7)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "make"), SERVED, ids=[what for what, _ in SERVED])
def test_nothing_wrong_is_served(
    damage: Damage,  # noqa: F811
    before: Trees,
    what: str,
    make: Break,
) -> None:
    """Whoever reads sealed content of a damaged store gets what it was, or an error."""
    make(damage)
    try:
        engine = EngineStore(damage.layout.root)
    except (CorruptStore, apsw.Error, KeyError, TypeError):
        return  # it is refused as a whole
    try:
        for number, tree in enumerate(before):
            for path, data in content(tree).items():
                if path != "young":  # it is not sealed
                    assert served(engine, number, path) in (data, None), (number, path)
    finally:
        engine.store.objects.close()
        engine.database.close()


def served(engine: EngineStore, number: int, path: str) -> bytes | None:
    """Return what is read of a path, of current (0) or a snapshot; None for an error."""
    try:
        epoch = NOW if not number else engine.store.catalog.snapshots[number - 1].epoch
        ino = engine.past(epoch).find(path.encode()).ino
        return read(engine, ino, epoch=epoch)
    except (CorruptStore, PosixError, OSError, apsw.Error, IndexError):
        return None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_each_format(tmp_path: Path, version: int) -> None:
    """It comes to the current one on the way, and shows all that it held."""
    root = unpacked(version, tmp_path)
    report = repair(StoreLayout(root), read_data=True)
    assert (report.source, report.losses) == ("meta.db", [])
    expected = json.loads((golden(version) / EXPECTED).read_text())
    with EngineStore(root) as engine:
        assert json.loads(encode(shown(engine)))["trees"] == expected["trees"]
        assert engine.problems() == []
