from __future__ import annotations

import os
import random
import stat
from collections import Counter
from typing import Any

import pytest

from statefs.errors import PosixError
from statefs.ids import NOW, TREE_ROOT, Epoch
from statefs.metadata.inodes import InodeFlag
from statefs.snapshots.diff import Pair, compare, document_of
from statefs.volume.attributes import AttributeChange
from statefs.volume.names import RENAME_EXCHANGE
from tests.unit.engine_store import FILE, ME, EngineStore, tree_of
from tests.unit.moments import line, now, then
from tests.unit.random_histories import RandomHistory

BIG = 20_000
Tree = dict[str, Any]


def told(engine: EngineStore, older: Epoch | None = None) -> list[str]:
    """Return what changed since the snapshot `a`, each on one line."""
    pairs = compare(engine.database, older or then(engine), now(engine))
    return [line(document_of(pair)) for pair in pairs]


def test_nothing_differs_after_a_save(engine: EngineStore) -> None:
    """Nor does a file that was written and removed again, or a folder that had it."""
    folder = engine.folder("folder")
    engine.file("f", b"x" * BIG, folder)
    engine.save(name="a")
    engine.file("passing", b"", folder)
    engine.names.unlink(folder, b"passing")
    assert told(engine) == []


def test_each_kind_of_change(engine: EngineStore) -> None:
    """By its word; the folder's own time is none."""
    folder = engine.folder("d")
    numbers = {
        name: engine.file(name, b"x" * BIG, folder)
        for name in ("chmod", "chown", "left", "mark", "moved", "removed", "touch", "written")
    }
    engine.save(name="a")
    engine.file("added", b"", folder)
    engine.attributes.set(numbers["chmod"], AttributeChange(mode=0o600))
    engine.attributes.set(numbers["chown"], AttributeChange(uid=5))
    engine.attributes.set_xattr(numbers["mark"], b"user.a", b"1")
    engine.names.rename(folder, b"moved", TREE_ROOT, b"elsewhere")
    engine.names.unlink(folder, b"removed")
    engine.attributes.set(numbers["touch"], AttributeChange(mtime_ns=1))
    engine.data.write(numbers["written"], 5, b"new")
    assert told(engine) == [
        "added d/added",
        "metadata d/chmod mode",
        "metadata d/chown owner",
        "metadata d/mark xattrs",
        "removed d/removed",
        "metadata d/touch mtime",
        "modified d/written content mtime",
        "renamed d/moved -> elsewhere",
    ]


def test_a_renamed_folder_is_one_item(engine: EngineStore) -> None:
    """What lies in it is told only where it changed itself, with both paths."""
    outer = engine.folder("outer")
    inner = engine.folder("inner", outer)
    for number in range(5):
        engine.file(f"f{number}", b"same", inner)
    written = engine.file("written", b"old", inner)
    engine.save(name="a")
    engine.names.rename(TREE_ROOT, b"outer", TREE_ROOT, b"renamed")
    engine.data.write(written, 0, b"new")
    engine.file("added", b"", inner)
    assert told(engine) == [
        "renamed outer -> renamed",
        "added renamed/inner/added",
        "modified outer/inner/written -> renamed/inner/written content mtime",
    ]


def test_a_removed_folder_is_listed_with_what_was_in_it(engine: EngineStore) -> None:
    """And so is an added one."""
    folder = engine.folder("old")
    engine.file("f", b"", folder)
    engine.save(name="a")
    engine.names.unlink(folder, b"f")
    engine.names.rmdir(TREE_ROOT, b"old")
    engine.file("f", b"", engine.folder("new"))
    assert told(engine) == ["added new", "added new/f", "removed old", "removed old/f"]


def test_a_file_written_anew_and_renamed_over_is_modified(engine: EngineStore) -> None:
    """As editors save; the same bytes and attributes are no difference."""
    engine.file("changed", b"old")
    same = engine.file("same", b"same")
    engine.save(name="a")
    for name, content in (("changed", b"new"), ("same", b"same")):
        ino = engine.file("temporary", content)
        engine.attributes.set(ino, AttributeChange(mtime_ns=engine.node(same).mtime_ns))
        engine.names.rename(TREE_ROOT, b"temporary", TREE_ROOT, name.encode())
    assert told(engine) == ["modified changed content mtime"]


def test_rotated_logs_are_renamed(engine: EngineStore) -> None:
    """The newest is added, the oldest removed, and nothing is said to be modified."""
    for name in ("log", "log.1", "log.2"):
        engine.file(name, name.encode())
    engine.save(name="a")
    engine.names.rename(TREE_ROOT, b"log.1", TREE_ROOT, b"log.2")
    engine.names.rename(TREE_ROOT, b"log", TREE_ROOT, b"log.1")
    engine.file("log", b"fresh")
    assert told(engine) == [
        "added log",
        "renamed log -> log.1",
        "removed log.2",
        "renamed log.1 -> log.2",
    ]


def test_an_exchange_is_two_renames(engine: EngineStore) -> None:
    """However much lies in the two folders."""
    for name in ("a", "b"):
        engine.file("f", name.encode(), engine.folder(name))
    engine.save(name="a")
    engine.names.rename(TREE_ROOT, b"a", TREE_ROOT, b"b", RENAME_EXCHANGE)
    assert told(engine) == ["renamed b -> a", "renamed a -> b"]


def test_another_type_at_the_same_path_is_modified(engine: EngineStore) -> None:
    """What was in a folder that became a file is removed."""
    engine.file("f", b"", engine.folder("x"))
    engine.save(name="a")
    engine.names.unlink(int(engine.names.lookup(TREE_ROOT, b"x").ino), b"f")
    engine.names.rmdir(TREE_ROOT, b"x")
    engine.names.create(TREE_ROOT, b"x", stat.S_IFLNK | 0o777, ME, 0, b"target")
    assert told(engine) == ["modified x type mode", "removed x/f"]
    [pair, _] = compare(engine.database, then(engine), now(engine))
    document = document_of(pair)
    assert (document.type_before, document.type) == ("folder", "symlink")
    assert (document.size_before, document.size) == (None, 6)


def test_each_name_of_a_file_is_told(engine: EngineStore) -> None:
    """Of two names both are modified; one more is added, one less removed."""
    ino = engine.file("one", b"old")
    engine.names.link(ino, TREE_ROOT, b"two")
    engine.save(name="a")
    engine.data.write(ino, 0, b"new")
    engine.names.link(ino, TREE_ROOT, b"three")
    assert told(engine) == [
        "modified one content mtime",
        "added three",
        "modified two content mtime",
    ]


def test_runtime_is_no_part_of_it(engine: EngineStore) -> None:
    """What is moved out of it is added, what is moved into it removed, unchanged as it is."""
    runtime = int(engine.names.lookup(TREE_ROOT, b"runtime").ino)
    out = engine.folder("out", runtime)
    engine.file("f", b"", engine.folder("deep", out))
    engine.file("f", b"", engine.folder("into"))
    engine.save(name="a")
    engine.file("env", b"", runtime)
    engine.names.rename(runtime, b"out", TREE_ROOT, b"out")
    engine.names.rename(TREE_ROOT, b"into", runtime, b"into")
    assert told(engine) == [
        "removed into",
        "removed into/f",
        "added out",
        "added out/deep",
        "added out/deep/f",
    ]


def test_the_root_has_a_path(engine: EngineStore) -> None:
    """Its own attributes are told as those of "."."""
    engine.save(name="a")
    engine.attributes.set(TREE_ROOT, AttributeChange(mode=0o700))
    assert told(engine) == ["metadata . mode"]


def test_paths_that_are_no_text_are_exact_in_base64(engine: EngineStore) -> None:
    """The same text of another name is told apart by it."""
    engine.save(name="a")
    for name in (b"\xff", rb"\xff", b"a\x1b\n"):
        engine.names.create(TREE_ROOT, name, FILE, ME)
    found = [document_of(pair) for pair in compare(engine.database, then(engine), now(engine))]
    assert [(each.path, each.raw_path) for each in found] == [
        (r"\xff", None),
        ("a\x1b\n", None),
        (r"\xff", "/w=="),
    ]


def test_a_very_deep_tree_has_paths(engine: EngineStore) -> None:
    """Deeper than Python's stack."""
    folder: int = TREE_ROOT
    for _ in range(1500):
        folder = engine.folder("d", folder)
    engine.save(name="a")
    engine.file("f", b"", folder)
    assert told(engine) == ["added " + "d/" * 1500 + "f"]
    engine.save(name="b")
    while folder != TREE_ROOT:
        parent = engine.node(folder).parent
        for _, name, node in engine.names.listing(folder, 0, 10):
            remove = engine.names.rmdir if node.is_dir else engine.names.unlink
            remove(folder, name)
        folder = parent
    assert len(told(engine, then(engine, "b"))) == 1500


def test_giving_up(engine: EngineStore) -> None:
    """What the listener of progress raises ends the comparison."""
    engine.save(name="a")
    engine.file("f")

    def listen(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(engine.database, then(engine), now(engine), listen)


# Random histories.


def check(older: Tree, newer: Tree, pairs: list[Pair]) -> None:
    """Check a difference against both trees, read in full.

    It is right when the older tree, changed as it says, is the newer one; and small when it says
    nothing that is none.
    """
    moved = _applied(older, pairs)
    added = {_text(pair.after.path) for pair in pairs if pair.after and pair.before is None}
    assert not added & set(moved.values())
    assert added | set(moved.values()) == set(newer)
    both = {_text(pair.after.path): pair for pair in pairs if pair.after and pair.before}
    for old, new in moved.items():
        _check_aspects(older[old], newer[new], both.get(new))
    _check_minimal(older, newer, pairs, moved)


def _text(path: bytes) -> str:
    return os.fsdecode(path)


def _applied(older: Tree, pairs: list[Pair]) -> dict[str, str]:
    """Return path -> path in the newer tree of all that was not removed."""
    items = {_text(pair.before.path): pair for pair in pairs if pair.before is not None}
    assert len(items) == sum(pair.before is not None for pair in pairs), "one item for a name"
    moved = {".": "."}
    for path in sorted(older):
        if path == ".":
            continue
        folder, _, name = path.rpartition("/")
        pair = items.get(path)
        above = moved.get(folder or ".")
        expected = None if above is None else name if above == "." else f"{above}/{name}"
        if pair is None:
            assert expected is not None, f"{path} went with its folder and is not told of"
            moved[path] = expected
        elif pair.after is not None:
            moved[path] = _text(pair.after.path)
            assert pair.is_renamed == (moved[path] != expected) or _replaced(older, pair, folder)
    return moved


def _replaced(older: Tree, pair: Pair, folder: str) -> bool:
    """Return whether a pair lies in a folder that another one stands for now."""
    assert pair.after is not None
    return not pair.is_renamed and older[folder]["ino"] != pair.after.inode.parent


def _check_aspects(before: dict[str, Any], after: dict[str, Any], pair: Pair | None) -> None:
    """Check that what is told of one name is what differs."""
    expected: set[str] = set()
    told = set() if pair is None else set(pair.changed)
    kinds = [stat.S_IFMT(int(each["mode"], 8)) for each in (before, after)]
    if kinds[0] != kinds[1]:
        expected.add("type")
    else:
        same = all(before.get(key) == after.get(key) for key in ("content", "target"))
        if not same:
            expected.add("content")
        elif pair is not None and "content" in told:  # written again with the same bytes
            inodes = [place.inode for place in (pair.before, pair.after) if place]
            flags = [inode.flags & InodeFlag.EXTENTS for inode in inodes]
            assert any(flags), "small files are compared"
            expected.add("content")
    if stat.S_IMODE(int(before["mode"], 8)) != stat.S_IMODE(int(after["mode"], 8)):
        expected.add("mode")
    if (before["uid"], before["gid"]) != (after["uid"], after["gid"]):
        expected.add("owner")
    if before["xattrs"] != after["xattrs"]:
        expected.add("xattrs")
    if before["mtime_ns"] != after["mtime_ns"] and stat.S_IFDIR not in kinds:
        expected.add("mtime")
    assert told == expected


def _check_minimal(older: Tree, newer: Tree, pairs: list[Pair], moved: dict[str, str]) -> None:
    """Check that no item is told that need not be, and that renames are told as such."""
    gone = Counter(pair.before.inode.ino for pair in pairs if pair.before and not pair.after)
    come = Counter(pair.after.inode.ino for pair in pairs if pair.after and not pair.before)
    assert not gone & come, "removed and added is renamed"
    for pair in pairs:
        if pair.is_renamed:
            assert pair.before and pair.after and pair.before.inode.ino == pair.after.inode.ino
        elif pair.before and pair.after:
            assert pair.changed
        if pair.before and not pair.after:
            folder, _, name = _text(pair.before.path).rpartition("/")
            above = moved.get(folder or ".")
            place = None if above is None else name if above == "." else f"{above}/{name}"
            added = {_text(each.after.path) for each in pairs if each.after and not each.before}
            assert place not in added, "removed and added at one place is modified"


@pytest.mark.parametrize("seed", range(12))
def test_random_histories(engine: EngineStore, seed: int) -> None:
    """Between any two moments, in both directions, also with snapshots deleted in between."""
    history = RandomHistory(engine, seed)
    moments: list[tuple[Epoch, Tree]] = []
    for step in range(8):
        history.go_on(random.Random(seed + step).choice([1, 5, 30]))
        epoch = engine.save(name=f"s{step}")
        moments.append((then(engine, f"s{step}"), tree_of(engine, epoch)))
        if step in (3, 6):
            deleted, _ = moments.pop(history.random.randrange(len(moments)))
            engine.delete(deleted)
    history.go_on(10)
    moments.append((now(engine), tree_of(engine, NOW)))
    told_of = 0
    for older, tree in moments:
        for newer, other in moments:
            pairs = compare(engine.database, older, newer)
            told_of += len(pairs)
            check(tree, other, pairs)
            assert [pair.path for pair in pairs] == sorted(pair.path for pair in pairs)
    assert told_of > 20


def test_random_histories_hold_every_operation(engine: EngineStore) -> None:
    """None of them is always refused."""
    history = RandomHistory(engine, 1)
    history.go_on(600)
    done = Counter(operation for operation in history.done if "(" not in operation)
    assert min(done.values()) >= 3
    assert len(done) == len({*done, "create"}) and "exchange" in done and "twin" in done
    with pytest.raises(PosixError):
        engine.names.lookup(TREE_ROOT, b"edited")
