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


def test_a_file_whose_temporary_name_was_saved_keeps_its_history(engine: EngineStore) -> None:
    """What stood at the path comes before what the new inode was called; that name has its own."""
    for name in ("a", "b", "c", "d"):
        engine.file("tmp", name.encode())
        if name == "c":
            engine.save(name="caught")
        engine.names.rename(TREE_ROOT, b"tmp", TREE_ROOT, b"f")
        engine.save(name=name)
    assert log(engine, "f") == [
        "a added f",
        "b modified f content mtime",
        "c modified f content mtime",
        "d modified f content mtime",
    ]
    assert log(engine, "tmp") == ["caught added tmp", "c removed tmp"]


def test_a_temporary_name_is_known_as_such_in_a_renamed_folder(engine: EngineStore) -> None:
    """What stood at a name of a folder did so under the path that the folder had then."""
    folder = engine.folder("d")
    engine.file("f", b"1", folder)
    engine.save(name="a")
    engine.file("tmp", b"2", folder)
    engine.save(name="b")
    engine.names.rename(TREE_ROOT, b"d", TREE_ROOT, b"e")
    engine.names.rename(folder, b"tmp", folder, b"f")
    engine.save(name="c")
    assert log(engine, "e/f") == ["a added d/f", "c modified d/f -> e/f content mtime"]


def test_another_name_of_a_file_is_no_rename(engine: EngineStore) -> None:
    """Neither put over a file, nor where nothing stood; and one that goes is gone."""
    for name, content in ((b"m1", b"one"), (b"m2", b"second")):
        engine.file(name.decode(), content)
    engine.save(name="a")
    engine.names.unlink(TREE_ROOT, b"m1")
    ino = int(engine.names.lookup(TREE_ROOT, b"m2").ino)
    engine.names.link(ino, TREE_ROOT, b"m1")
    engine.names.link(ino, TREE_ROOT, b"m3")
    engine.save(name="b")
    engine.names.rename(TREE_ROOT, b"m3", TREE_ROOT, b"m4")
    engine.save(name="c")
    engine.names.unlink(TREE_ROOT, b"m2")
    engine.save(name="d")
    assert log(engine, "m1") == ["a added m1", "b modified m1 content mtime"]
    assert log(engine, "m2") == ["a added m2", "d removed m2"]
    assert log(engine, "m4") == ["b added m3", "c renamed m3 -> m4"]


def test_rotated_files_have_a_history_by_path(engine: EngineStore) -> None:
    """But where a name is new: that leads back to the one that was renamed to it."""
    for number, name in enumerate(("a", "b", "c")):
        for older, newer in ((b"log.1", b"log.2"), (b"log", b"log.1"))[2 - number :]:
            engine.names.rename(TREE_ROOT, older, TREE_ROOT, newer)
        engine.file("log", b"x" * (number + 1))
        engine.save(name=name)
    assert log(engine, "log") == [
        "a added log",
        "b modified log content mtime",
        "c modified log content mtime",
    ]
    assert log(engine, "log.1") == [
        "a added log",
        "b renamed log -> log.1",
        "c modified log.1 content mtime",
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
        told = {version.index: version.pair for version in versions}
        path = os.fsencode(text)
        for index in range(len(moments) - 1, versions[0].index, -1):
            pair, version = differences[index - 1].get(path), told.get(index)
            if version is not None:
                assert version.after is None or version.path == path
                if version.before is None or version.after is None:
                    break  # there is a gap
                path = version.before.path
            elif any(path.startswith(each + b"/") for each in differences[index - 1]):
                break  # a folder above it may have been renamed: its path was another one
            elif pair is not None:
                # What was renamed to the path took the place of what is the same in all.
                assert pair.kind == "renamed" and pair.before is not None
                trees = [tree_of(engine, moment) for moment in moments[index - 1 : index + 1]]
                stood, stands = (tree[os.fsdecode(path)] for tree in trees)
                for key in (
                    "mode",
                    "uid",
                    "gid",
                    "rdev",
                    "mtime_ns",
                    "xattrs",
                    "content",
                    "target",
                ):
                    assert stood.get(key) == stands.get(key)
