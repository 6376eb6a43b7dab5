"""Clones: what is done in one is seen nowhere else, and deleting it gives everything back."""

from __future__ import annotations

import errno
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import (
    CloneExists,
    NoSuchClone,
    NoSuchPath,
    NoSuchSnapshot,
    PosixError,
    UsageError,
)
from statefs.ids import CLONE_BIT, CLONES_ROOT, NOW, TREE_ROOT
from statefs.maintenance import cloning, steps
from statefs.maintenance.sealing import seal
from statefs.maintenance.steps import Pace
from statefs.maintenance.unsaved import has_unsaved, touched_before
from statefs.snapshots.changes import changed_inodes
from statefs.snapshots.clones import CLONE_OF, CLONE_PATH, ENTRIES_PER_STEP
from statefs.snapshots.copies import TreeCopy
from tests.unit.engine_store import ME, EngineStore, tree_of
from tests.unit.random_histories import RandomHistory

BIG = 30_000
"""Bytes, more than is kept inline."""
TABLES = (
    "entries",
    "inodes",
    "xattrs",
    "extents",
    "inline",
    "objects",
    "orphans",
    "dirty",
    "shared",
)


def clone(engine: EngineStore, name: str, snapshot: str = "latest", path: str = "") -> int:
    """Make a clone and return its root folder's number."""
    chosen = engine.store.catalog.choose(snapshot)
    steps.run(cloning.clone(engine.store, chosen, name.encode(), path))
    return int(engine.names.lookup(CLONES_ROOT, name.encode()).ino)


def delete(engine: EngineStore, name: str) -> None:
    """Delete a clone, with all that it holds."""
    steps.run(cloning.delete(engine.store, name.encode()))
    engine.store.collect()


def contents(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what two copies of a tree have in common: all but numbers, and what the root tells."""
    return {
        path: {key: value for key, value in entry.items() if key != "ino"}
        for path, entry in tree.items()
        if path != "."
    }


def everything(engine: EngineStore) -> dict[str, int]:
    """Return how many rows there are of what a tree is made of."""
    return {table: engine.rows(table) for table in TABLES}


def empty(engine: EngineStore, folder: int) -> None:
    """Remove all that a folder holds."""
    for _, name, node in engine.names.listing(folder, 0, 1 << 30):
        if node.is_dir:
            empty(engine, node.ino)
            engine.names.rmdir(folder, name)
        else:
            engine.names.unlink(folder, name)


def test_a_clone_holds_what_its_snapshot_holds(engine: EngineStore) -> None:
    """Names, attributes, times, links, extended attributes and bytes, of a tree of every kind."""
    RandomHistory(engine, 11).go_on(150)
    epoch = engine.save()
    empty(engine, TREE_ROOT)
    root = clone(engine, "test")
    assert contents(tree_of(engine, root=root)) == contents(tree_of(engine, epoch))
    assert all(each["ino"] >= CLONE_BIT for each in tree_of(engine, root=root).values())
    assert engine.problems() == []


@pytest.mark.parametrize("seed", range(6))
def test_neither_a_clone_nor_current_sees_what_is_done_in_the_other(
    engine: EngineStore, seed: int
) -> None:
    """Random operations in two clones and in current, with saves and deletions between them."""
    unused = everything(engine)
    current = RandomHistory(engine, seed)
    current.go_on(60)
    kept = [engine.save()]
    roots: dict[int, RandomHistory] = {TREE_ROOT: current}
    for number in range(2):
        root = clone(engine, f"clone{number}")
        roots[root] = RandomHistory(engine, 100 * seed + number, root)
    for turn in range(12):
        chosen = list(roots)[turn % len(roots)]
        others = {root: tree_of(engine, root=root) for root in roots if root != chosen}
        past = {epoch: tree_of(engine, epoch) for epoch in kept}
        roots[chosen].go_on(25)
        assert {root: tree_of(engine, root=root) for root in others} == others
        assert {epoch: tree_of(engine, epoch) for epoch in kept} == past
        if turn % 4 == 1:
            kept.append(engine.save())
        if turn % 4 == 3:
            trees = {root: tree_of(engine, root=root) for root in roots}
            engine.delete(kept.pop(0))
            engine.forget_memory()
            assert {root: tree_of(engine, root=root) for root in roots} == trees
        assert engine.problems() == []
    for name in ("clone0", "clone1"):
        delete(engine, name)
        assert engine.problems() == []
    for epoch in kept:
        engine.delete(epoch)
    empty(engine, TREE_ROOT)
    for attribute in engine.attributes.xattr_names(TREE_ROOT):
        engine.attributes.remove_xattr(TREE_ROOT, attribute)
    engine.store.collect()
    assert engine.objects() == set()
    assert everything(engine) == unused | {"entries": 0, "inodes": 3}
    assert (engine.table.files, engine.table.bytes) == (0, 0)


def test_the_bytes_of_a_clone_outlive_its_snapshot_and_the_file(engine: EngineStore) -> None:
    """An object is freed when neither current, nor a snapshot, nor a clone refers to it."""
    ino = engine.file("big", b"a" * BIG)
    epoch = engine.save()
    root = clone(engine, "test")
    engine.data.write(ino, 5, b"new")
    engine.delete(epoch)
    engine.names.unlink(TREE_ROOT, b"big")
    engine.store.collect()
    copy = engine.names.lookup(root, b"big").ino
    assert engine.content(copy) == b"a" * BIG
    assert len(engine.objects()) == 1
    engine.data.write(copy, 10, b"other")
    assert engine.content(copy) == b"a" * 10 + b"other" + b"a" * (BIG - 15)
    assert engine.problems() == []
    delete(engine, "test")
    assert engine.objects() == set()


def test_a_write_in_a_clone_leaves_the_snapshot_s_object_alone(engine: EngineStore) -> None:
    """Also where the file is cut, or grows, and where current/ writes the same file meanwhile."""
    ino = engine.file("big", b"a" * BIG)
    epoch = engine.save()
    copy = engine.names.lookup(clone(engine, "test"), b"big").ino
    engine.data.truncate(copy, 10_000)
    engine.data.write(copy, 20_000, b"far")
    engine.data.write(ino, BIG, b"longer")
    assert engine.past_content(epoch, ino) == b"a" * BIG
    assert engine.content(ino) == b"a" * BIG + b"longer"
    assert engine.content(copy) == b"a" * 10_000 + b"\0" * 10_000 + b"far"
    engine.store.collect()
    assert engine.past_content(epoch, ino) == b"a" * BIG
    assert engine.problems() == []


def test_a_clone_tells_what_it_was_made_of(engine: EngineStore) -> None:
    """Its root has the snapshot's name as an extended attribute; the listing tells it, too."""
    engine.file("f", b"1")
    engine.save(name="clean")
    name = engine.store.catalog.snapshots[0].name
    root = clone(engine, "test", "clean")
    clone(engine, "other")
    assert engine.attributes.xattr(root, CLONE_OF) == name.encode()
    told = [(each.name, each.snapshot) for each in engine.store.clones.listing()]
    assert told == [(b"test", name), (b"other", name)]
    assert engine.attributes.xattr(root, CLONE_PATH) == b""
    assert engine.store.clones.listing()[0].created_ns == engine.node(root).btime_ns
    engine.attributes.remove_xattr(root, CLONE_OF)
    assert engine.store.clones.listing()[0].snapshot is None


def test_small_content_is_shared_until_it_is_written(engine: EngineStore) -> None:
    """A clone has no content of its own; each file gets it with its first write, whatever kind."""
    names = [f"f{number}" for number in range(6)]
    for name in names:
        engine.file(name, name.encode())
    target = engine.names.create(TREE_ROOT, b"link", stat.S_IFLNK | 0o777, ME, target=b"there")
    epoch = engine.save()
    before, past = everything(engine), tree_of(engine, epoch)
    root = clone(engine, "test")
    assert engine.rows("inline") == before["inline"]
    assert engine.rows("shared") == len(names) + 1
    file = {name: engine.names.lookup(root, name.encode()).ino for name in names}
    engine.data.write(file["f0"], 1, b"!")
    engine.data.truncate(file["f1"], 1)
    engine.data.truncate(file["f2"], 0)
    engine.data.write(file["f3"], 2, b"x" * BIG)
    engine.names.unlink(root, b"f4")
    engine.names.link(file["f5"], root, b"twin")
    assert engine.rows("shared") == 2
    engine.forget_memory()
    shown = {path: each.get("content") for path, each in tree_of(engine, root=root).items()}
    assert (shown["f0"], shown["f1"], shown["f2"]) == (b"f!", b"f", b"")
    assert (shown["f3"], shown["f5"], shown["twin"]) == (b"f3" + b"x" * BIG, b"f5", b"f5")
    assert engine.data.target(engine.names.lookup(root, b"link").ino) == b"there"
    assert tree_of(engine, epoch) == past
    assert engine.data.target(target.ino) == b"there"
    assert engine.problems() == []
    delete(engine, "test")
    assert everything(engine) == before
    assert engine.problems() == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE shared SET source = source + 1000",
        "UPDATE shared SET epoch = 2",
        "UPDATE inodes SET size = 9 WHERE ino = (SELECT ino FROM shared)",
        "INSERT INTO inline SELECT NULL, ino, 9223372036854775807, 2, x'31' FROM shared",
    ],
)
def test_shared_content_that_is_not_there_is_found(engine: EngineStore, damage: str) -> None:
    """Rule R29: it is the content of a snapshot, as long as the file, and the file has no other."""
    engine.file("f", b"1")
    engine.save()
    clone(engine, "test")
    with engine.database.transaction():
        engine.database.execute(damage)
    problems = engine.problems()
    assert problems and all(problem.startswith("R29") for problem in problems)
    delete(engine, "test")
    assert engine.problems() == []


def test_one_folder_can_be_cloned(engine: EngineStore) -> None:
    """A path of a snapshot becomes the root; runtime/ is in no clone, and a file cannot be one."""
    outer = engine.folder("outer")
    engine.file("f", b"1", engine.folder("inner", outer))
    engine.save()
    root = clone(engine, "part", path="outer/inner")
    assert [row[1] for row in engine.names.listing(root, 0, 9)] == [b"f"]
    assert [each.path for each in engine.store.clones.listing()] == [b"outer/inner"]
    for path in ("outer/inner/f", "outer/missing", "runtime", ".."):
        with pytest.raises((NoSuchPath, UsageError)):
            clone(engine, "other", path=path)
    assert engine.problems() == []


def test_a_name_is_free_and_can_be_a_folder_s(engine: EngineStore) -> None:
    """What is taken, too long or no name is refused; what is not there cannot be deleted."""
    with pytest.raises(NoSuchSnapshot):
        clone(engine, "test")
    engine.save(name="clean")
    clone(engine, "test")
    with pytest.raises(CloneExists, match="'test' exists"):
        clone(engine, "test")
    for name in ("", ".", "..", "a/b", "x" * 256):
        with pytest.raises(UsageError):
            clone(engine, name)
    with pytest.raises(NoSuchClone, match="no clone 'gone'"):
        delete(engine, "gone")
    steps.run(cloning.clone_by_name(engine.store, b"mine@clean"))
    assert engine.names.lookup(CLONES_ROOT, b"mine@clean").is_dir


def test_nothing_moves_between_trees(engine: EngineStore) -> None:
    """Renames and links between current and a clone, and between two clones, fail with EXDEV."""
    engine.file("f", b"1", engine.folder("folder"))
    engine.save()
    roots = [TREE_ROOT, clone(engine, "one"), clone(engine, "two")]
    folders = [engine.names.lookup(root, b"folder").ino for root in roots]
    for source in folders:
        for target in {*roots, *folders} - {source, roots[folders.index(source)]}:
            file = engine.names.lookup(source, b"f").ino
            for attempt in (
                lambda: engine.names.rename(source, b"f", target, b"g"),  # noqa: B023
                lambda: engine.names.link(file, target, b"g"),  # noqa: B023
            ):
                with pytest.raises(PosixError) as caught:
                    attempt()
                assert caught.value.errno == errno.EXDEV
    engine.names.rename(folders[1], b"f", roots[1], b"g")
    engine.names.link(engine.names.lookup(roots[1], b"g").ino, folders[1], b"h")
    assert engine.problems() == []


def test_what_happens_in_a_clone_is_no_change(engine: EngineStore) -> None:
    """No snapshot is due for it, no difference is told, nothing is counted."""
    engine.file("f", b"1")
    engine.save()
    before = (engine.table.files, engine.table.bytes)
    snapshot = engine.store.catalog.snapshots[-1]
    root = clone(engine, "test")
    engine.file("new", b"x" * BIG, root)
    engine.data.write(engine.names.lookup(root, b"f").ino, 0, b"22")
    assert not has_unsaved(engine.store)
    assert touched_before(engine.store) == set()
    assert (engine.table.files, engine.table.bytes) == before
    engine.forget_memory()
    older, newer = snapshot.epoch, NOW
    assert changed_inodes(engine.database, older, newer) == []


def test_a_clone_changes_no_digest(engine: EngineStore) -> None:
    """A tree hashes to the same with clones and without, the first time and later."""
    engine.file("f", b"1")
    engine.save()
    catalog = engine.store.catalog
    root = clone(engine, "test")
    engine.file("new", b"2", root)
    for _ in range(2):
        engine.save()
        engine.file("newer", b"3", engine.folder("folder", root))
        root = engine.names.lookup(root, b"folder").ino
    for snapshot in list(catalog.snapshots):
        steps.run(seal(engine.store, snapshot, Nobody()))
    digests = {snapshot.state_digest for snapshot in catalog.snapshots}
    assert len(digests) == 1
    assert None not in digests
    assert engine.problems() == []


class Nobody:
    """Waits for an operation and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Forget how far it is."""


def test_a_file_that_is_open_outlives_its_clone(engine: EngineStore) -> None:
    """A program can go on with it until it closes it, as with a file that was unlinked."""
    engine.file("big", b"a" * BIG)
    engine.save()
    copy = engine.names.lookup(clone(engine, "test"), b"big").ino
    engine.table.opened(copy)
    engine.data.write(copy, 0, b"b")
    delete(engine, "test")
    engine.data.write(copy, 1, b"b")
    assert engine.content(copy) == b"bb" + b"a" * (BIG - 2)
    assert engine.problems() == []
    engine.table.closed(copy)
    engine.store.collect()
    assert engine.node(engine.names.lookup(TREE_ROOT, b"big").ino).size == BIG
    assert len(engine.objects()) == 1
    assert engine.problems() == []


def test_a_deletion_that_was_cut_short_goes_on_at_the_next_start(engine: EngineStore) -> None:
    """Killed after any step, the store is sound, the clone gone, and the rest goes later."""
    empty_rows = everything(engine)
    folder = engine.folder("folder")
    for number in range(2 * ENTRIES_PER_STEP):
        engine.file(f"f{number}", b"x" * (BIG if number == 7 else 1), folder)
    engine.save()
    clone(engine, "test")
    engine.store.clones.hide(b"test")
    for _ in range(3):
        with engine.killed() as again:
            assert again.problems() == []
            assert again.store.clones.is_deleting
            assert again.names.listing(CLONES_ROOT, 0, 9) == []
            again.store.collect()
            assert max(row[0] for row in again.database.rows("SELECT ino FROM inodes")) < CLONE_BIT
            assert again.problems() == []
        engine.store.clones.delete_some()
    assert everything(engine) != empty_rows
    engine.store.collect()


def test_a_clone_is_there_whole_after_a_crash(engine: EngineStore, tmp_path: Path) -> None:
    """What was written to it is recovered as what was written to current/ is."""
    engine.file("big", b"a" * BIG)
    engine.save()
    root = clone(engine, "test")
    copy = engine.names.lookup(root, b"big").ino
    engine.data.write(copy, BIG, b"appended")
    with engine.killed() as again:
        assert again.content(copy) == b"a" * BIG + b"appended"
        assert again.problems() == []
        delete(again, "test")
        assert again.problems() == []


def test_a_clone_that_cannot_be_made_leaves_nothing(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in its midst is told, and what was copied by then is taken apart."""
    for number in range(20):
        engine.file(f"f{number}", b"1", engine.folder(f"folder{number}"))
    engine.save()
    before = everything(engine)
    monkeypatch.setattr(cloning, "INODES_PER_STEP", 8)
    copy_some, done = TreeCopy.step, []

    def fail_in_the_end(self: TreeCopy, limit: int) -> None:
        done.append(limit)
        copy_some(self, limit)
        if len(done) == 5:
            raise PosixError(errno.ENOSPC)

    with monkeypatch.context() as patched:
        patched.setattr(TreeCopy, "step", fail_in_the_end)
        with pytest.raises(PosixError):
            clone(engine, "test")
    assert engine.store.clones.is_deleting
    assert engine.problems() == []
    engine.store.collect()
    assert everything(engine) == before
    clone(engine, "test")
    assert engine.problems() == []


def steps_of(engine: EngineStore, name: str) -> Generator[None, None, None]:
    """Begin a clone of the newest snapshot; each `next` does as much as is done without a break."""
    making = cloning.clone(engine.store, engine.store.catalog.choose("latest"), name.encode())
    step = next(making)
    try:
        while True:
            yield
            step = making.send(step())
    except StopIteration:
        return
    finally:
        making.close()


def test_no_step_of_a_clone_is_long(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written between two turns of others do not depend on how much is copied."""
    limit, most = 64, 0
    for number in range(100):
        engine.folder(f"empty{number}")
    folder = engine.folder("folder")
    for number in range(400):
        engine.attributes.set_xattr(
            engine.file(f"f{number}", b"x" * (BIG if number < 20 else 9), folder), b"user.a", b"b"
        )
    engine.save()
    for number in range(0, BIG, 2000):  # files of many extents count as many
        for name in range(20):
            engine.data.write(engine.names.lookup(folder, b"f%d" % name).ino, number, b"y")
    engine.save()
    monkeypatch.setattr(cloning, "INODES_PER_STEP", limit)
    monkeypatch.setattr(Pace, "note", lambda pace, _: Pace.__init__(pace, 8 * limit))
    connection = engine.database.connection
    written, commits = connection.total_changes(), engine.database.commits
    for _ in steps_of(engine, "test"):
        assert engine.database.commits - commits <= 2
        most = max(most, connection.total_changes() - written)
        written, commits = connection.total_changes(), engine.database.commits
    assert 2 * limit < most < 8 * limit  # an inode, its name, content and attribute; its numbers
    assert contents(tree_of(engine, root=engine.names.lookup(CLONES_ROOT, b"test").ino)) == (
        contents(tree_of(engine, engine.store.catalog.snapshots[-1].epoch))
    )


def test_a_clone_that_was_cut_short_is_sound_and_goes(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any step: no rule is broken, clones/ is empty, and nothing of it stays."""
    RandomHistory(engine, 23).go_on(150)
    engine.save()
    engine.store.collect()
    empty_rows = everything(engine)
    monkeypatch.setattr(cloning, "INODES_PER_STEP", 8)
    killed = 0
    for number, _ in enumerate(steps_of(engine, "test")):
        assert not engine.store.clones.is_deleting  # not while it is made
        with engine.killed() as again:
            assert again.problems() == []
            if again.names.listing(CLONES_ROOT, 0, 9):
                continue
            killed += number > 0
            assert again.store.clones.is_deleting == (number > 0)
            again.store.collect()
            assert everything(again) == empty_rows
            assert again.problems() == []
    assert killed > 2
    assert engine.problems() == []


def test_a_clone_that_nobody_wants_any_more_is_taken_apart(engine: EngineStore) -> None:
    """Given up between two steps, as when the daemon ends; the next one is not disturbed."""
    engine.file("f", b"1")
    engine.save()
    before = everything(engine)
    making = steps_of(engine, "test")
    for _ in range(2):
        next(making)
    making.close()
    assert engine.store.clones.is_deleting
    clone(engine, "test")
    engine.store.collect()
    assert engine.problems() == []
    delete(engine, "test")
    assert everything(engine) == before
