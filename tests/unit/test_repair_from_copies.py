"""A repair fills what cannot be read of a database from its newest sound copy, and no more."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from statefs.ids import TREE_ROOT
from statefs.layout import StoreLayout
from statefs.maintenance import steps
from statefs.maintenance.backups import copies, copy_database
from statefs.maintenance.repair import repair
from statefs.maintenance.repair.losses import Report
from statefs.maintenance.repair.schema_pages import BEGINNINGS
from statefs.metadata.schema import PAGE_BYTES
from tests.fixtures.make_store import EXPECTED, encode, golden, shown
from tests.unit.engine_store import EngineStore, mirror
from tests.unit.test_golden_stores import VERSIONS, unpacked
from tests.unit.test_repair import content, problems, trees, zero
from tests.unit.test_verify import BIG, Damage, damage, sound  # noqa: F401

Tree = dict[str, Any]
FOLDERS = 6
FILES = 40
"""In each folder: some pages of each table."""


def is_told(path: str, told: set[str]) -> bool:
    """Return whether the loss of a file is told: by an earlier name or number if that is lost."""
    if path.startswith("moved"):
        path = f"folder{path[5:]}/file{path[5:]}.3"
    is_nameless = path.endswith("/new") and any(each.startswith("inode ") for each in told)
    return path in told or is_nameless


def leaf(layout: StoreLayout, table: str, share: float) -> int:
    """Return a page that holds rows of a table, the one so far between its first and its last."""
    connection = apsw.Connection(str(layout.meta_db))
    try:
        query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path"
        found = [page for (page,) in connection.execute(query, (table,))]
    finally:
        connection.close()
    return int(found[int(share * (len(found) - 1))]) - 1


def test_an_older_copy_where_the_newest_is_damaged(damage: Damage, before_later: Tree) -> None:  # noqa: F811
    """The first that is sound counts; the report names the others, and why."""
    layout = damage.layout
    found = copies(layout)
    assert len(found) == 3
    with found[0].path.open("r+b") as file:
        file.seek(PAGE_BYTES * 2)
        file.write(bytes(PAGE_BYTES))
    found[1].path.write_bytes(b"no database")
    layout.meta_db.unlink()
    report = repair(layout)
    assert report.source == f"copy {found[2].path.name}"
    assert list(report.passed_over) == [found[0].path.name, found[1].path.name]
    assert all(report.passed_over.values())
    assert problems(layout) == [], report
    assert trees(layout)[0] == before_later


@pytest.fixture
def before_later(damage: Damage) -> Tree:  # noqa: F811
    """The tree of a store of which there are three copies."""
    for _ in range(3):
        steps.run(copy_database(damage.layout))
    return trees(damage.layout)[0]


def test_a_copy_of_an_older_format(tmp_path: Path) -> None:
    """It is brought to the current one first, as the store itself would be."""
    root = unpacked(3, tmp_path)
    layout = StoreLayout(root)
    layout.backups.mkdir(exist_ok=True)
    layout.meta_db.rename(layout.backups / "meta-v3-2026-01-01T00-00-00Z.db")
    report = repair(layout, read_data=True)
    assert (report.source, report.losses) == ("copy meta-v3-2026-01-01T00-00-00Z.db", [])
    expected = json.loads((golden(3) / EXPECTED).read_text())
    with EngineStore(root) as engine:
        assert json.loads(encode(shown(engine)))["trees"] == expected["trees"]


class Grown:
    """A store with a copy of its database, in which something has happened since.

    Args:
        root: of the store, closed.
        now: its tree, and those of its snapshots.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with EngineStore(root) as engine:
            for number in range(FOLDERS):
                folder = engine.folder(f"folder{number}")
                for file in range(FILES):
                    ino = engine.file(f"file{number}.{file}", b"x" * 300 + b"%d" % file, folder)
                    if file % 5 == 0:
                        engine.attributes.set_xattr(ino, b"user.a", b"1")
                    if file % 7 == 0:
                        engine.data.write(ino, 0, b"y" * BIG)
            engine.save()
            engine.file("unsaved", b"of the epoch of the copy")
            engine.store.settle()
            steps.run(copy_database(engine.store.layout))
            self._change(engine)
            engine.save()
            engine.data.write(self._ino(engine, 4, 4), 0, b"Y")
        self.now = trees(StoreLayout(root))

    def _ino(self, engine: EngineStore, number: int, file: int) -> int:
        folder = engine.names.lookup(TREE_ROOT, b"folder%d" % number).ino
        return int(engine.names.lookup(folder, b"file%d.%d" % (number, file)).ino)

    def _change(self, engine: EngineStore) -> None:
        """Do one of everything, in several places."""
        for number in range(1, FOLDERS):
            folder = engine.names.lookup(TREE_ROOT, b"folder%d" % number).ino
            engine.data.write(self._ino(engine, number, 1), 0, b"Z")
            engine.data.write(self._ino(engine, number, 7), BIG - 10, b"longer than it was")
            engine.names.unlink(folder, b"file%d.2" % number)
            engine.names.rename(folder, b"file%d.3" % number, TREE_ROOT, b"moved%d" % number, 0)
            engine.file("new", b"n" * 200, folder)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("grown") / "store"
    yield Grown(root)
    shutil.rmtree(root.parent)


@pytest.mark.parametrize("table", ["inodes", "entries", "inline", "extents", "xattrs"])
def test_a_page_is_filled_from_the_copy(grown: Grown, tmp_path: Path, table: str) -> None:
    """What has not changed is as it was; of the rest nothing wrong is shown and all is told."""
    layout = StoreLayout(tmp_path / "store")
    for share in (0.0, 0.5, 1.0):
        mirror(grown.root, layout.root)
        zero(layout, leaf(layout, table, share))
        report = repair(layout)
        assert "salvage" in report.source, report
        assert problems(layout) == [], (share, report)
        after = trees(layout)
        check(grown.now[0], after[0], report)
        for then, now in zip(grown.now[1:], after[1:], strict=True):
            lost = {path for loss in report.losses if loss.snapshots for path in paths(loss)}
            for path, data in content(then).items():
                assert content(now).get(path) == data or is_told(path, lost), path
    shutil.rmtree(layout.root)


def paths(loss: Any) -> list[str]:
    """Return all paths of a loss."""
    return [loss.path or "", *loss.other_names]


def check(then: Tree, now: Tree, report: Report) -> None:
    """Check that no file of current/ is another one, and that what is missing is told."""
    told = {path for loss in report.losses for path in paths(loss)}
    for path, each in then.items():
        if "content" not in each:
            continue
        if path not in now:
            assert is_told(path, told), path
        else:
            assert now[path]["content"] == each["content"], path
            if path not in report.older and path not in told:
                same = {key: now[path][key] for key in ("mode", "uid", "mtime_ns", "xattrs")}
                assert same == {key: each[key] for key in same}, path
    surplus = {path for path in now.keys() - then.keys() if not path.startswith("lost+found")}
    assert surplus <= set(report.older)
    for path in report.older:
        assert path in now


def test_what_has_changed_since_the_copy_is_not_shown_as_it_was(
    grown: Grown, tmp_path: Path
) -> None:
    """All small content is lost: that of the copy counts where the file is the same."""
    layout = StoreLayout(tmp_path / "store")
    mirror(grown.root, layout.root)
    with EngineStore(layout.root) as engine:
        changed = engine.content(engine.names.lookup(TREE_ROOT, b"unsaved").ino)
    root = leaf_root(layout, "inline")
    zero(layout, root)
    report = repair(layout)
    assert problems(layout) == [], report
    now = content(trees(layout)[0])
    assert now["unsaved"] == changed
    assert now["folder0/file0.1"] == content(grown.now[0])["folder0/file0.1"]
    assert "folder1/file1.1" not in now
    assert now["lost+found/folder1/file1.1"] == b"x" * 300 + b"1"
    (loss,) = [each for each in report.losses if each.path == "folder1/file1.1" and each.found]
    assert loss.what == "its content is lost, what it was before is left"
    shutil.rmtree(layout.root)


def leaf_root(layout: StoreLayout, table: str) -> int:
    """Return the page at which a table begins."""
    connection = apsw.Connection(str(layout.meta_db))
    try:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        found: list[Any] = connection.execute(query, (table,)).fetchall()
    finally:
        connection.close()
    return int(found[0][0]) - 1


@pytest.mark.parametrize("has_copy", [False, True])
def test_a_file_that_lost_some_of_its_extents(engine: EngineStore, has_copy: bool) -> None:
    """It does not read as zeros where they were: it is lost, unless a copy has them."""
    ino = engine.file("many", b"m" * BIG)
    engine.save()
    for number in range(200):
        engine.data.write(ino, number * 20, b"%d" % number)
    engine.forget_memory()
    whole = engine.content(ino)
    if has_copy:
        steps.run(copy_database(engine.store.layout))
    engine.database.checkpoint()
    layout = StoreLayout(engine.root.with_name("many"))
    mirror(engine.root, layout.root)
    for name in ("meta.db-wal", "meta.db-shm"):
        layout.root.joinpath(name).unlink(missing_ok=True)
    zero(layout, leaf(layout, "extents", 0.5))
    report = repair(layout)
    now = content(trees(layout)[0])
    assert now.get("many") == (whole if has_copy else None)
    assert bool(report.losses) is not has_copy
    shutil.rmtree(layout.root)


def test_bytes_that_the_disk_does_not_return(
    damage: Damage,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are treated as zeros: the repair goes on with all the rest."""
    whole = trees(damage.layout)
    steps.run(copy_database(damage.layout))
    bad = leaf(damage.layout, "inodes", 0.0) * PAGE_BYTES
    pread = os.pread

    def reading(fd: int, count: int, offset: int) -> bytes:
        if offset == bad and os.readlink(f"/proc/self/fd/{fd}") == str(damage.layout.meta_db):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", reading)
    report = repair(damage.layout)
    assert report.troubles[0] == f"{PAGE_BYTES} bytes cannot be read from the disk"
    assert report.losses == []
    assert trees(damage.layout) == whole


def test_a_dry_run_without_object_files(damage: Damage) -> None:  # noqa: F811
    """It tells what is lost, and makes no folder."""
    shutil.rmtree(damage.layout.objects)
    report = repair(damage.layout, dry_run=True)
    assert "an object file is missing or too short" in {loss.what for loss in report.losses}
    assert not damage.layout.objects.exists()


def test_what_lay_among_the_objects_is_told(damage: Damage) -> None:  # noqa: F811
    """A stray file is moved out of the way, and the report says where to."""
    (damage.layout.objects / "ff" / "stray").write_bytes(b"?")
    report = repair(damage.layout)
    assert report.put_right == {"moved to backups/stray-ff-stray, as it is no object file": 1}


@pytest.mark.parametrize("has_copy", [False, True])
def test_a_page_that_tells_where_tables_begin(damage: Damage, has_copy: bool) -> None:  # noqa: F811
    """It costs nothing: a sound copy, or a new database of the same format, tells the same."""
    whole = trees(damage.layout)
    if has_copy:
        steps.run(copy_database(damage.layout))
    zero(damage.layout, leaf(damage.layout, "sqlite_schema", 0.5))
    report = repair(damage.layout, read_data=True)
    assert report.source == "salvage" and report.losses == []
    assert trees(damage.layout) == whole


@pytest.mark.parametrize("version", VERSIONS)
def test_where_tables_begin_in_a_store_that_was_migrated(version: int, tmp_path: Path) -> None:
    """That depends on the format it was made with; without any copy nothing is lost, either."""
    layout = StoreLayout(unpacked(version, tmp_path))
    whole = trees(layout)
    shutil.rmtree(layout.backups, ignore_errors=True)
    connection = apsw.Connection(str(layout.meta_db))
    tables = "SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'"
    begin: dict[str, int] = dict(connection.execute(tables).fetchall())  # type: ignore[arg-type]
    leaves: list[Any] = connection.execute(
        "SELECT pageno FROM dbstat WHERE name = 'sqlite_schema'"
    ).fetchall()
    pages = [page for (page,) in leaves]
    connection.close()
    assert any(begin.items() >= each.items() for each in BEGINNINGS)
    assert len(pages) > 1
    before = layout.meta_db.read_bytes()
    for page in pages:
        layout.meta_db.write_bytes(before)
        shutil.rmtree(layout.backups, ignore_errors=True)
        zero(layout, page - 1)
        report = repair(layout, read_data=True)
        assert (report.source, report.losses) == ("salvage", []), (page, report)
        assert trees(layout) == whole


def test_snapshots_since_the_copy_are_told_of_what_is_older(grown: Grown, tmp_path: Path) -> None:
    """What they show as the copy has it may have been another then: they are sealed anew."""
    layout = StoreLayout(tmp_path / "store")
    mirror(grown.root, layout.root)
    zero(layout, leaf(layout, "inodes", 0.5))
    report = repair(layout)
    with EngineStore(layout.root) as engine:
        before, since = [each.name for each in engine.store.catalog.snapshots]
    told = [each for each in report.losses if "those of a copy" in each.what]
    assert told and all(list(each.snapshots) == [since] for each in told)
    assert {each.path for each in told} <= set(report.older)
    assert before != since
    shutil.rmtree(layout.root)
