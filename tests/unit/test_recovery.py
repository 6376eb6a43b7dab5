"""A kill -9 between any two steps: the next process finds each operation done, or not begun.

A step is a commit, or a change of an object file. At each one the store's files are copied as they
are, with nothing of what is only in memory, and the copy is opened as after a kill.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from statefs.ids import TREE_ROOT, ObjectId
from statefs.layout import StoreLayout
from statefs.maintenance import recovery, saving, store
from statefs.metadata.schema import DELETING
from statefs.volume.attributes import AttributeChange
from statefs.volume.names import RENAME_EXCHANGE
from statefs.volume.table import IDS_RESERVED
from tests.unit.engine_store import ME, EngineStore, tree_of

BIG: Final = 20_000
FILE: Final = stat.S_IFREG | 0o644
TIMES: Final = ("atime_ns", "mtime_ns", "ctime_ns")
Seen = dict[str, Any]


def seen(engine: EngineStore) -> Seen:
    """Return all trees of a store, without times (recovery takes them from object files)."""
    trees = {"current": tree_of(engine)}
    for snapshot in engine.store.catalog.snapshots:
        trees[snapshot.name] = tree_of(engine, snapshot.epoch)
    for tree in trees.values():
        for entry in tree.values():
            for key in TIMES:
                del entry[key]
    return trees


class Killer:
    """Looks at what a kill would leave before every step of a store.

    Args:
        engine: the store; its object files and its commits are watched.
    """

    def __init__(self, engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.found: list[Seen] = []
        for owner, names in (
            (engine.store.objects, ("create", "write", "truncate", "punch", "remove")),
            (engine.database, ("commit",)),
        ):
            for name in names:
                monkeypatch.setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._look()
            return step(*args, **kwargs)

        return watched

    def _look(self) -> None:
        after = self.engine.killed()
        try:
            assert after.problems() == []
            self.found.append(seen(after))
        finally:
            after.store.close()

    def check(self, operation: Callable[[], object]) -> None:
        """Do an operation; a kill at any of its steps leaves the trees as before, or as after."""
        before = seen(self.engine)
        self.found.clear()
        operation()
        after = seen(self.engine)
        assert self.found, "the operation has no step"
        assert all(state in (before, after) for state in self.found)
        self._look()
        assert self.found[-1] == after, "it was acknowledged"


@pytest.fixture
def killer(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> Killer:
    """A watched store with a large file `big`, a small one `small` and a folder `folder`."""
    engine.folder("folder")
    engine.file("small", b"small")
    engine.file("big", b"a" * BIG)
    engine.data.settle(engine.table.stale_nodes())
    return Killer(engine, monkeypatch)


def ino(engine: EngineStore, name: str) -> int:
    """Return the inode number of a name in the root."""
    return int(engine.names.lookup(TREE_ROOT, name.encode()).ino)


def test_operations_on_names_happen_or_not(killer: Killer) -> None:
    """Create, link, rename over, exchange, unlink, rmdir."""
    engine, names = killer.engine, killer.engine.names
    killer.check(lambda: names.create(TREE_ROOT, b"new", FILE, ME))
    killer.check(lambda: names.link(ino(engine, "big"), ino(engine, "folder"), b"link"))
    killer.check(lambda: names.rename(TREE_ROOT, b"small", TREE_ROOT, b"new"))
    killer.check(lambda: names.rename(TREE_ROOT, b"new", TREE_ROOT, b"big", RENAME_EXCHANGE))
    killer.check(lambda: names.unlink(ino(engine, "folder"), b"link"))
    killer.check(lambda: names.unlink(TREE_ROOT, b"new"))
    killer.check(lambda: names.rmdir(TREE_ROOT, b"folder"))


def test_writes_and_truncations_happen_or_not(killer: Killer) -> None:
    """Inline, moving out of the database, appending, overwriting, cutting, growing."""
    engine, data = killer.engine, killer.engine.data
    small, big = ino(engine, "small"), ino(engine, "big")
    killer.check(lambda: data.write(small, 3, b"er"))
    killer.check(lambda: data.write(small, BIG, b"behind a hole"))
    killer.check(lambda: data.write(big, BIG, b"b" * 100))
    killer.check(lambda: data.write(big, 50, b"c" * 100))
    killer.check(lambda: data.truncate(big, 10_000))
    killer.check(lambda: data.truncate(big, BIG))
    killer.check(lambda: data.truncate(big, 0))
    killer.check(lambda: data.truncate(small, 2))


def test_writes_after_a_snapshot_happen_or_not(killer: Killer) -> None:
    """The first into a frozen file, further ones, behind its end, and truncations of it."""
    engine, data = killer.engine, killer.engine.data
    big = ino(engine, "big")
    engine.save()
    killer.check(lambda: data.write(big, 50, b"c" * 100))
    killer.check(lambda: data.write(big, BIG - 10, b"d" * 100))
    killer.check(lambda: data.truncate(big, 60))
    engine.save()
    killer.check(lambda: data.truncate(big, BIG))
    killer.check(lambda: data.write(big, 2 * BIG, b"e"))


def test_attributes_happen_or_not(killer: Killer) -> None:
    """chmod, and extended attributes set, changed and removed."""
    engine, attributes = killer.engine, killer.engine.attributes
    small = ino(engine, "small")
    killer.check(lambda: attributes.set(small, AttributeChange(mode=0o600, uid=5)))
    killer.check(lambda: attributes.set_xattr(small, b"user.x", b"1"))
    killer.check(lambda: attributes.set_xattr(small, b"user.x", b"2"))
    killer.check(lambda: attributes.remove_xattr(small, b"user.x"))


def test_snapshots_are_taken_and_deleted_or_not(killer: Killer) -> None:
    """With the space given back: bytes of other snapshots and of current are never harmed."""
    engine, data = killer.engine, killer.engine.data
    big = ino(engine, "big")
    killer.check(engine.save)
    data.write(big, 100, b"b" * 5000)
    killer.check(lambda: engine.save(name="second"))
    data.truncate(big, 3000)
    first, second = (snapshot.epoch for snapshot in engine.store.catalog.snapshots)
    killer.check(lambda: engine.delete(first))
    killer.check(lambda: engine.delete(second))


def test_a_file_that_was_open_and_nameless_is_gone(engine: EngineStore) -> None:
    """Nobody has it open after a kill; its bytes are given back."""
    number = engine.file("f", b"a" * BIG)
    engine.save()
    engine.data.write(number, 0, b"b" * BIG)
    engine.table.opened(number)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.data.write(number, BIG, b"more")
    with engine.killed() as after:
        assert after.rows("orphans") == 0
        assert after.past_content(1, number) == b"a" * BIG
        after.store.collect()
        assert len(after.objects()) == 1
        assert after.problems() == []


def test_a_pending_snapshot_is_dropped_with_its_rows(engine: EngineStore) -> None:
    """It was not shown, so it never was; what changed after it stays."""
    number = engine.file("f", b"one")
    engine.store.catalog.begin("manual", "", {"name": "label"})
    engine.data.write(number, 0, b"two")
    with engine.killed() as after:
        assert after.store.catalog.snapshots == []
        assert after.content(number) == b"two"
        assert after.database.rows("SELECT state, label FROM snapshots") == [(DELETING, None)]
        after.store.collect()
        assert after.rows("snapshots") == 0
        assert after.rows("inline") == 1
        after.save(name="label")
    saving.abandon(engine.store, engine.store.catalog.begin("manual", "", {}))
    engine.hide(1)


@pytest.mark.parametrize("used", [0, IDS_RESERVED - 1])
def test_an_object_whose_making_was_not_committed_goes(engine: EngineStore, used: int) -> None:
    """Wherever its number lies, also where the reservation of it was lost with it."""
    engine.file("f", b"a" * BIG)
    table = engine.table
    with table.change():
        while used and table.next_id % IDS_RESERVED != FIRST_OF_RESERVATION:
            table.new_id()
    stray = ObjectId(table.next_id)
    engine.store.objects.create(stray)
    with engine.killed() as after:
        assert stray not in after.objects()
        ino = after.file("g", b"b" * BIG)
        assert after.content(ino) == b"b" * BIG
    engine.store.objects.remove(stray)


FIRST_OF_RESERVATION: Final = 1024
"""Numbers are reserved from 1024 on, 4096 at a time."""


def test_recovery_can_be_repeated(engine: EngineStore) -> None:
    """A crash in it, or after it, finds the same again."""
    number = engine.file("f", b"a" * BIG)
    engine.save()
    engine.data.write(number, BIG - 5, b"b" * 100)
    with engine.killed() as once:
        expected = seen(once)
        with once.killed() as twice:
            assert seen(twice) == expected
            assert twice.content(number) == engine.content(number)


def test_a_missing_object_is_told_of_and_the_rest_opens(
    engine: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is damaged, the store is not refused."""
    number = engine.file("f", b"a" * BIG)
    other = engine.file("g", b"b" * BIG)
    (path,) = (
        engine.store.layout.object_path(ObjectId(row[0]))
        for row in engine.database.rows("SELECT id FROM objects WHERE ino = ?", (number,))
    )
    kept = path.read_bytes()
    path.unlink()
    with engine.killed() as after:
        assert after.content(other) == b"b" * BIG
        assert any("R19" in problem and "current/f" in problem for problem in after.problems())
    assert "missing" in caplog.text
    path.write_bytes(kept)


def test_the_times_of_a_killed_file_are_those_of_its_object(engine: EngineStore) -> None:
    """Not older than the last write that was acknowledged, which only memory knew."""
    number = engine.file("f", b"a" * BIG)
    engine.data.write(number, BIG, b"b")
    written = max(
        engine.store.objects.stat(row[0]).st_mtime_ns
        for row in engine.database.rows("SELECT id FROM objects")
    )
    with engine.killed() as after:
        assert after.node(number).mtime_ns == written
        assert after.node(number).ctime_ns >= written


def test_totals_are_counted_again(engine: EngineStore) -> None:
    """After a kill the numbers of files and bytes are those of the tree."""
    engine.file("f", b"a" * BIG)
    engine.data.write(engine.file("g"), 0, b"12345")
    with engine.killed() as after:
        assert (after.table.files, after.table.bytes) == (2, BIG + 5)


def test_an_object_that_lost_its_name_with_the_power_is_made_again(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file's sync made the rows durable, nothing the object: the file reads as empty."""
    number = engine.file("f", b"a" * BIG)
    row = engine.database.value("SELECT id FROM objects WHERE ino = ?", (number,))
    path = engine.store.layout.object_path(ObjectId(row))
    kept = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with engine.killed() as after:
        assert after.content(number) == b""
        assert after.problems() == []
    path.write_bytes(kept)


def test_bytes_that_the_power_took_leave_what_they_were_written_over(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In current/ and in the snapshot there is what was durable."""
    number = engine.file("f", b"a" * BIG)
    epoch = engine.save()
    engine.data.write(number, 100, b"b" * 100)
    row = engine.database.value("SELECT max(id) FROM objects WHERE ino = ?", (number,))
    engine.store.objects.truncate(row, 0)
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with engine.killed() as after:
        assert after.content(number) == after.past_content(epoch, number) == b"a" * BIG
        assert after.rows("displaced") == 0
        assert after.problems() == []
    engine.store.objects.truncate(row, 200)


def test_what_was_written_over_is_put_back_only_where_that_may_be_lost(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what has been synced since, nor after a mere kill, nor what has been cut off."""
    synced, cut, grown = (engine.file(name, b"a" * BIG) for name in ("s", "c", "g"))
    engine.save()
    engine.data.write(synced, 100, b"b" * 100)
    engine.store.sync_bytes()
    engine.store.settle()
    assert engine.rows("displaced") == 0
    engine.data.write(cut, 0, b"b" * BIG)
    engine.data.truncate(cut, 300)
    engine.data.write(grown, BIG - 10, b"b" * 500)
    with engine.killed() as after:
        assert after.content(grown) == b"a" * (BIG - 10) + b"b" * 500
        assert after.content(cut) == b"b" * 300
        assert after.rows("displaced") == 0
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with engine.killed() as after:
        assert after.content(synced) == b"a" * 100 + b"b" * 100 + b"a" * (BIG - 200)
        assert after.content(cut) == b"a" * 300
        assert after.content(grown) == b"a" * BIG + b"b" * 490
        assert after.problems() == []
    engine.names.unlink(TREE_ROOT, b"c")
    assert engine.database.rows("SELECT ino, old > 0 FROM displaced") == [(grown, 1)]
    epoch = engine.save()
    assert engine.rows("displaced") == 0
    assert engine.past_content(epoch, grown) == b"a" * (BIG - 10) + b"b" * 500


def test_a_power_cut_within_a_save_costs_only_what_was_not_synced(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dirty marks are gone, the object is not synced yet: the file has its size, of zeros."""
    number = engine.file("f", b"a" * BIG)
    row = engine.database.value("SELECT id FROM objects WHERE ino = ?", (number,))
    pending = engine.store.catalog.begin("manual", "", {})
    path = engine.store.layout.object_path(ObjectId(row))
    kept = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with engine.killed() as after:
        assert after.content(number) == bytes(BIG)
        assert after.store.catalog.snapshots == []
        assert after.problems() == []
    path.write_bytes(kept)
    saving.abandon(engine.store, pending)


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_power_cut_within_a_recovery_leaves_it_to_the_next(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch, is_saved: bool
) -> None:
    """Of what a killed process has written: no row says that it is there before that is durable."""
    number = engine.file("f", b"a" * BIG)
    engine.store.sync()
    engine.data.write(number, BIG, b"b" * 100)
    if is_saved:
        engine.store.catalog.begin("manual", "", {})
    row = engine.database.value("SELECT max(id) FROM objects WHERE ino = ?", (number,))

    def cut(_: Path) -> None:
        raise OSError(errno.EIO, "no power")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "sync_filesystem", cut)
        with pytest.raises(OSError, match="no power"):
            engine.killed()
    killed = engine.root.with_name(f"{engine.root.name}-killed")
    os.truncate(StoreLayout(killed).object_path(ObjectId(row)), BIG)
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with EngineStore(killed) as after:
        assert after.content(number)[:BIG] == b"a" * BIG
        assert after.content(number)[BIG:] == (bytes(100) if is_saved else b"")
        assert after.problems() == []
