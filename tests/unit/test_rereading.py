"""Everything is read again and compared: a damaged byte is found and named, nothing else is."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from statefs.content import objects
from statefs.content.blocks import BLOCK_BYTES
from statefs.errors import StatefsError, UsageError
from statefs.ids import TREE_ROOT, ObjectId
from statefs.maintenance import steps
from statefs.maintenance.backups import problems_of
from statefs.maintenance.commands import Commands
from statefs.maintenance.rereading import Rereading
from statefs.maintenance.verify import CHECKS, Problem
from statefs.maintenance.verify import verify as verify_store
from statefs.metadata.connection import Database
from tests.unit.engine_store import EngineStore, not_permitted, stat_of_no_object
from tests.unit.test_sealing import fill, seal

BIG = 3 * BLOCK_BYTES + 5


class Listener:
    """Takes progress, and goes away after some of it."""

    pid = 0

    def __init__(self, patience: int = 1 << 30) -> None:
        self.patience = patience
        self.heard: list[dict[str, Any]] = []

    @property
    def is_wanted(self) -> bool:
        """Whether it still listens."""
        return len(self.heard) < self.patience

    def report(self, progress: dict[str, Any]) -> None:
        """Remember the progress."""
        self.heard.append(progress)


def damage(engine: EngineStore, ino: int, offset: int, epoch: int | None = None) -> None:
    """Change one byte of a file's object, of the newest one or that of an epoch."""
    number = engine.database.value(
        "SELECT max(id) FROM objects WHERE ino = ? AND epoch <= ?", (ino, epoch or 1 << 30)
    )
    path = engine.store.layout.object_path(ObjectId(number))
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def reread(engine: EngineStore, epoch: int | None = None) -> Rereading:
    """Read everything."""
    reading = Rereading(engine.store, epoch)
    while not reading.is_done:
        reading.step()
    return reading


def found(engine: EngineStore) -> list[Problem]:
    """Return what is damaged."""
    return reread(engine).problems


def names(engine: EngineStore) -> list[str]:
    """Return the names of the snapshots."""
    return [snapshot.name for snapshot in engine.store.catalog.snapshots]


def test_a_sound_store_has_no_damage(engine: EngineStore) -> None:
    """One of everything, over several snapshots; each file is read."""
    ino = fill(engine)
    engine.save()
    engine.data.write(ino, 5, b"changed")
    engine.save()
    seal(engine)
    reading = reread(engine)
    assert reading.problems == []
    assert reading.files == len({"small", "no text", "sparse", "big"})


def test_a_damaged_byte_is_named(engine: EngineStore) -> None:
    """The path, the block, and each snapshot that sees it."""
    ino = fill(engine)
    engine.save()
    engine.save()
    seal(engine)
    damage(engine, ino, BLOCK_BYTES + 7)
    (problem,) = found(engine)
    assert (problem.rule, problem.path) == ("D01", "files/big")
    assert list(problem.ranges) == [(BLOCK_BYTES, 2 * BLOCK_BYTES)]
    assert list(problem.snapshots) == names(engine)
    assert "files/big" in problem.message and names(engine)[1] in problem.message


def test_only_those_who_see_the_damage_are_named(engine: EngineStore) -> None:
    """The bytes that the newer snapshot has itself are good."""
    ino = engine.file("f", b"a" * BIG)
    first = engine.save()
    engine.data.write(ino, 0, b"b" * BLOCK_BYTES)
    engine.save()
    seal(engine)
    damage(engine, ino, 100, first)
    (problem,) = found(engine)
    assert list(problem.snapshots) == names(engine)[:1]
    damage(engine, ino, 2 * BLOCK_BYTES, first)
    damage(engine, ino, 3 * BLOCK_BYTES + 1, first)
    problems = found(engine)
    assert sorted(list(each.snapshots) for each in problems) == [[each] for each in names(engine)]
    assert [each.ranges[-1] for each in problems] == [(2 * BLOCK_BYTES, BIG)] * 2


def test_what_snapshots_share_is_read_once(engine: EngineStore) -> None:
    """Fifty snapshots of a file that is changed a little each time."""
    ino = engine.file("f", b"a" * BIG)
    for number in range(50):
        engine.data.write(ino, BLOCK_BYTES + number, b"b")
        engine.save()
    seal(engine)
    reading = reread(engine)
    assert reading.problems == []
    assert reading.bytes_done <= BIG + 50 * BLOCK_BYTES


def test_small_content_in_the_database_is_compared(engine: EngineStore) -> None:
    """A row of meta.db that says something else than when it was sealed."""
    ino = engine.file("small", b"small")
    engine.save()
    seal(engine)
    engine.database.execute("UPDATE inline SET data = x'736d616c6d' WHERE ino = ?", (ino,))
    (problem,) = found(engine)
    assert (problem.path, list(problem.ranges)) == ("small", [(0, 5)])


def test_a_changed_mode_is_found(engine: EngineStore) -> None:
    """What a folder says of its files is part of its digest."""
    folder = engine.folder("folder")
    ino = engine.file("f", b"x", folder)
    engine.save()
    seal(engine)
    engine.database.execute("UPDATE inodes SET mode = mode | 7 WHERE ino = ?", (ino,))
    (problem,) = found(engine)
    assert (problem.rule, problem.path) == ("D02", "folder")


def test_a_missing_or_short_object_is_damage(engine: EngineStore) -> None:
    """All that cannot be read is named; what can be, is not."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    seal(engine)
    number = engine.database.value("SELECT id FROM objects WHERE ino = ?", (ino,))
    os.truncate(engine.store.layout.object_path(ObjectId(number)), BLOCK_BYTES + 1)
    assert list(found(engine)[0].ranges) == [(BLOCK_BYTES, BIG)]
    engine.store.objects.remove(number)
    assert list(found(engine)[0].ranges) == [(0, BIG)]
    engine.names.unlink(TREE_ROOT, b"f")
    engine.delete(1)


def test_a_right_that_is_missing_is_no_damage(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known of the bytes: reading and verifying end with the refusal, and no event."""
    engine.file("f", b"a" * BIG)
    engine.save()
    seal(engine)
    engine.store.objects.close()
    verify = partial(Commands(engine.store).start, "verify", {"read_data": True}, Listener())
    with monkeypatch.context() as patch:
        patch.setattr(objects, "open_plain", not_permitted)
        with pytest.raises(PermissionError):
            found(engine)
        with pytest.raises(PermissionError):
            steps.run(verify())
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat_of_no_object(engine.store.layout))
        with pytest.raises(PermissionError):
            verify_store(engine.store.layout)
    assert engine.store.damages == set()
    assert steps.run(verify())["problems"] == []


def test_descriptors_that_are_missing_are_no_damage(engine: EngineStore) -> None:
    """The database cannot be opened then, and that says nothing of it."""
    engine.file("f", b"a" * BIG)
    engine.save()
    with no_descriptors_left():
        with pytest.raises(OSError, match="Too many open files"):
            verify_store(engine.store.layout)
        with pytest.raises(OSError, match="Too many open files"):
            Database(engine.store.layout.meta_db)
        with pytest.raises(OSError, match="Too many open files"):
            problems_of(engine.store.layout.meta_db)


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let this process open no more files inside the `with` block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_snapshot_deleted_meanwhile_is_no_damage(engine: EngineStore) -> None:
    """Its bytes may be gone when they are to be read."""
    engine.file("f", b"a" * BIG)
    engine.save()
    seal(engine)
    reading = Rereading(engine.store)
    reading.step(1)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.delete(1)
    while not reading.is_done:
        reading.step()
    assert reading.problems == []


def test_one_snapshot_alone(engine: EngineStore) -> None:
    """The others are not read; one that is not sealed is refused."""
    ino = engine.file("f", b"a" * BIG)
    first = engine.save()
    engine.data.write(ino, 0, b"b" * BIG)
    second = engine.save()
    seal(engine)
    damage(engine, ino, 5, first)
    assert reread(engine, second).problems == []
    assert len(reread(engine, first).problems) == 1
    engine.save(name="unsealed")
    commands = Commands(engine.store)
    arguments = {"snapshot": "unsealed", "read_data": True}
    with pytest.raises(UsageError, match="not sealed"):
        steps.run(commands.start("verify", arguments, Listener()))


def test_verify_reads_tells_how_far_it_is_and_gives_up(engine: EngineStore) -> None:
    """When nobody listens any more."""
    engine.file("f", bytes(range(256)) * (30 << 12))
    engine.save()
    seal(engine)
    engine.save()
    commands = Commands(engine.store)
    listener = Listener()
    answer = steps.run(commands.start("verify", {"read_data": True}, listener))
    assert answer["problems"] == []
    assert answer["read"]["bytes"] == 30 << 20
    assert answer["read"]["unsealed"] == names(engine)[1:]
    assert listener.heard[-1]["done"] == listener.heard[-1]["total"] == 30 << 20
    of_one = Listener()
    steps.run(commands.start("verify", {"read_data": True, "snapshot": names(engine)[0]}, of_one))
    heard = [each for each in of_one.heard if each["unit"] == "bytes"]
    assert len(heard) > 1 and {each["total"] for each in heard} == {30 << 20}
    with pytest.raises(StatefsError, match="given up"):
        steps.run(commands.start("verify", {"read_data": True}, Listener(patience=1)))
    impatient = Listener(patience=len(CHECKS) + 1)  # each rule is told of, before reading begins
    answer = steps.run(commands.start("verify", {"read_data": True}, impatient))
    assert answer["read"]["bytes"] < 30 << 20


def test_a_short_object_is_never_read_as_zeros(engine: EngineStore) -> None:
    """EIO, of the present and of the past."""
    ino = engine.file("f", b"a" * BIG)
    engine.save()
    number = engine.database.value("SELECT id FROM objects WHERE ino = ?", (ino,))
    path: Path = engine.store.layout.object_path(ObjectId(number))
    os.truncate(path, 10)
    with pytest.raises(OSError) as caught:
        engine.content(ino)
    assert caught.value.errno == errno.EIO
    assert engine.store.objects.read_cached([(0, BIG, number)]) is None
    os.truncate(path, BIG)
