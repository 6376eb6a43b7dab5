"""What is owed to the disk, and in which order it is paid: bytes, then sizes, then names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio

from statefs import durable
from statefs.errors import PosixError
from statefs.fuse.durability import FSYNC, Durability
from statefs.ids import TREE_ROOT
from statefs.maintenance import saving, store
from statefs.volume.attributes import DURABILITY
from tests.unit.engine_store import EngineStore

BIG = 20_000
CLOSE = "close"


class Watched:
    """A store and the syncs and commits that happen to it, in order."""

    def __init__(self, engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.durability = Durability(engine.store.volume, CLOSE, lambda action: action())
        self.steps: list[str] = []
        for owner, name, step in (
            (engine.store.objects, "sync", "bytes"),
            (engine.database, "commit", "commit"),
            (engine.database, "sync", "log"),
        ):
            monkeypatch.setattr(owner, name, self._noting(getattr(owner, name), step))

    def _noting(self, call: Callable[..., Any], step: str) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            self.steps.append(step)
            return call(*arguments)

        return noting


@pytest.fixture
def watched(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A new store, watched."""
    return Watched(engine, monkeypatch)


async def test_bytes_come_before_sizes_and_sizes_before_the_log(watched: Watched) -> None:
    """A file that was appended to needs all three, once."""
    engine = watched.engine
    ino = engine.file("f", b"a" * BIG)
    await watched.durability.sync_file(engine.node(ino))
    engine.data.write(ino, BIG, b"b")
    watched.steps.clear()
    await watched.durability.sync_file(engine.node(ino))
    assert watched.steps == ["bytes", "commit", "log"]
    watched.steps.clear()
    await watched.durability.sync_file(engine.node(ino))
    assert watched.steps == []
    assert engine.database.is_synced
    assert engine.table.unsynced == {}


async def test_small_files_need_the_log_alone(watched: Watched) -> None:
    """Bytes and name share a commit."""
    ino = watched.engine.file("f", b"small")
    watched.steps.clear()
    await watched.durability.sync_file(watched.engine.node(ino))
    assert watched.steps == ["log"]


async def test_a_file_that_did_not_change_owes_nothing(watched: Watched) -> None:
    """Although others did."""
    ino = watched.engine.file("f", b"small")
    await watched.durability.sync_everything()
    watched.engine.file("g", b"small")
    watched.steps.clear()
    await watched.durability.sync_file(watched.engine.node(ino))
    assert watched.steps == []
    assert not watched.engine.database.is_synced


async def test_everything_means_every_file(watched: Watched) -> None:
    """Large and small, appended and new; afterwards nothing is owed and nothing dirty."""
    engine = watched.engine
    for number in range(3):
        ino = engine.file(f"f{number}", b"a" * BIG)
        engine.data.write(ino, BIG, b"b")
        engine.file(f"g{number}", b"small")
    await watched.durability.sync_everything()
    assert engine.database.is_synced
    assert (engine.table.unsynced, engine.table.stale_nodes(), engine.rows("dirty")) == ({}, [], 0)


async def test_a_file_removed_meanwhile_owes_nothing(watched: Watched) -> None:
    """Its object may be gone before its turn comes."""
    engine = watched.engine
    ino = engine.file("f", b"a" * BIG)
    node, waiting = engine.node(ino), dict(engine.table.unsynced)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.store.collect()
    engine.table.unsynced.update(waiting)
    await watched.durability.sync_file(node)
    assert engine.table.unsynced == {}


async def test_a_write_during_the_sync_is_settled_by_the_next(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size may not be committed before its bytes are durable."""
    engine = watched.engine
    ino = engine.file("f", b"a" * BIG)
    sync = engine.store.objects.sync

    def written_meanwhile(number: int) -> None:
        sync(number)
        engine.store.objects.write(number, b"late", BIG)

    with monkeypatch.context() as patch:
        patch.setattr(engine.store.objects, "sync", written_meanwhile)
        await watched.durability.sync_file(engine.node(ino))
    assert ino in engine.table.unsynced
    assert engine.node(ino).is_stale
    assert engine.rows("dirty") == 1
    await watched.durability.sync_file(engine.node(ino))
    assert (engine.table.unsynced, engine.rows("dirty")) == ({}, 0)
    engine.store.objects.truncate(min(engine.objects()), BIG)


@pytest.mark.parametrize("what", ["bytes", "log"])
async def test_a_disk_that_refuses_ends_all_promises(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """No change is accepted any more: after a failed fsync nobody knows what is on the disk."""
    durability = Durability(engine.store.volume, CLOSE, lambda action: action())
    ino = engine.file("f", b"a" * BIG if what == "bytes" else b"small")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError, match="broken"):
            await durability.sync_file(engine.node(ino))
    with pytest.raises(PosixError) as failure:
        engine.file("g")
    assert failure.value.errno == errno.EIO
    engine.database.failure = None  # so that the fixture can close the store


def test_the_mode_is_the_mounts_or_the_trees(engine: EngineStore) -> None:
    """The extended attribute of a folder counts more than the option of the mount."""
    folder = engine.folder("d")
    ino = engine.file("f", b"", folder)
    durability = Durability(engine.store.volume, FSYNC, lambda action: action())
    assert durability.of(engine.node(ino)) == FSYNC
    engine.attributes.set_xattr(folder, DURABILITY, b"close")
    assert durability.of(engine.node(ino)) == CLOSE


def test_a_durable_file_is_cut_when_the_log_says_so_durably(watched: Watched) -> None:
    """Or a loss of power would leave the old size without the old bytes."""
    engine = watched.engine
    ino = engine.file("f", b"a" * BIG)
    engine.store.sync()
    watched.steps.clear()
    engine.data.truncate(ino, BIG - 1)
    assert watched.steps == ["commit", "log"]


def writing_during_a_sync(
    monkeypatch: pytest.MonkeyPatch, engine: EngineStore, ino: int, offset: int = 2 * BIG
) -> list[bytes]:
    """Have another program write to a file while the next sync of an object is under way."""
    sync, written = durable.sync_file, list[bytes]()

    def syncing(fd: int) -> None:
        if not written:
            written.append(b"m" * 100)
            trio.from_thread.run_sync(engine.data.write, ino, offset, written[0])
        sync(fd)

    monkeypatch.setattr("statefs.content.objects.sync_file", syncing)
    return written


@pytest.mark.parametrize("way", ["fsync", "tick", "rename"])
async def test_what_is_written_during_a_sync_leaves_what_is_synced(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """After a loss of power the range that was synced is the new one, the other one the old one."""
    ino = engine.file("f", b"o" * (3 * BIG))
    engine.file("target", b"t")
    engine.save()
    durability = Durability(engine.store.volume, FSYNC, lambda action: action())
    engine.data.write(ino, 100, b"n" * 100)
    written = writing_during_a_sync(monkeypatch, engine, ino)
    if way == "fsync":
        await durability.sync_file(engine.node(ino))
    elif way == "tick":
        await durability.sync_everything()
    else:
        await durability.sync_bytes(engine.node(ino))
        engine.names.rename(TREE_ROOT, b"f", TREE_ROOT, b"target", 0)
    assert written and engine.rows("displaced") == 1
    assert way == "rename" or engine.database.is_synced
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with engine.killed() as after:
        assert after.content(ino)[100:200] == b"n" * 100
        assert after.content(ino)[2 * BIG : 2 * BIG + 100] == b"o" * 100
        assert after.content(ino)[:100] == b"o" * 100


async def test_fsync_waits_for_the_log_to_forget_what_was_displaced(engine: EngineStore) -> None:
    """A file whose row says all there is to say has been written to before a save began."""
    ino = engine.file("f", b"o" * (3 * BIG))
    engine.save()
    durability = Durability(engine.store.volume, FSYNC, lambda action: action())
    engine.data.write(ino, 100, b"n" * 100)
    engine.store.catalog.begin("manual", "", {})
    engine.database.sync()
    assert engine.rows("displaced") == 1
    await durability.sync_file(engine.node(ino))
    assert engine.rows("displaced") == 0 and engine.database.is_synced


async def test_a_write_that_was_refused_and_made_again_during_a_sync_is_owed_still(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes the place of is noted with it, not with the one that was refused."""
    ino = engine.file("f", b"o" * (3 * BIG))
    engine.save()
    durability = Durability(engine.store.volume, FSYNC, lambda action: action())
    engine.data.write(ino, 2 * BIG, b"n" * 100)
    await durability.sync_file(engine.node(ino))

    def full() -> None:
        raise PosixError(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(engine.database, "commit", full)
        with pytest.raises(PosixError):
            engine.data.write(ino, 100, b"n" * 100)
    assert engine.rows("displaced") == 0
    assert writing_during_a_sync(monkeypatch, engine, ino, 100) == []
    await durability.sync_file(engine.node(ino))
    assert engine.rows("displaced") == 1
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    with engine.killed() as after:
        assert after.content(ino)[: 2 * BIG] == b"o" * (2 * BIG)
        assert after.content(ino)[2 * BIG : 2 * BIG + 100] == b"n" * 100


async def test_a_range_that_is_written_over_costs_one_commit_to_sync(watched: Watched) -> None:
    """What it took the place of is forgotten when size and times are written."""
    engine = watched.engine
    ino = engine.file("f", b"o" * (3 * BIG))
    engine.save()
    await watched.durability.sync_file(engine.node(ino))
    engine.data.write(ino, 100, b"n" * 100)
    watched.steps.clear()
    await watched.durability.sync_file(engine.node(ino))
    assert watched.steps == ["bytes", "commit", "log"]
    assert engine.rows("displaced") == engine.rows("dirty") == 0


@pytest.mark.parametrize("way", ["unlinked", "replaced"])
def test_a_save_syncs_what_goes_as_soon_as_it_has_begun(engine: EngineStore, way: str) -> None:
    """The snapshot has the file, though nobody else owes its bytes any more."""
    ino = engine.file("f", b"o" * BIG)
    engine.file("g")
    (number,) = engine.table.unsynced[ino]
    pending = engine.store.catalog.begin("manual", "", {})
    rest = saving.make_durable(engine.store, pending)
    sync = next(rest)
    if way == "unlinked":
        engine.names.unlink(TREE_ROOT, b"f")
    else:
        engine.names.rename(TREE_ROOT, b"g", TREE_ROOT, b"f", 0)
    assert ino not in engine.table.unsynced
    assert not engine.store.objects.is_synced(number)
    sync()
    assert engine.store.objects.is_synced(number)
    rest.close()
