"""Random steps on a store whose disk fails, or whose process ends, at the n-th change of the disk.

A change is each write, truncation and sync of SQLite's files and of object files, and each name
made, renamed or removed. A step that fails has happened or not, a write perhaps in part; all that
was acknowledged is there.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw
import pyfuse3

from statefs.errors import PosixError
from statefs.maintenance.store import init_store
from tests.crash.disk import Change, WatchedDisk
from tests.crash.engine import (
    Handlers,
    Step,
    StepMaker,
    clones_of,
    copy_of,
    gone_back,
    ino_of,
    new_reference,
    trees_of,
    without_runtime,
)
from tests.harness.trees import Tree, differences
from tests.model.reference import ReferenceTree
from tests.unit.engine_store import EngineStore, mirror

STEPS: Final = 40
CHANGES_MAX: Final = 450
"""About as many as STEPS make."""
IGNORED: Final = ("mtime_ns",)
SHORT: Final = -1
"""For a code: reads and writes that do a part."""


class Killed(BaseException):
    """The process is ended, as by kill -9: nothing it does from now on reaches the disk."""


class FaultRun:
    """One run: steps, a fault, what is left.

    Args:
        folder: an empty folder, best in memory.
        seed: decides everything.
        code: what the disk answers; 0 ends the process instead; SHORT lets each read and write do
            a part of what it was asked for, now and then.
    """

    def __init__(self, folder: Path, seed: int, code: int) -> None:
        self._folder = folder
        self._code = code
        self._rng = random.Random(seed)
        self._at = self._rng.randrange(CHANGES_MAX)
        self._left = self._rng.choice((1, 1, 2, 8))
        self._seen = 0
        self._reference = new_reference()
        self._snapshots: dict[bytes, Tree] = {}
        self._clones: dict[bytes, Tree] = {}
        self._saved: dict[bytes, ReferenceTree] = {}
        self._maker = StepMaker(self._rng)
        self._unanswered: tuple[Step, ReferenceTree] | None = None
        self.faults = 0

    def run(self) -> list[str]:
        """Do the steps; return what is wrong with the store afterwards."""
        root, killed = self._folder / "store", self._folder / "killed"
        init_store(root)
        disk = WatchedDisk(root)
        with disk.watching():
            handlers = Handlers(root)
            if self._code == SHORT:
                disk.taken = self._taken
            else:
                disk.on_change = self._fault
            wrong = self._steps(handlers)
            if self._unanswered is None:
                disk.on_change = lambda _: None
                handlers.store.close()
            else:
                mirror(root, killed)
                root = killed
                handlers.store.objects.close()
                with suppress(Killed, apsw.Error):
                    handlers.store.database.close()
        if wrong:
            return wrong
        with EngineStore(root) as engine:
            if self._unanswered is not None:
                wrong = self._adopt(engine, *self._unanswered)
            return wrong or self._problems(engine) or self._compare(engine)

    def _problems(self, engine: EngineStore) -> list[str]:
        """Return the rules that the store breaks.

        What a refused write could not take away again, as the disk refused that, too, belongs to
        nothing until a recovery: an object file, or a document under its temporary name.
        """
        problems = engine.problems()
        return [line for line in problems if self.faults < 2 or not _is_left_behind(line)]

    def _fault(self, _: Change) -> None:
        self._seen += 1
        if self._seen <= self._at or not self._left:
            return
        self.faults += 1
        if not self._code:
            raise Killed
        self._left -= 1
        raise OSError(self._code, os.strerror(self._code))

    def _taken(self, size: int) -> int:
        if size < 2 or self._rng.random() < 0.5:
            return size
        self.faults += 1
        return self._rng.randrange(1, size)

    def _steps(self, handlers: Handlers) -> list[str]:
        for _ in range(STEPS):
            before = copy_of(self._reference)
            step = self._maker.next(self._reference)
            try:
                answer = handlers.do(step)
            except (pyfuse3.FUSEError, PosixError) as error:
                if not self.faults or self._code == SHORT:
                    return [f"{step[:2]} failed without a fault: {error}"]
                wrong = self._adopt(handlers.engine, step, before)
            except Killed:
                self._unanswered = step, before
                return []
            else:
                wrong = self._note(step, answer)
            if wrong:
                return wrong
            if handlers.store.database.failure is not None:
                return []
        return []

    def _note(self, step: Step, answer: Any = None) -> list[str]:
        if step[0] == "save":
            self._note_snapshot(step[1])
        elif step[0] == "delete":
            del self._snapshots[step[1]]
        elif step[0] == "clone":
            self._clones[step[1]] = list(self._snapshots.values())[-1]
        elif step[0] == "restore" and answer:
            self._note_snapshot(answer)
            self._reference = gone_back(self._reference, copy_of(self._saved[step[1]]))
        self._maker.labels = list(self._snapshots)
        return []

    def _note_snapshot(self, name: bytes) -> None:
        self._snapshots[name] = without_runtime(self._reference.capture())
        self._saved[name] = copy_of(self._reference)

    def _adopt(self, engine: EngineStore, step: Step, before: ReferenceTree) -> list[str]:
        """Find out whether a step that failed has happened, and take that for right."""
        _, found = trees_of(engine)
        if step[0] in ("save", "delete"):
            if (step[1] in found) != (step[1] in self._snapshots):
                self._note(step)
            return self._compare(engine)
        if step[0] == "clone" and step[1] in clones_of(engine):
            self._note(step)
        if step[0] == "restore":
            return self._adopt_restore(engine, step, [*(found.keys() - self._snapshots.keys())])
        wrong = self._compare(engine)
        if wrong:
            after, self._reference = self._reference, before
            wrong = self._compare(engine)
        if wrong and step[0] in ("write", "append"):
            self._adopt_part(engine, step[1], after)
            wrong = self._compare(engine)
        return [f"after {step[:2]} failed: {line}" for line in wrong]

    def _adopt_restore(self, engine: EngineStore, step: Step, safety: list[bytes]) -> list[str]:
        """Find out how far a restore got: not at all, to its snapshot, or to its end."""
        for name in safety[:1]:
            self._note_snapshot(name)
        self._maker.labels = list(self._snapshots)
        wrong = self._compare(engine)
        if wrong and safety:
            self._reference = gone_back(self._reference, copy_of(self._saved[step[1]]))
            wrong = self._compare(engine)
        return [f"after {step[:2]} failed: {line}" for line in wrong]

    def _adopt_part(self, engine: EngineStore, path: bytes, after: ReferenceTree) -> None:
        """Take a file for right if each of its bytes is an old or a new one."""
        node = self._reference.node(path)
        old, new = bytes(node.content), bytes(after.node(path).content)
        found = engine.content(ino_of(engine, path))
        if len(old) <= len(found) <= len(new) and all(
            byte
            in (*old[place : place + 1], *new[place : place + 1], *(b"\0" * (place >= len(old))))
            for place, byte in enumerate(found)
        ):
            node.content[:] = found

    def _compare(self, engine: EngineStore) -> list[str]:
        """Return how a store differs from what it should hold."""
        living, snapshots = trees_of(engine)
        expected = self._reference.capture()
        wrong = differences(expected, living, ignore=IGNORED)
        if self._snapshots.keys() != snapshots.keys():
            return [*wrong, f"snapshots {sorted(snapshots)}, not {sorted(self._snapshots)}"]
        clones = clones_of(engine)
        if self._clones.keys() != clones.keys():
            return [*wrong, f"clones {sorted(clones)}, not {sorted(self._clones)}"]
        for wanted, trees in ((self._snapshots, snapshots), (self._clones, clones)):
            for name, tree in wanted.items():
                wrong += differences(tree, trees[name], ignore=IGNORED)
        return wrong


def _is_left_behind(problem: str) -> bool:
    return problem.startswith("R20") or (problem.startswith("R25") and ".json.new " in problem)
