"""What may differ between two moments is told from rows, and nothing is left out."""

from __future__ import annotations

import random

from statefs.ids import NOW, TREE_ROOT
from statefs.snapshots.changes import changed_inodes, changes, content_of, names_of
from tests.unit.engine_store import EngineStore, tree_of
from tests.unit.moments import now, then

BIG = 20_000


def test_nothing_differs_right_after_a_save(engine: EngineStore) -> None:
    """Whatever the tree holds."""
    engine.file("f", b"x" * BIG)
    engine.save(name="a")
    assert changed_inodes(engine.database, then(engine, "a"), now(engine)) == []


def test_each_kind_of_change_is_seen(engine: EngineStore) -> None:
    """Written, renamed, linked, given an attribute, made, removed; by its number."""
    folder = engine.folder("folder")
    numbers = {
        kind: engine.file(kind, b"x" * BIG, folder)
        for kind in ("written", "renamed", "linked", "marked", "removed", "left")
    }
    engine.save(name="a")
    engine.data.write(numbers["written"], 5, b"new")
    engine.names.rename(folder, b"renamed", folder, b"other")
    engine.names.link(numbers["linked"], TREE_ROOT, b"second")
    engine.attributes.set_xattr(numbers["marked"], b"user.a", b"1")
    engine.names.unlink(folder, b"removed")
    made = engine.file("made", b"", folder)
    found = set(changed_inodes(engine.database, then(engine, "a"), now(engine)))
    expected = {numbers[kind] for kind in numbers if kind != "left"} | {folder, made, TREE_ROOT}
    assert found == expected


def test_content_that_was_not_written_is_named_the_same(engine: EngineStore) -> None:
    """A chmod leaves it; a write changes it; so does a truncation."""
    number = engine.file("f", b"x" * BIG)
    engine.save(name="a")
    engine.data.write(number, BIG, b"more")
    [change] = [
        each
        for each in changes(engine.database, then(engine, "a"), now(engine))
        if each.ino == number
    ]
    assert change.before is not None and change.after is not None
    epoch = then(engine, "a")
    before = content_of(engine.database, change.before, epoch)
    assert before != content_of(engine.database, change.after, NOW)
    assert before == ((0, BIG, before[0][2]),)  # type: ignore[index]  # extents
    assert names_of(engine.database, number, epoch).keys() == {(TREE_ROOT, b"f")}


def test_random_histories_leave_nothing_out(engine: EngineStore) -> None:
    """Of any two moments: an inode that is not named is the same in both trees, byte for byte."""
    random_source = random.Random(7)
    files = [engine.file(f"f{number}", b"x" * 100 * number) for number in range(12)]
    moments = []
    for step in range(6):
        engine.save(name=f"s{step}")
        moments.append((then(engine, f"s{step}"), tree_of(engine, then(engine, f"s{step}"))))
        for number in random_source.sample(files, 3):
            engine.data.write(number, random_source.randrange(9000), b"changed")
        engine.file(f"new{step}", b"new")
    for older, tree in moments:
        for newer, other in moments:
            if older >= newer:
                continue
            named = set(changed_inodes(engine.database, older, newer))
            paths = {f"f{place}" for place, number in enumerate(files) if number not in named}
            assert paths, "a part is left alone"
            for path in paths:
                assert tree[path] == other[path]
