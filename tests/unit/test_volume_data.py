"""Content of files: inline and in objects, across snapshots, failures and a kill -9."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statefs.content import rows
from statefs.errors import PosixError
from statefs.ids import LIVING, NOW
from statefs.metadata.inodes import InodeFlag
from statefs.volume.data import FILE_MAX_BYTES, INLINE_MAX_BYTES
from tests.unit.engine_store import EngineStore, mirror

BIG = 3 * INLINE_MAX_BYTES


def test_small_content_lies_in_the_database(engine: EngineStore) -> None:
    """Up to the limit a file has no object file, and one row."""
    ino = engine.file("f", b"x" * INLINE_MAX_BYTES)
    assert engine.content(ino) == b"x" * INLINE_MAX_BYTES
    assert engine.rows("inline") == 1
    assert engine.objects() == set()


def test_one_byte_more_moves_it_to_an_object(engine: EngineStore) -> None:
    """The bytes stay the same, the inline row goes."""
    ino = engine.file("f", b"x" * INLINE_MAX_BYTES)
    engine.data.write(ino, INLINE_MAX_BYTES, b"y")
    assert engine.content(ino) == b"x" * INLINE_MAX_BYTES + b"y"
    assert engine.rows("inline") == 0
    assert len(engine.objects()) == 1
    assert engine.node(ino).flags & InodeFlag.EXTENTS


def test_durable_inline_content_is_synced_before_it_moves(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is durable before the commit that ends the inline row could be."""
    ino = engine.file("f", b"durable")
    engine.store.sync()
    synced: list[bool] = []
    sync = engine.store.objects.sync

    def noted(number: int) -> None:
        synced.append(engine.database.connection.in_transaction)
        sync(number)

    monkeypatch.setattr(engine.store.objects, "sync", noted)
    engine.data.write(ino, BIG, b"end")
    assert synced == [True]


def test_a_gap_in_a_small_file_reads_as_zeros(engine: EngineStore) -> None:
    """POSIX lseek(2): bytes between the old end and a write beyond it are zeros."""
    ino = engine.file("f", b"a")
    engine.data.write(ino, 5, b"b")
    assert engine.content(ino) == b"a\0\0\0\0b"


def test_a_gap_in_a_large_file_takes_no_extent(engine: EngineStore) -> None:
    """A hole is a range without a row."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    engine.data.write(ino, 10 * BIG, b"b")
    assert engine.content(ino) == (b"a" * BIG).ljust(10 * BIG, b"\0") + b"b"
    extents = rows.extents(engine.database, ino, NOW)
    assert [(extent.start, extent.end) for extent in extents] == [(0, BIG), (10 * BIG, LIVING)]


def test_truncation_to_nothing_goes_back_to_inline(engine: EngineStore) -> None:
    """A file rewritten by O_TRUNC may be small again; its object goes."""
    ino = engine.file("f", b"a" * BIG)
    engine.data.truncate(ino, 0)
    engine.data.write(ino, 0, b"small")
    engine.store.collect()
    assert engine.content(ino) == b"small"
    assert (engine.objects(), engine.rows("objects"), engine.rows("extents")) == (set(), 0, 0)


@pytest.mark.parametrize("size", [10, BIG])
def test_what_truncation_cut_off_does_not_come_back(engine: EngineStore, size: int) -> None:
    """Cut and made longer again, a file reads as zeros where it was cut."""
    ino = engine.file("f", b"a" * size)
    engine.data.truncate(ino, size // 2)
    engine.data.truncate(ino, size)
    assert engine.content(ino) == (b"a" * (size // 2)).ljust(size, b"\0")


def test_a_size_beyond_off_t_is_refused(engine: EngineStore) -> None:
    """EFBIG for a write and a truncation, EINVAL for a negative size; nothing changes."""
    ino = engine.file("f", b"a")
    with pytest.raises(PosixError) as failure:
        engine.data.write(ino, FILE_MAX_BYTES, b"b")
    assert failure.value.errno == errno.EFBIG
    for size, expected in ((FILE_MAX_BYTES + 1, errno.EFBIG), (-1, errno.EINVAL)):
        with pytest.raises(PosixError) as failure:
            engine.data.truncate(ino, size)
        assert failure.value.errno == expected
    assert engine.content(ino) == b"a"


def test_a_write_after_a_snapshot_goes_to_a_new_object(engine: EngineStore) -> None:
    """The frozen object is not touched: only the new bytes are in the new one."""
    ino = engine.file("f", b"a" * BIG)
    epoch = engine.save()
    (frozen,) = engine.objects()
    engine.data.write(ino, 100, b"new")
    (made,) = engine.objects() - {frozen}
    assert engine.store.objects.read([(0, BIG, frozen)]) == b"a" * BIG
    assert engine.store.objects.stat(made).st_size == 103
    assert engine.past_content(epoch, ino) == b"a" * BIG
    assert engine.content(ino) == b"a" * 100 + b"new" + b"a" * (BIG - 103)


def test_a_snapshot_keeps_what_is_cut_off_later(engine: EngineStore) -> None:
    """Truncation after a save changes rows, not the frozen object."""
    ino = engine.file("f", b"a" * BIG)
    small = engine.file("s", b"small")
    epoch = engine.save()
    for one in (ino, small):
        engine.data.truncate(one, 0)
    engine.store.collect()
    assert engine.past_content(epoch, ino) == b"a" * BIG
    assert engine.past_content(epoch, small) == b"small"


def test_a_failed_write_leaves_the_old_bytes(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the first write after a snapshot: no object, no extent, the old size."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    before = engine.objects()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="full"):
            engine.data.write(ino, BIG - 1, b"new")
    assert engine.objects() == before
    assert engine.content(ino) == b"a" * BIG
    engine.data.write(ino, BIG - 1, b"new")
    assert engine.content(ino) == b"a" * (BIG - 1) + b"new"
    assert engine.problems() == []


def test_an_append_that_fails_half_way_leaves_the_old_end(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reached the object behind the file's end is cut off: recovery takes its length."""
    ino = engine.file("f", b"a" * BIG)
    pwrite = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        pwrite(fd, bytes(data)[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="full"):
            engine.data.write(ino, BIG, b"b" * 100)
    assert engine.content(ino) == b"a" * BIG
    with engine.killed() as after:
        assert after.content(ino) == b"a" * BIG


def test_sizes_of_appends_survive_a_kill(engine: EngineStore) -> None:
    """An append changes no row but the dirty mark: recovery takes the size from the object."""
    ino = engine.file("f", b"a" * BIG)
    commits = engine.database.commits
    engine.data.write(ino, BIG, b"b" * 100)
    engine.data.write(ino, BIG + 100, b"c" * 100)
    assert engine.database.commits == commits
    with engine.killed() as after:
        assert after.content(ino) == b"a" * BIG + b"b" * 100 + b"c" * 100
        assert after.rows("dirty") == 0


def test_a_file_may_be_cut_to_bytes_that_are_all_older_than_its_object(
    engine: EngineStore,
) -> None:
    """An object of this epoch that holds nothing any more is freed, and not written again."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    engine.data.write(ino, BIG - 10, b"b" * 10)
    engine.data.truncate(ino, BIG // 2)
    engine.store.collect()
    engine.data.write(ino, BIG // 2 + 10, b"c")
    assert engine.content(ino) == b"a" * (BIG // 2) + bytes(10) + b"c"
    assert engine.problems() == []


def test_an_object_once_frozen_is_never_written_again(engine: EngineStore) -> None:
    """Not even after its snapshot's deletion: it may be longer than what the file has of it."""
    ino = engine.file("f", b"a" * BIG)
    epoch = engine.save()
    engine.data.truncate(ino, 9000)
    engine.hide(epoch)
    engine.data.write(ino, 9000, b"b" * 10)
    engine.data.truncate(ino, BIG)
    assert engine.content(ino) == (b"a" * 9000 + b"b" * 10).ljust(BIG, b"\0")
    with engine.killed() as after:
        assert after.content(ino) == (b"a" * 9000 + b"b" * 10).ljust(BIG, b"\0")


@pytest.mark.parametrize("is_written", [False, True])
def test_a_frozen_file_made_longer_keeps_its_size(engine: EngineStore, is_written: bool) -> None:
    """The frozen object is shorter than the file: recovery must not take its length."""
    ino = engine.file("f", b"a" * BIG)
    epoch = engine.save()
    engine.data.truncate(ino, 2 * BIG)
    engine.hide(epoch)
    if is_written:
        engine.data.write(ino, BIG + 10, b"b")
    expected = engine.content(ino)
    with engine.killed() as after:
        assert after.content(ino) == expected
        assert len(expected) == 2 * BIG


def test_blocks_tell_of_space_and_not_of_holes(engine: EngineStore) -> None:
    """A sparse file of a megabyte with 9000 bytes takes about 9000 bytes."""
    ino = engine.file("f", b"a" * 9000)
    engine.data.truncate(ino, 1 << 20)
    engine.store.sync()
    engine.data.settle([engine.node(ino)])
    assert 0 < engine.node(ino).blocks * 512 < 100_000


sizes = st.integers(0, 3 * INLINE_MAX_BYTES)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), sizes, st.integers(1, INLINE_MAX_BYTES)),
        st.tuples(st.just("truncate"), sizes, st.just(0)),
        st.tuples(st.just("save"), st.just(0), st.just(0)),
        st.tuples(st.just("delete"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("collect"), st.just(0), st.just(0)),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


def _do(engine: EngineStore, ino: int, model: bytearray, step: tuple[str, int, int]) -> None:
    """Do one step to the file and to the bytes that it should hold."""
    kind, where, length = step
    if kind == "write":
        data = bytes([1 + (where + length) % 255]) * length
        engine.data.write(ino, where, data)
        model.extend(bytes(max(0, where - len(model))))
        model[where : where + length] = data
    elif kind == "truncate":
        engine.data.truncate(ino, where)
        del model[where:]
        model.extend(bytes(where - len(model)))
    elif kind == "collect":
        engine.store.collect()
    elif kind == "forget":
        engine.forget_memory()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a new, closed store `new`, to be copied."""
    folder = tmp_path_factory.mktemp("place")
    with EngineStore(folder / "new"):
        pass
    yield folder
    shutil.rmtree(folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_a_file_is_the_bytes_that_were_written_in_every_epoch(
    place: Path, no_waiting_for_disks: None, steps: list[tuple[str, int, int]]
) -> None:
    """Against a byte array: now, in each snapshot, after a kill, and in the rules of the store."""
    mirror(place / "new", place / "store")
    with EngineStore(place / "store") as engine:
        ino, model, saved = engine.file("f"), bytearray(), dict[int, bytes]()
        for step in steps:
            if step[0] == "save":
                saved[engine.save()] = bytes(model)
            elif step[0] == "delete" and saved:
                epoch = sorted(saved)[step[1] % len(saved)]
                engine.delete(epoch)
                del saved[epoch]
            else:
                _do(engine, ino, model, step)
            assert engine.content(ino) == model
        with engine.killed() as after:
            assert after.content(ino) == model
            for epoch, content in saved.items():
                assert after.past_content(epoch, ino) == content
            assert after.problems() == []


def test_what_could_not_be_cut_off_is_not_seen_again(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses to cut the object of a file: its old bytes are not behind the new end."""
    ino = engine.file("f", b"a" * BIG)

    def refused(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", refused)
        with pytest.raises(OSError, match="broken"):
            engine.data.truncate(ino, 100)
    engine.store.sync_bytes()
    engine.store.settle()
    with engine.killed() as after:
        assert after.content(ino) == b"a" * 100
        after.data.truncate(ino, 200)
        assert after.content(ino) == b"a" * 100 + bytes(100)
    engine.data.truncate(ino, 200)
    assert engine.content(ino) == b"a" * 100 + bytes(100)
    assert engine.problems() == []
