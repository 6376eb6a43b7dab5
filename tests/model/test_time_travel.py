"""Saves, deletions, restores, undos, sealing, merging and gc at once, on one random tree.

Long operations are generators (maintenance/steps.py). Here several are under way at any time, and
each goes on when the random numbers say so, with changes to the tree in between: every order that
the daemon's threads may have, and always the same one for a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from statefs.errors import FilesInUse, NoSuchSnapshot, UsageError
from statefs.ids import TREE_ROOT
from statefs.maintenance import merging, saving
from statefs.maintenance.commands import Commands
from statefs.maintenance.host import Unmounted
from statefs.maintenance.steps import Steps
from statefs.maintenance.store import Store
from statefs.volume import data as volume_data
from tests.unit.engine_store import EngineStore, tree_of
from tests.unit.random_histories import RandomHistory
from tests.unit.test_restore import comparable
from tests.unit.test_sealing import computed

REFUSED: Final = (FilesInUse, NoSuchSnapshot, UsageError)
"""What an operation may answer: what it names was deleted, or a file is in its way."""
TURNS: Final = 80
SNAPSHOTS_KEPT: Final = 6
EMPTY_AT_LAST: Final = (
    "snapshots", "xattrs", "extents", "inline", "digests", "objects", "dirty", "orphans", "garbage",
)  # fmt: skip


class Mounted(Unmounted):
    """A host with a mount: programs go on between the steps, but not while it is held."""

    is_mounted = True

    def __init__(self) -> None:
        self.is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no program change the tree."""
        self.is_held = True
        try:
            yield
        finally:
            self.is_held = False


class Nobody:
    """A caller that waits and does not listen."""

    is_wanted = True
    pid = 0

    def report(self, progress: dict[str, Any]) -> None:
        """Do nothing."""


@dataclass
class Running:
    """An operation under way.

    Args:
        kind: background work by its name, or "alone": of these one runs at a time.
        steps: the rest of it.
        answer: what its last step returned, or raised; it has not been told yet.
        then: what to check when it has ended, given what it returned.
    """

    kind: str
    steps: Steps[Any]
    then: Callable[[Any], None]
    answer: Any = None
    error: Exception | None = None

    def go_on(self) -> None:
        """Tell the operation its answer and take its next step.

        Raises:
            StopIteration: it has ended. Exception: it has failed.
        """
        if self.error is not None:
            step = self.steps.throw(self.error)
        else:
            step = self.steps.send(self.answer)
        self.answer = self.error = None
        try:
            self.answer = step()
        except Exception as error:
            self.error = error


class TimeTravel:
    """A store, the operations under way on it, and what each snapshot must show.

    Args:
        root: where the store is made.
        seed: of the random numbers.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.seed = seed
        self.trees: dict[int, dict[str, Any]] = {}
        self.done: list[str] = []
        self.lives = 0
        self.open(EngineStore(root))

    def open(self, engine: EngineStore) -> None:
        """Go on with a store that has just been opened."""
        self.engine = engine
        self.lives += 1
        self.history = RandomHistory(engine, self.seed * 1000 + self.lives)
        self.host = Mounted()
        engine.store.host = self.host
        self.running: list[Running] = []
        self.opened: list[int] = []

    @property
    def store(self) -> Store:
        """The store itself."""
        return self.engine.store

    # One turn.

    def turn(self) -> None:
        """Do one thing: to the tree, with an operation under way, or begin one."""
        choice = self.random.random()
        if choice < 0.35 and not self.host.is_held:
            self.history.go_on(self.random.randrange(1, 6))
            self._open_or_close()
        elif choice < 0.8 and self.running:
            self._advance(self.random.choice(self.running))
        else:
            kind = self.random.choice(
                ("save", "save", "delete", "restore", "restore", "paths", "undo", "seal", "seal",
                 "merge", "gc", "gc", "try")
            )  # fmt: skip
            self._begin(kind)

    def _open_or_close(self) -> None:
        if self.opened and self.random.random() < 0.5:
            self.engine.table.closed(self.opened.pop(self.random.randrange(len(self.opened))))
            return
        nodes = [node for node in self.engine.table.nodes.values() if node.is_file and node.nlink]
        if nodes:
            node = self.random.choice(nodes)
            self.engine.table.opened(node.ino)
            self.opened.append(node.ino)

    def _advance(self, running: Running) -> None:
        try:
            running.go_on()
        except StopIteration as end:
            self.running.remove(running)
            running.then(end.value)
        except REFUSED as error:
            self.done.append(f"refused: {error}")
            self.running.remove(running)

    def finish(self) -> None:
        """Let every operation come to its end."""
        while self.running:
            self._advance(self.random.choice(self.running))

    # Beginning an operation.

    def _begin(self, kind: str) -> None:
        is_background = kind in ("seal", "merge", "gc")
        lock = kind if is_background else "alone"
        if any(each.kind == lock for each in self.running):
            return
        begun = getattr(self, f"_{kind}")()
        if begun is not None:
            self.done.append(kind)
            self.running.append(Running(lock, *begun))

    def _ask(self, op: str, **arguments: Any) -> Steps[Any]:
        return Commands(self.store).start(op, arguments, Nobody())

    def _some_snapshot(self) -> Any:
        snapshots = self.store.catalog.snapshots
        return self.random.choice(snapshots) if snapshots else None

    def _note(self, _: Any) -> None:
        """Remember what new snapshots show; never again may it change."""
        for snapshot in self.store.catalog.snapshots:
            if snapshot.epoch not in self.trees:
                self.trees[snapshot.epoch] = tree_of(self.engine, snapshot.epoch)

    def _save(self) -> Any:
        if len(self.store.catalog.snapshots) >= SNAPSHOTS_KEPT:
            return self._delete()
        return self._ask("save", message="", reason="manual", labels={}), self._note

    def _try(self) -> Any:
        """Save as `statefs try` does, its command being whatever happens in between."""
        operation = {"kind": "try", "phase": "before"}
        for last in self.store.catalog.snapshots[-1:]:
            was_for = last.operation
            if was_for is not None and (was_for.kind, was_for.phase) == ("try", "before"):
                operation = {"kind": "try", "phase": "after", "other": last.uuid}
        arguments = {"message": "", "reason": "manual", "labels": {}, "operation": operation}
        return self._ask("save", **arguments), self._note

    def _delete(self) -> Any:
        snapshot = self._some_snapshot()
        return snapshot and (saving.delete(self.store, snapshot), lambda _: None)

    def _restore(self) -> Any:
        snapshot = self._some_snapshot()
        if snapshot is None:
            return None
        self._note(None)
        steps = self._and_look(
            self._ask("restore", snapshot=snapshot.name, paths=[], force=True, dry_run=False),
            self.trees[snapshot.epoch],
        )
        return steps, self._note

    def _and_look(self, steps: Steps[Any], wanted: dict[str, Any]) -> Steps[Any]:
        """Run a restore; where no program came in between, the tree is as wanted."""
        answer = None
        while True:
            was_held = self.host.is_held
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if was_held and not self.host.is_held:
                assert comparable(tree_of(self.engine)) == comparable(wanted)
            answer = yield step

    def _paths(self) -> Any:
        snapshot = self._some_snapshot()
        if snapshot is None:
            return None
        self._note(None)
        paths = sorted(comparable(self.trees[snapshot.epoch]).keys() - {"."})
        if not paths:
            return None
        chosen = self.random.sample(paths, min(len(paths), self.random.choice([1, 1, 2, 3])))
        arguments = {"paths": chosen, "force": True, "dry_run": False}
        return self._ask("restore", snapshot=snapshot.name, **arguments), self._note

    def _undo(self) -> Any:
        return self._ask("undo", force=True), self._note

    def _seal(self) -> Any:
        snapshot = self.store.sealer.next()
        return snapshot and (self._sealing(snapshot), lambda _: None)

    def _sealing(self, snapshot: Any) -> Steps[None]:
        digest = yield from self.store.sealer.hash(snapshot)
        assert self.store.sealer.why_not(snapshot) is None
        if digest is None or self.store.catalog.by_epoch(snapshot.epoch) is None:
            return
        assert digest == computed(self.engine, snapshot.epoch)
        while any(each.kind == "alone" for each in self.running):
            yield lambda: None
        yield from self.store.sealer.finish(snapshot, digest)

    def _merge(self) -> Any:
        return merging.merge_all(self.store), lambda _: None

    def _gc(self) -> Any:
        return self._collecting(), lambda _: None

    def _collecting(self) -> Steps[None]:
        collector = self.store.collector
        while collector.delete_rows():
            yield lambda: None
        while candidates := collector.candidates():
            yield self.store.sync
            if not collector.free(candidates):
                break

    # Checks.

    def check(self) -> None:
        """The store keeps its rules, and each snapshot shows what it always did."""
        # Documents are written last, and the object of a merge first.
        under_way = {"R20", "R25"} if self.running else set()
        problems = self.engine.problems()
        assert [each for each in problems if each.split(":")[0] not in under_way] == []
        self._note(None)
        for snapshot in self.store.catalog.snapshots:
            assert tree_of(self.engine, snapshot.epoch) == self.trees[snapshot.epoch]
            if snapshot.state_digest is not None:
                assert snapshot.state_digest == computed(self.engine, snapshot.epoch)

    def reopen(self) -> None:
        """Close the store, or kill its process, and open it again."""
        engine = self.engine
        before: dict[str, Any] | None
        if self.random.random() < 0.5:
            self.finish()
            before = comparable(tree_of(engine))
            engine.store.close()
            after = EngineStore(engine.root)
        else:
            before = None if self.host.is_held else comparable(tree_of(engine))
            after = engine.killed()
            trees = dict(self.trees)
            self.finish()  # what the killed process would have done goes nowhere
            self.trees = trees
            engine.store.close(clean=False)
        after.clock.time_ns = engine.clock.time_ns
        self.open(after)
        if before is not None:
            assert _without_times(comparable(tree_of(after))) == _without_times(before)
        self.check()

    def empty(self) -> None:
        """Delete all snapshots and files: nothing is left in any table."""
        self.finish()
        for ino in self.opened:
            self.engine.table.closed(ino)
        self.opened.clear()
        for name in self.engine.attributes.xattr_names(TREE_ROOT):
            self.engine.attributes.remove_xattr(TREE_ROOT, name)
        for _, name, node in self.engine.names.listing(TREE_ROOT, 0, 1 << 30):
            if node.is_dir:
                self.history._remove_inside(node.ino)
                self.engine.names.rmdir(TREE_ROOT, name)
            else:
                self.engine.names.unlink(TREE_ROOT, name)
        snapshots = list(self.store.catalog.snapshots)
        self.random.shuffle(snapshots)
        for snapshot in snapshots:
            self.engine.delete(snapshot.epoch)
        self.store.collect()
        assert self.engine.problems() == []
        assert {table: self.engine.rows(table) for table in EMPTY_AT_LAST} == dict.fromkeys(
            EMPTY_AT_LAST, 0
        )
        # The root, and the two folders of clones.
        assert (self.engine.rows("inodes"), self.engine.rows("entries")) == (3, 0)
        assert self.engine.objects() == set()


def _without_times(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without what a killed process may take from its object files."""
    return {
        path: {key: value for key, value in entry.items() if key != "mtime_ns"}
        for path, entry in tree.items()
    }


@pytest.fixture(autouse=True)
def everything_is_fragmented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small files of few extents merged, too."""
    monkeypatch.setattr(merging, "RUN_LEAST", 2)
    monkeypatch.setattr(merging, "EXTENTS_MANY", 1)
    monkeypatch.setattr(volume_data, "EXTENTS_MANY", 1)


@pytest.mark.parametrize("seed", range(5))
def test_everything_at_once_harms_nothing(tmp_path: Path, seed: int) -> None:
    """Trees, digests and rules hold after whatever happened; in the end nothing is left."""
    travel = TimeTravel(tmp_path / "store", seed)
    try:
        for turn in range(TURNS):
            travel.turn()
            if turn % 40 == 39:
                travel.reopen()
            elif turn % 10 == 9 and not travel.host.is_held:
                travel.check()
        travel.empty()
    finally:
        travel.store.close(clean=False)
