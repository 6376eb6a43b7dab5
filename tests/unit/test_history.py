from __future__ import annotations

import itertools
import os

import pytest

from statefs.ids import NOW, TREE_ROOT, Epoch
from statefs.snapshots.diff import compare, document_of
from statefs.snapshots.history import History
from statefs.volume.attributes import AttributeChange
from tests.unit.engine_store import EngineStore, tree_of
from tests.unit.moments import line, now
from tests.unit.random_histories import RandomHistory

BIG = 20_000


def log(engine: EngineStore, path: str) -> list[str]:
    """Return the versions of a path, one line each: moment, change, path, aspects."""
    snapshots = engine.store.catalog.snapshots
    names = [*(each.label for each in snapshots), "current"]
    moments = [*(each.epoch for each in snapshots), now(engine)]
    versions = History(engine.database, moments).versions(os.fsencode(path))
    return [f"{names[each.index]} {line(document_of(each.pair))}" for each in versions]


def test_each_version_is_told_once(engine: EngineStore) -> None:
    """With the oldest snapshot that has it; snapshots in which it did not change are left out."""
    ino = engine.file("f", b"x" * BIG)
    for name in ("a", "b", "c", "d"):
        engine.save(name=name)
        if name == "b":
            engine.data.write(ino, 0, b"new")
    engine.attributes.set(ino, AttributeChange(mode=0o600))
    assert log(engine, "f") == [
        "a added f",
        "c modified f content mtime",
        "current metadata f mode",
    ]


def test_renames_are_followed(engine: EngineStore) -> None:
    """From the path it has now or had last; what is only in current is a version too."""
    engine.file("first", b"")
    engine.save(name="a")
    engine.names.rename(TREE_ROOT, b"first", TREE_ROOT, b"second")
    engine.save(name="b")
    engine.names.rename(TREE_ROOT, b"second", engine.folder("folder"), b"third")
    expected = [
        "a added first",
        "b renamed first -> second",
        "current renamed second -> folder/third",
    ]
    assert log(engine, "folder/third") == expected
    assert log(engine, "first") == expected
    assert log(engine, "nothing") == []


def test_a_file_that_is_written_anew_each_time_has_one_history(engine: EngineStore) -> None:
    """By its path, as the inode is another each time; a gap in between is told."""
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        engine.file("temporary", content)
        engine.names.rename(TREE_ROOT, b"temporary", TREE_ROOT, b"f")
        engine.save(name=name)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.save(name="d")
    engine.save(name="e")
    engine.file("f", b"3")
    assert log(engine, "f") == [
        "a added f",
        "b metadata f mtime",
        "c modified f content mtime",
        "d removed f",
        "current added f",
    ]


def test_a_folder_has_versions_when_names_come_or_go(engine: EngineStore) -> None:
    """Not when a file in it is written; and the root has some, too."""
    folder = engine.folder("d")
    ino = engine.file("f", b"", folder)
    engine.save(name="a")
    engine.data.write(ino, 0, b"more")
    engine.save(name="b")
    engine.file("g", b"", folder)
    engine.save(name="c")
    engine.attributes.set(folder, AttributeChange(mode=0o700))
    assert log(engine, "d") == ["a added d", "c modified d entries", "current metadata d mode"]
    assert log(engine, "") == ["a added ."]


def test_what_was_in_runtime_begins_where_it_came_out(engine: EngineStore) -> None:
    """Though its own rows are older."""
    runtime = int(engine.names.lookup(TREE_ROOT, b"runtime").ino)
    engine.file("f", b"", engine.folder("d", runtime))
    engine.save(name="a")
    engine.names.rename(runtime, b"d", TREE_ROOT, b"d")
    engine.save(name="b")
    assert log(engine, "d/f") == ["b added d/f"]
    engine.names.rename(TREE_ROOT, b"d", runtime, b"d")
    assert log(engine, "d/f") == ["b added d/f", "current removed d/f"]


@pytest.mark.parametrize("seed", range(6))
def test_random_histories(engine: EngineStore, seed: int) -> None:
    """Of every path now: the last version is what is there, and between versions nothing differs.

    So much is asked of each two moments that follow one another: where the log has no version, the
    difference of the two trees has nothing of that file either.
    """
    history = RandomHistory(engine, seed)
    moments: list[Epoch] = []
    for step in range(8):
        history.go_on(8)
        engine.save(name=f"s{step}")
        snapshot = engine.store.catalog.snapshots[-1]
        moments.append(snapshot.epoch)
    history.go_on(4)
    engine.store.settle()
    moments.append(NOW)
    log_of = History(engine.database, moments)
    differences = [
        {pair.path: pair for pair in compare(engine.database, *pair_of)}
        for pair_of in itertools.pairwise(moments)
    ]
    for text, shown in tree_of(engine, NOW).items():
        versions = log_of.versions(os.fsencode(text))
        last = versions[-1].pair.after
        assert last is not None and last.inode.mode == int(shown["mode"], 8)
        assert last.inode.size == shown["size"]
        told = {version.index for version in versions}
        oldest, path = versions[0].index, os.fsencode(text)
        for index in range(len(moments) - 1, oldest, -1):
            pair = differences[index - 1].get(path)
            if pair is not None and pair.after is not None and pair.kind != "added":
                assert index in told or pair.before is None
                assert pair.before is not None
                path = pair.before.path
            elif index in told:
                break  # it was another file: told by path, or of a folder's entries
