"""Random steps on a store whose disk fails, or whose process ends, at the n-th change of the disk.

A change is each write, truncation and sync of SQLite's files and of object files, and each name
made, renamed or removed. What must be there afterwards: tests/crash/expected.py.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw
import pyfuse3

from statefs.errors import PosixError
from statefs.maintenance.store import init_store
from tests.crash.disk import Change, WatchedDisk
from tests.crash.engine import Handlers, Step, StepMaker, copy_of
from tests.crash.expected import Expected
from tests.model.reference import ReferenceTree
from tests.unit.engine_store import EngineStore, mirror

STEPS: Final = 40
CHANGES_MAX: Final = 450
"""About as many as STEPS make."""
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
        self._expected = Expected()
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
                wrong = self._expected.adopt(engine, *self._unanswered)
            return wrong or self._problems(engine) or self._expected.compare(engine)

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
        expected = self._expected
        for _ in range(STEPS):
            before = copy_of(expected.reference)
            step = self._maker.next(expected.reference)
            try:
                answer = handlers.do(step)
            except (pyfuse3.FUSEError, PosixError) as error:
                if not self.faults or self._code == SHORT:
                    return [f"{step[:2]} failed without a fault: {error}"]
                wrong = expected.adopt(handlers.engine, step, before)
                if wrong:
                    return wrong
            except Killed:
                self._unanswered = step, before
                return []
            else:
                expected.note(step, answer)
            self._maker.labels = list(expected.snapshots)
            if handlers.store.database.failure is not None:
                return []
        return []


def _is_left_behind(problem: str) -> bool:
    return problem.startswith("R20") or (problem.startswith("R25") and ".json.new " in problem)
