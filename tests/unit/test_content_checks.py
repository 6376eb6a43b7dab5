"""Damaged content is refused at every door, checked once, and never hashed as if it were sound."""

from __future__ import annotations

import io
import os
import random
from typing import Any

import pytest

from statefs.content.blocks import BLOCK_BYTES
from statefs.content.checks import ContentChecks, DamagedBytes, _Ranges
from statefs.errors import CorruptStore
from statefs.ids import NOW, TREE_ROOT, ObjectId, in_clones
from statefs.maintenance import exporting, steps
from statefs.maintenance.commands import Commands
from statefs.maintenance.merging import merge_all
from tests.unit.engine_store import EngineStore
from tests.unit.test_merging import MANY, few_are_many, scattered  # noqa: F401 - a fixture
from tests.unit.test_rereading import BIG, Listener, damage, found
from tests.unit.test_sealing import seal, sealed

BLOCK = 4096
RESTORE: dict[str, Any] = {"force": False, "dry_run": False}


def read(
    engine: EngineStore, ino: int, start: int = 0, size: int = 1 << 30, epoch: int = NOW
) -> bytes:
    """Return bytes as the mount does: what has a digest is compared with it before."""
    tree: Any = engine.data if epoch == NOW else engine.past(epoch)
    plan = tree.plan_read(ino, start, size)
    if isinstance(plan, bytes):
        return plan
    checks = engine.store.checks
    checks.check(checks.unchecked(engine.database, ino, epoch, plan))
    return engine.store.objects.read(plan)


def restarted(engine: EngineStore) -> ContentChecks:
    """Have the store know what a new process knows: nothing has been checked."""
    engine.forget_memory()
    engine.table.checks = ContentChecks(engine.store.objects, engine.database)
    return engine.table.checks


def content(size: int = BIG) -> bytes:
    """Return bytes of which no two blocks are alike."""
    return random.Random(size).randbytes(size)


def clone_of(engine: EngineStore, ino: int) -> int:
    """Clone the newest snapshot and return the number of the copy of its only large file."""
    arguments = {"snapshot": "latest", "name": "copy", "path": ""}
    steps.run(Commands(engine.store).start("clone", arguments, Listener()))
    size = engine.node(ino).size
    found = engine.database.rows("SELECT ino FROM inodes WHERE size = ?", (size,))
    return next(int(each) for (each,) in found if in_clones(each))


def test_a_damaged_block_is_refused_everywhere(engine: EngineStore) -> None:
    """In the snapshot, in current and in a clone; the other blocks are served."""
    data = content()
    ino = engine.file("f", data)
    epoch = engine.save()
    seal(engine)
    copy = clone_of(engine, ino)
    damage(engine, ino, BLOCK_BYTES + 7)
    for number, moment in ((ino, NOW), (ino, epoch), (copy, NOW)):
        restarted(engine)
        with pytest.raises(DamagedBytes) as caught:
            read(engine, number, BLOCK_BYTES + 100, 10, moment)
        assert (caught.value.start, caught.value.end) == (BLOCK_BYTES, 2 * BLOCK_BYTES)
        assert read(engine, number, 0, BLOCK_BYTES, moment) == data[:BLOCK_BYTES]
        assert read(engine, number, 2 * BLOCK_BYTES, epoch=moment) == data[2 * BLOCK_BYTES :]


def test_a_file_of_one_block_is_checked(engine: EngineStore) -> None:
    """Its digest is the SHA-256 of all of it."""
    ino = engine.file("f", content(20_000))
    engine.save()
    seal(engine)
    assert read(engine, ino) == content(20_000)
    restarted(engine)
    damage(engine, ino, 19_999)
    with pytest.raises(DamagedBytes):
        read(engine, ino, 0, 1)


def test_a_missing_or_short_object_is_damage(engine: EngineStore) -> None:
    """What lies behind its end cannot be read, what lies before can."""
    data = content()
    ino = engine.file("f", data)
    engine.save()
    seal(engine)
    number = engine.database.value("SELECT id FROM objects WHERE ino = ?", (ino,))
    os.truncate(engine.store.layout.object_path(ObjectId(number)), 2 * BLOCK_BYTES)
    assert read(engine, ino, 0, 2 * BLOCK_BYTES) == data[: 2 * BLOCK_BYTES]
    with pytest.raises(DamagedBytes):
        read(engine, ino, 2 * BLOCK_BYTES, 1)
    os.truncate(engine.store.layout.object_path(ObjectId(number)), BIG)
    engine.store.objects.write(number, data, 0)


def test_what_is_not_sealed_has_no_digest(engine: EngineStore) -> None:
    """It is served as it is; once it is sealed, it is checked from then on."""
    ino = engine.file("f", content())
    engine.save()
    assert read(engine, ino, 0, 10) == content()[:10]
    seal(engine)
    damage(engine, ino, 5)
    with pytest.raises(DamagedBytes):
        read(engine, ino, 0, 10)


def test_a_block_is_checked_once(engine: EngineStore) -> None:
    """Whoever reads it later pays nothing, also when snapshots have come and gone."""
    ino = engine.file("f", content())
    first = engine.save()
    seal(engine)
    read(engine, ino)
    plan = engine.data.plan_read(ino, 0, BIG)
    assert not isinstance(plan, bytes)
    checks = engine.store.checks
    assert checks.unchecked(engine.database, ino, NOW, plan) == []
    engine.save()
    seal(engine)
    engine.delete(first)
    assert checks.unchecked(engine.database, ino, NOW, plan) == []
    assert checks.unchecked(engine.database, ino, NOW, plan, afresh=True)


def test_only_the_blocks_that_are_read_are_checked(engine: EngineStore) -> None:
    """Reading a little of a large file does not read all of it."""
    ino = engine.file("f", content())
    engine.save()
    seal(engine)
    plan = engine.data.plan_read(ino, BLOCK_BYTES - 1, 2)
    assert not isinstance(plan, bytes)
    blocks = engine.store.checks.unchecked(engine.database, ino, NOW, plan)
    assert [(each.start, each.end) for each in blocks] == [
        (0, BLOCK_BYTES),
        (BLOCK_BYTES, 2 * BLOCK_BYTES),
    ]


def test_new_bytes_beside_damaged_ones(engine: EngineStore) -> None:
    """What a program wrote is its own; what is left of the old block is still refused."""
    ino = engine.file("f", content())
    engine.save()
    seal(engine)
    damage(engine, ino, 10)
    engine.data.write(ino, 0, b"new" * 1000)
    assert read(engine, ino, 0, 3000) == b"new" * 1000
    with pytest.raises(DamagedBytes):
        read(engine, ino, 4000, 10)
    engine.data.write(ino, 0, bytes(BLOCK_BYTES))
    assert read(engine, ino, 0, BLOCK_BYTES) == bytes(BLOCK_BYTES)


def test_a_scrub_that_finds_damage_ends_the_trust(engine: EngineStore) -> None:
    """Content that was sound when it was first read, and is not any more, is not served."""
    ino = engine.file("f", content())
    engine.save()
    seal(engine)
    read(engine, ino)
    damage(engine, ino, 10)
    read(engine, ino)
    assert len(found(engine)) == 1
    with pytest.raises(DamagedBytes):
        read(engine, ino)


def test_sealing_does_not_hash_damage(
    engine: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A version that shares a damaged block gets no digest, until the block is as it was."""
    ino = engine.file("f", content())
    engine.save()
    seal(engine)
    damage(engine, ino, 2 * BLOCK_BYTES + 1)
    engine.data.write(ino, 0, b"new")
    epoch = engine.save()
    seal(engine)
    assert sealed(engine, epoch) is None
    assert "f cannot be read" in caplog.text
    damage(engine, ino, 2 * BLOCK_BYTES + 1, epoch - 1)
    steps.run(engine.store.sealer.try_again())
    seal(engine)
    assert sealed(engine, epoch) is not None
    assert found(engine) == []


def test_merging_does_not_copy_damage(
    engine: EngineStore,
    few_are_many: None,  # noqa: F811
) -> None:
    """The file stays scattered where it is damaged, and says so when it is read."""
    number, data = scattered(engine)
    seal(engine)
    extent = engine.data.extents(engine.node(number))[MANY // 4]
    path = engine.store.layout.object_path(ObjectId(extent.object))
    with path.open("r+b") as file:
        file.seek(extent.start)
        file.write(bytes([data[extent.start] ^ 1]))
    before = engine.objects()
    assert steps.run(merge_all(engine.store)) == 0
    assert engine.objects() == before
    assert [text.partition(" to")[0] for text in damages_told(engine)] == ["f: bytes 0"]
    with pytest.raises(DamagedBytes):
        read(engine, number)
    with path.open("r+b") as file:
        file.seek(extent.start)
        file.write(data[extent.start :][:1])
    engine.table.fragmented[number] = (0, MANY)
    assert steps.run(merge_all(engine.store)) > 0
    assert read(engine, number) == bytes(data)


def test_small_content_in_the_database_is_checked(engine: EngineStore) -> None:
    """Reading, changing a part of it and outgrowing the database are refused; replacing is not."""
    ino = engine.file("f", b"small content")
    epoch = engine.save()
    seal(engine)
    copy_of_clone = clone_of(engine, ino)
    engine.forget_memory()
    engine.database.execute("UPDATE inline SET data = ? WHERE ino = ?", (b"smell content", ino))
    for number, moment in ((ino, NOW), (ino, epoch), (copy_of_clone, NOW)):
        with pytest.raises(DamagedBytes):
            read(engine, number, epoch=moment)
    for offset, data in ((3, b"x"), (0, b"x"), (100, b"x"), (0, b"x" * 12), (20_000, b"x")):
        with pytest.raises(DamagedBytes):
            engine.data.write(ino, offset, data)
    with pytest.raises(DamagedBytes):
        engine.data.truncate(ino, 5)
    engine.save()
    seal(engine)
    assert [each.state_digest is None for each in engine.store.catalog.snapshots] == [False, False]
    engine.data.write(ino, 0, b"quite new content")
    assert read(engine, ino) == b"quite new content"


def flip_small(engine: EngineStore, ino: int) -> None:
    """Change a byte of the oldest small content of a file, as a bad disk might."""
    engine.forget_memory()
    engine.database.execute(
        "UPDATE inline SET data = CAST('x' || substr(data, 2) AS BLOB) WHERE ino = ?1"
        " AND valid_from = (SELECT min(valid_from) FROM inline WHERE ino = ?1)",
        (ino,),
    )


def problems_of(engine: EngineStore, rule: str) -> list[str]:
    """Return what breaks one rule."""
    return [each for each in engine.problems() if each.startswith(rule)]


def test_a_restore_does_not_make_damage_good(engine: EngineStore) -> None:
    """A small file that is damaged in a snapshot is damaged after it, and is told and named."""
    bad, good = engine.file("bad", b"small content"), engine.file("good", b"small content")
    epoch = engine.save()
    seal(engine)
    for ino in (bad, good):
        engine.data.write(ino, 0, b"other content")
    flip_small(engine, bad)
    commands = Commands(engine.store)
    steps.run(commands.start("restore", RESTORE | {"snapshot": "latest", "paths": []}, Listener()))
    engine.forget_memory()
    assert damages_told(engine) == ["bad: bytes 0 to 13 are damaged, in current"]
    assert read(engine, good) == b"small content"
    with pytest.raises(DamagedBytes):
        read(engine, bad)
    assert len(problems_of(engine, "R16")) == 1
    unsealed = engine.save()
    seal(engine)
    assert sealed(engine, unsealed) is None
    assert "bad is damaged" in str(engine.store.sealer.why_not(engine.store.catalog.snapshots[-1]))
    assert [each.path for each in found(engine)] == ["bad"]
    steps.run(commands.start("undo", RESTORE, Listener()))
    assert read(engine, bad) == b"other content"
    for snapshot in engine.store.catalog.snapshots[1:]:
        engine.delete(snapshot.epoch)
    assert sealed(engine, epoch) is not None and engine.problems() == []


def test_a_copy_of_damage_is_not_good(engine: EngineStore) -> None:
    """Neither one that a restore makes of what moved away, nor a clone whose snapshot goes."""
    folder = engine.folder("folder")
    bad = engine.file("bad", b"small content", folder)
    engine.save()
    seal(engine)
    cloned = clone_of(engine, bad)
    flip_small(engine, bad)
    engine.names.rename(TREE_ROOT, b"folder", TREE_ROOT, b"elsewhere")
    arguments = RESTORE | {"snapshot": "latest", "paths": ["folder"]}
    steps.run(Commands(engine.store).start("restore", arguments, Listener()))
    copied = engine.names.lookup(engine.names.lookup(TREE_ROOT, b"folder").ino, b"bad").ino
    assert copied != bad
    assert damages_told(engine) == ["folder/bad: bytes 0 to 13 are damaged, in current"]
    for snapshot in list(engine.store.catalog.snapshots):
        engine.hide(snapshot.epoch)
    for ino in (copied, cloned):
        with pytest.raises(DamagedBytes):
            read(engine, ino)
    engine.store.collect()
    assert engine.rows("shared") == 0
    for ino in (copied, cloned):
        with pytest.raises(DamagedBytes):
            read(engine, ino)
        engine.data.write(ino, 0, b"small content")
        assert read(engine, ino) == b"small content"


def test_small_content_that_is_lost_is_damage(engine: EngineStore) -> None:
    """Nothing is served in its place: no zeros, and no end of the file."""
    ino = engine.file("f", b"small content")
    epoch = engine.save()
    engine.forget_memory()
    row = engine.database.execute("SELECT * FROM inline WHERE ino = ?", (ino,)).fetchone()
    engine.database.execute("DELETE FROM inline WHERE ino = ?", (ino,))
    for moment in (NOW, epoch):
        with pytest.raises(DamagedBytes):
            read(engine, ino, epoch=moment)
    engine.data.truncate(ino, 0)
    engine.database.execute("INSERT INTO inline VALUES (?, ?, ?, ?, ?)", (*row[:2], 2, *row[3:]))


def test_rows_of_extents_that_are_lost_are_damage(engine: EngineStore) -> None:
    """What they covered is not served as a hole; a real hole is."""
    ino = engine.file("f", b"")
    engine.data.write(ino, BLOCK_BYTES, content())
    epoch = engine.save()
    seal(engine)
    restarted(engine)
    assert read(engine, ino, 0, BLOCK_BYTES, epoch) == bytes(BLOCK_BYTES)
    rows = engine.database.rows("SELECT * FROM extents WHERE ino = ?", (ino,))
    engine.database.execute("DELETE FROM extents WHERE ino = ?", (ino,))
    restarted(engine)
    for moment in (NOW, epoch):
        with pytest.raises(DamagedBytes):
            read(engine, ino, BLOCK_BYTES, 10, moment)
    for row in rows:
        engine.database.execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?, ?)", row)


def damages_told(engine: EngineStore) -> list[str]:
    """Return what the events of a store say is damaged."""
    return [each["damage"] for each in engine.store.kept_events.after(0) if "damage" in each]


def test_operations_name_the_file(engine: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cat`, `export` and what is built on them; it is told once."""
    ino = engine.file("f", content())
    engine.save(name="first")
    seal(engine)
    damage(engine, ino, 10)
    commands = Commands(engine.store)
    place = {"snapshot": "first", "path": "Zg==", "ino": 0, "offset": 0, "end": 100}
    with pytest.raises(CorruptStore, match="f: bytes 0 to 1048576 are damaged, in 20") as caught:
        steps.run(commands.start("locate", place | {"check": True}, Listener()))
    assert "verify --read-data" in str(caught.value)
    assert steps.run(commands.start("locate", place, Listener()))["size"] == BIG
    monkeypatch.setattr(exporting, "PipeWriter", lambda *_: io.BytesIO())
    with pytest.raises(CorruptStore, match="f: bytes 0 to 1048576 are damaged"):
        steps.run(commands.start("export", {"snapshot": "first", "pipe": "p"}, Listener()))
    (told,) = damages_told(engine)
    assert told.startswith("f: bytes 0 to 1048576 are damaged")


def test_ranges_are_a_set_of_numbers() -> None:
    """Whatever is put in in whatever order; the gaps are what is not in."""
    chooser = random.Random(7)
    for _ in range(200):
        ranges, model = _Ranges(), set[int]()
        for _ in range(chooser.randrange(12)):
            start = chooser.randrange(30)
            end = start + chooser.randrange(1, 8)
            ranges.add(1, start, end)
            model.update(range(start, end))
        start = chooser.randrange(30)
        end = start + chooser.randrange(1, 15)
        gaps = ranges.gaps(1, start, end)
        assert {n for gap in gaps for n in range(*gap)} == set(range(start, end)) - model
        assert all(first < last for first, last in gaps)


def test_what_is_remembered_is_bounded(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest unused objects are forgotten first, and then checked again."""
    monkeypatch.setattr("statefs.content.checks.RANGES_KEPT", 3)
    ranges = _Ranges()
    for number in range(1, 5):
        ranges.add(number, 0, 10)
    assert ranges.gaps(1, 0, 10) == [(0, 10)]
    assert ranges.gaps(2, 0, 10) == []
    ranges.add(5, 0, 10)
    assert ranges.gaps(3, 0, 10) == [(0, 10)]
    assert ranges.gaps(2, 0, 10) == []
