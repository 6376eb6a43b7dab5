"""A restore makes the past current again: exactly, only where it was asked to, and in one piece."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from statefs.errors import NoSuchPath, PosixError, UsageError
from statefs.ids import NOW, TREE_ROOT
from statefs.layout import RUNTIME
from statefs.maintenance import steps
from statefs.maintenance.commands import Commands
from statefs.snapshots.reports import writers_text
from statefs.snapshots.restore import Restored, restore
from statefs.snapshots.restore_plan import Plan, Planner, Scope, parsed_paths
from statefs.volume.names import RENAME_EXCHANGE
from tests.unit.engine_store import EngineStore, tree_of
from tests.unit.test_sealing import Listener

BIG = 20_000
NOT_COMPARED = ("ino", "ctime_ns", "nlink")
"""A copy has another number; the change itself takes place now; names outside count as links:
`links` compares those inside."""


def go_back(engine: EngineStore, epoch: int, paths: Iterable[str] = ()) -> Restored | None:
    """Save, then restore the snapshot of an epoch, or some of its paths."""
    engine.save()
    catalog = engine.store.catalog
    [then] = [each.epoch for each in catalog.snapshots if each.epoch == epoch]
    plan = Planner(engine.database, then, NOW, Scope(parsed_paths(paths))).plan()
    return None if plan.is_empty else restore(engine.table, plan)


def comparable(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without runtime/, and without what a restore need not bring back."""
    runtime = RUNTIME.decode()
    return {
        path: {key: value for key, value in entry.items() if key not in NOT_COMPARED}
        for path, entry in tree.items()
        if path != runtime and not path.startswith(f"{runtime}/")
    }


def has_file_above(tree: dict[str, Any], path: str) -> bool:
    """Return whether a part of a path leads to something that is no folder."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts))]
    return any(each in tree and not tree[each]["mode"].startswith("0o4") for each in above)


def below(tree: dict[str, Any], top: str, inside: bool = True) -> dict[str, Any]:
    """Return the part of a tree at and below a path, or all the rest of it."""
    return {
        path: entry
        for path, entry in comparable(tree).items()
        if (path == top or path.startswith(f"{top}/")) == inside
    }


def stayed(then: dict[str, Any], before: dict[str, Any], top: str = "") -> set[str]:
    """Return the paths at and below one that led to nothing which now lies elsewhere.

    What does may come back as a copy, a folder with copies of all it held.
    """

    def holds(path: str) -> bool:
        return path != "." and (not top or is_within(path, top))

    inside = {path for path in comparable(then) if holds(path)}
    within = {path for path in comparable(before) if holds(path)}
    outside = {before[path]["ino"] for path in before.keys() - within}
    left = {path for path in inside if then[path]["ino"] in outside}
    return {path for path in inside if not any(is_within(path, each) for each in left)}


def is_within(path: str, top: str) -> bool:
    """Return whether a path is another one or lies below it."""
    return path == top or path.startswith(f"{top}/")


def links(tree: dict[str, Any], paths: Iterable[str]) -> dict[str, set[str]]:
    """Return path -> which of the paths, itself among them, lead to the same file."""
    by_number: dict[int, set[str]] = {}
    for path in paths:
        by_number.setdefault(tree[path]["ino"], set()).add(path)
    return {path: by_number[tree[path]["ino"]] for path in paths}


class Vandal:
    """Does random things to a tree."""

    def __init__(self, engine: EngineStore, seed: int) -> None:
        self._engine = engine
        self._random = random.Random(seed)
        self._made = 0

    def _folders(self) -> list[int]:
        found: list[int] = [TREE_ROOT]
        for folder in found:
            found += [n.ino for _, _, n in self._listing(folder) if n.is_dir]
        return found

    def _listing(self, folder: int) -> list[Any]:
        return self._engine.names.listing(folder, 0, 1 << 30)

    def _entry(self) -> tuple[int, bytes, Any] | None:
        entries = [
            (folder, name, node) for folder in self._folders() for _, name, node in
            self._listing(folder) if name != RUNTIME
        ]  # fmt: skip
        return self._random.choice(entries) if entries else None

    def act(self) -> None:
        """Do one thing; what a filesystem refuses is refused."""
        engine, pick = self._engine, self._random.choice
        self._made += 1
        name = f"n{self._made % 9}"
        folder, entry = pick(self._folders()), self._entry()
        kind = pick(("file", "file", "folder", "write", "write", "cut", "rename", "rename",
                     "exchange", "link", "unlink", "rmdir", "xattr", "chmod"))  # fmt: skip
        try:
            if kind == "file":
                engine.file(name, bytes([self._made % 256]) * pick((3, 100, BIG)), folder)
            elif kind == "folder":
                engine.folder(name, folder)
            elif entry is not None:
                self._change(kind, entry, folder, name.encode())
        except PosixError:
            pass  # EEXIST, ENOTEMPTY, EINVAL: as on any filesystem

    def _change(self, kind: str, entry: tuple[int, bytes, Any], folder: int, name: bytes) -> None:
        engine, (parent, old, node) = self._engine, entry
        if kind == "write" and node.is_file:
            engine.data.write(node.ino, self._random.randrange(BIG), b"written")
        elif kind == "cut" and node.is_file:
            engine.data.truncate(node.ino, self._random.randrange(BIG))
        elif kind == "rename" and not self._is_within(folder, node):
            engine.names.rename(parent, old, folder, name)
        elif kind == "exchange":
            other = self._entry()
            if (
                other
                and other[2].ino != node.ino
                and not self._is_within(other[0], node)
                and not self._is_within(parent, other[2])
            ):
                engine.names.rename(parent, old, other[0], other[1], RENAME_EXCHANGE)
        elif kind == "link" and node.is_file:
            engine.names.link(node.ino, folder, name)
        elif kind == "unlink" and not node.is_dir:
            engine.names.unlink(parent, old)
        elif kind == "rmdir" and node.is_dir:
            engine.names.rmdir(parent, old)
        elif kind == "xattr":
            engine.attributes.set_xattr(node.ino, b"user.a", bytes([self._made % 256]))

    def _is_within(self, folder: int, node: Any) -> bool:
        """Whether a folder lies in `node`, which the kernel would not let move there."""
        while folder != TREE_ROOT:
            if folder == node.ino:
                return True
            folder = self._engine.node(folder).parent
        return False


@pytest.mark.parametrize("seed", range(15))
def test_random_trees_come_back_whole(engine: EngineStore, seed: int) -> None:
    """Whatever happened since, the tree is the snapshot's again; runtime/ and the past stay."""
    vandal = Vandal(engine, seed)
    epochs = []
    for _ in range(4):
        for _ in range(25):
            vandal.act()
        epochs.append(engine.save())
    trees = {epoch: tree_of(engine, epoch) for epoch in epochs}
    for _ in range(20):
        vandal.act()
    for epoch in (epochs[1], epochs[3], epochs[0]):
        before = tree_of(engine)
        runtime = below(before, "runtime", inside=True)
        go_back(engine, epoch)
        after = tree_of(engine)
        assert comparable(after) == comparable(trees[epoch])
        same = stayed(trees[epoch], before)
        assert links(after, same) == links(trees[epoch], same)
        assert below(tree_of(engine), "runtime", inside=True) == runtime
        assert engine.problems() == []
        for _ in range(10):
            vandal.act()
    for epoch in epochs:
        assert tree_of(engine, epoch) == trees[epoch]


@pytest.mark.parametrize("seed", range(15))
def test_random_paths_come_back_alone(engine: EngineStore, seed: int) -> None:
    """The path is as it was; what lies outside it is as it is, whatever moved in or out."""
    vandal = Vandal(engine, seed)
    for _ in range(30):
        vandal.act()
    epoch = engine.save()
    then = tree_of(engine, epoch)
    for _ in range(25):
        vandal.act()
    chooser = random.Random(seed)
    for _ in range(4):
        paths = sorted(path for path in comparable(then) if path != ".")
        if not paths:
            return  # everything was in runtime/
        path = chooser.choice(paths)
        before = tree_of(engine)
        try:
            go_back(engine, epoch, [path])
        except (NoSuchPath, UsageError):
            assert has_file_above(before, path)
            continue
        after = tree_of(engine)
        assert below(after, path) == below(then, path)
        same = stayed(then, before, path)
        assert links(after, same) == links(then, same)
        assert engine.problems() == []
        outside = below(after, path, inside=False)
        for where, entry in below(before, path, inside=False).items():
            is_folder_above = path.startswith(f"{where}/") or where == "."
            if not is_folder_above:
                assert outside[where] == entry
                assert after[where]["ino"] == before[where]["ino"]
        for where in outside.keys() - below(before, path, inside=False).keys():
            assert path.startswith(f"{where}/"), "only folders on the way are made"
        for _ in range(5):
            vandal.act()


def test_a_folder_that_gets_a_copy_keeps_its_time(engine: EngineStore) -> None:
    """A file that runtime/ has, too, comes back as a copy: its folder is what it was."""
    folder = engine.folder("d")
    number = engine.file("f", b"old", folder)
    engine.names.link(number, engine.names.lookup(TREE_ROOT, RUNTIME).ino, b"f")
    epoch = engine.save()
    then = tree_of(engine, epoch)
    engine.data.write(number, 0, b"new")
    go_back(engine, epoch)
    assert comparable(tree_of(engine)) == comparable(then)
    assert engine.names.lookup(folder, b"f").ino != number


def test_one_of_two_links_comes_back_as_a_link(engine: EngineStore) -> None:
    """Restored alone or with everything; new names of the file elsewhere change nothing."""
    folder = engine.folder("d")
    number = engine.file("a", b"x" * BIG, folder)
    engine.names.link(number, folder, b"b")
    epoch = engine.save()
    for paths in (["d/b"], ["d"], []):
        engine.names.unlink(folder, b"b")
        go_back(engine, epoch, paths)
        assert engine.names.lookup(folder, b"b").ino == number
        assert engine.node(number).nlink == 2
    engine.names.unlink(folder, b"b")
    engine.names.link(number, TREE_ROOT, b"c")
    go_back(engine, epoch, ["d/b"])
    assert engine.names.lookup(folder, b"b").ino == number
    assert engine.node(number).nlink == 3
    assert engine.problems() == []


@pytest.mark.parametrize("paths", [["d/a"], ["d"]])
def test_what_moved_out_stays_there_and_comes_back_as_a_copy(
    engine: EngineStore, paths: list[str]
) -> None:
    """A file that is named, or one below a named folder: what is written to it is its own."""
    folder = engine.folder("d")
    number = engine.file("a", b"x" * BIG, folder)
    epoch = engine.save()
    engine.names.rename(folder, b"a", TREE_ROOT, b"moved")
    go_back(engine, epoch, paths)
    copy = engine.names.lookup(folder, b"a").ino
    assert (engine.node(copy).nlink, engine.node(number).nlink) == (1, 1)
    engine.data.write(number, 0, b"moved")
    assert engine.content(copy) == b"x" * BIG
    assert engine.problems() == []


def test_a_link_to_what_changed_outside_comes_back_as_a_copy(engine: EngineStore) -> None:
    """The name outside the paths keeps what was written since."""
    number = engine.file("a", b"old")
    engine.names.link(number, TREE_ROOT, b"b")
    epoch = engine.save()
    engine.data.write(number, 0, b"new")
    go_back(engine, epoch, ["b"])
    copy = engine.names.lookup(TREE_ROOT, b"b").ino
    assert (engine.content(copy), engine.content(number)) == (b"old", b"new")
    assert (engine.node(copy).nlink, engine.node(number).nlink) == (1, 1)


def test_two_links_that_moved_out_come_back_as_two_links(engine: EngineStore) -> None:
    """Both named: one copy, with both names, and nothing without a name beside it."""
    number = engine.file("a", b"x" * BIG)
    engine.names.link(number, TREE_ROOT, b"b")
    epoch = engine.save()
    engine.names.unlink(TREE_ROOT, b"b")
    engine.names.rename(TREE_ROOT, b"a", TREE_ROOT, b"c")
    go_back(engine, epoch, ["a", "b"])
    found = engine.names.lookup(TREE_ROOT, b"a").ino
    assert found == engine.names.lookup(TREE_ROOT, b"b").ino != number
    assert engine.node(found).nlink == 2
    assert engine.problems() == []


def test_a_link_in_a_folder_that_was_renamed_comes_back(engine: EngineStore) -> None:
    """The file did not change, only the folder above it has another name."""
    first, second = engine.folder("d"), engine.folder("e")
    number = engine.file("a", b"x", first)
    engine.names.link(number, second, b"b")
    epoch = engine.save()
    engine.names.rename(TREE_ROOT, b"d", TREE_ROOT, b"renamed")
    go_back(engine, epoch, ["d/a", "e/b"])
    again = engine.names.lookup(TREE_ROOT, b"d").ino
    assert engine.names.lookup(again, b"a").ino == number
    assert engine.node(number).nlink == 3
    assert engine.problems() == []


def test_a_path_whose_folder_was_moved_below_it_comes_back(engine: EngineStore) -> None:
    """`mv d old; mkdir -p d/sub; mv old d/sub/`: what d/sub was lies in what is removed there."""
    folder = engine.folder("d")
    sub = engine.folder("sub", folder)
    engine.file("f", b"x", sub)
    epoch = engine.save()
    then = tree_of(engine, epoch)
    engine.names.rename(TREE_ROOT, b"d", TREE_ROOT, b"old")
    new = engine.folder("sub", engine.folder("d"))
    engine.names.rename(TREE_ROOT, b"old", new, b"old")
    go_back(engine, epoch, ["d/sub"])
    assert below(tree_of(engine), "d/sub") == below(then, "d/sub")
    assert engine.problems() == []


def test_nothing_to_do_is_nothing_done(engine: EngineStore) -> None:
    """The snapshot of the present leaves all rows alone."""
    engine.file("f", b"x" * BIG)
    epoch = engine.save()
    assert go_back(engine, epoch) is None


def test_it_plans_again_where_something_has_changed(
    engine: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came meanwhile is saved and goes, too; where nothing did, one plan is enough."""
    plans: list[Plan] = []

    def counted(self: Planner, *args: Any) -> Plan:
        plans.append(plan(self, *args))
        return plans[-1]

    plan = Planner.plan
    monkeypatch.setattr(Planner, "plan", counted)
    ino = engine.file("f", b"one")
    engine.save(name="a")
    arguments = {"snapshot": "a", "paths": [], "force": False, "dry_run": False}
    sync, late = engine.store.sync, list[str]()

    def change_and_sync(*objects: Any) -> None:
        while late:
            engine.file(late.pop())
        sync(*objects)

    monkeypatch.setattr(engine.store, "sync", change_and_sync)
    for wanted, names in ((1, []), (2, ["late"])):
        plans.clear()
        late += names
        engine.data.write(ino, 0, b"two")
        steps.run(Commands(engine.store).start("restore", arguments, Listener()))
        assert len(plans) == wanted
        assert engine.content(ino) == b"one"
    assert "late" not in tree_of(engine)
    assert "late" in tree_of(engine, engine.store.catalog.snapshots[-1].epoch)


def test_an_open_file_goes_on(engine: EngineStore) -> None:
    """Its descriptor reads what was restored, and what it writes lands in the restored file."""
    number = engine.file("f", b"old " * BIG)
    epoch = engine.save()
    engine.table.opened(number)
    engine.data.write(number, 0, b"new ")
    go_back(engine, epoch)
    assert engine.content(number) == b"old " * BIG
    engine.data.write(number, 0, b"more")
    assert engine.content(number)[:8] == b"moreold "
    assert engine.past_content(epoch, number) == b"old " * BIG
    engine.table.closed(number)
    assert engine.problems() == []


def test_a_file_that_is_open_and_was_not_there_lives_on_unnamed(engine: EngineStore) -> None:
    """As after an unlink: readable until it is closed, then gone."""
    epoch = engine.save()
    number = engine.file("f", b"x" * BIG)
    engine.table.opened(number)
    go_back(engine, epoch)
    assert engine.content(number) == b"x" * BIG
    engine.table.closed(number)
    assert number not in engine.table.nodes
    assert engine.problems() == []


def test_an_unlinked_open_file_gets_its_name_back(engine: EngineStore) -> None:
    """It is the same file for the descriptor, with the content that it had."""
    number = engine.file("f", b"x" * BIG)
    epoch = engine.save()
    engine.table.opened(number)
    engine.names.unlink(TREE_ROOT, b"f")
    engine.data.write(number, 0, b"unnamed")
    go_back(engine, epoch)
    assert engine.names.lookup(TREE_ROOT, b"f").ino == number
    assert engine.content(number) == b"x" * BIG
    engine.table.closed(number)
    assert engine.content(number) == b"x" * BIG
    assert engine.problems() == []


def test_a_killed_process_has_restored_all_or_nothing(engine: EngineStore) -> None:
    """What the next process finds is the one tree or the other."""
    engine.file("f", b"x" * BIG)
    epoch = engine.save()
    engine.names.unlink(TREE_ROOT, b"f")
    engine.file("g", b"y")
    then = tree_of(engine, epoch)
    go_back(engine, epoch)
    with engine.killed() as after:
        assert comparable(tree_of(after)) == comparable(then)
        assert after.problems() == []


@pytest.mark.parametrize(
    ("word", "message"), [("../x", "must not hold"), ("runtime/env.json", "cannot be restored")]
)
def test_paths_that_cannot_be_meant_are_refused(word: str, message: str) -> None:
    """Out of current/, or into what no snapshot has."""
    with pytest.raises(UsageError, match=message):
        parsed_paths([word])


def test_a_path_that_the_snapshot_has_not_is_refused(engine: EngineStore) -> None:
    """A typing error must not remove what is there."""
    epoch = engine.save()
    engine.file("new", b"x")
    with pytest.raises(NoSuchPath, match="not in the snapshot"):
        go_back(engine, epoch, ["new"])


def test_every_program_that_writes_is_named_once() -> None:
    """However many they are, and however many files each has open."""
    writers = [
        {"name": "app", "pid": pid, "path": f"files/{number}"}
        for pid in range(107, 100, -1)
        for number in range(pid - 100)
    ]
    told = writers_text(writers).split(", ")
    assert told[0] == "app (pid 101) has files/0 open"
    assert told[1:] == [
        f"app (pid {pid}) has files/0 and {pid - 101} more open" for pid in range(102, 108)
    ]
