"""Each system call of a workload fails in turn, in each way that it may (tests/crash/calls.py).

The step that asked for it succeeds, or is refused with the right errno and has not happened by
half; the engine goes on, but for a sync that failed: then it refuses every change. The store is
closed, or its process killed, opened and verified; what was acknowledged is there.

A disk that is full is so from a call on, until room is made: also by the store, out of its reserve.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest.mock import patch

import apsw
import pyfuse3

from statefs.content import reserve
from statefs.errors import StatefsError
from statefs.fuse.errno_map import errno_of
from statefs.maintenance import verify
from statefs.maintenance.store import init_store
from tests.crash.calls import FULL, SQLITE_SYNC, SYNCS, Call, Calls, with_sqlite_syncs
from tests.crash.engine import Handlers, Step, apply, copy_of, quiet
from tests.crash.expected import Expected
from tests.crash.workloads import (
    BESIDE,
    OLD,
    OLDEST,
    POLICY,
    SETUP,
    STARTS,
    Workload,
    all_of_one,
)
from tests.leftovers import memory_folder
from tests.unit.engine_store import EngineStore, mirror

CLEAN: Final = "clean"
KILLED: Final = "killed"
"""Starts of a workload that only opens the store: as it was closed, and as a kill has left it."""
OPEN: Final = "open"
CLOSE: Final = "close"
READ: Final = "read"
SYNC: Final = "sync"
"""An answer."""
UNSETTLED: Final[tuple[Step, ...]] = (
    ("append", b"files/old", b"\1" * 5_000),
    ("write", b"files/new", 100, b"\2" * 600),
    ("write", b"files/small", 0, b"\3" * 16_000),
    ("create", b"files/last", 0o644),
    ("unlink", b"files/spare"),
)
"""What a process that is killed has done since its last sync."""
AFTER: Final = b"files/after"
GOING_ON: Final[tuple[Step, ...]] = (
    ("create", AFTER, 0o644),
    ("write", AFTER, 0, b"\4" * 10_000),
    ("fsync", AFTER),
    ("save", b"after"),
)
"""What the store must do when its disk is well again."""
ROOM_BYTES: Final = 256 << 10
"""The reserve of a small store; eight megabytes would be written for each case."""
REFUSALS: Final = (OSError, apsw.Error, pyfuse3.FUSEError, StatefsError)


@dataclass(frozen=True)
class CallFault:
    """What the disk answers to one call of a workload; `str` and `parse` write and read it.

    Args:
        number: of the call, from 1; SQLite's syncs are counted by themselves.
        answer: one of `Call.answers`; SYNC lets a sync of SQLite fail.
        is_lasting: from then on to every call that takes room, until there is some.
    """

    workload: Workload
    number: int
    answer: str
    is_lasting: bool = False

    def __str__(self) -> str:
        return f"{self.workload}@{self.number}{'+' * self.is_lasting}/{self.answer}"

    @staticmethod
    def parse(text: str) -> CallFault:
        """Return the fault that `str` has written."""
        workload, _, rest = text.partition("@")
        number, answer = rest.split("/")
        is_lasting = number.endswith("+")
        return CallFault(Workload.parse(workload), int(number.rstrip("+")), answer, is_lasting)


@dataclass
class FaultTally:
    """What was tried: workloads, their calls, faults; how many steps were refused; what failed."""

    workloads: int = 0
    calls: int = 0
    faults: int = 0
    refused: int = 0
    found: list[str] = field(default_factory=list)

    def add(self, other: FaultTally) -> None:
        """Count what another one has seen."""
        self.workloads += other.workloads
        self.calls += other.calls
        self.faults += other.faults
        self.refused += other.refused
        self.found += other.found

    def note(self, run: FaultedRun) -> None:
        """Count what was tried in a run."""
        self.faults += run.hits
        self.refused += run.refused
        if run.problems:
            self.found.append("\n  ".join((f"{run.fault} {run.hit}", *run.problems[:5])))

    def __str__(self) -> str:
        return (
            f"{self.workloads} workloads, {self.calls} calls, {self.faults} faults,"
            f" {self.refused} of them refusals; failed: {len(self.found)}"
        )


def all_workloads() -> Iterator[Workload]:
    """Yield each operation, on each kind of file, and then its sync; opening, closing, reading."""
    yield from (each for each in all_of_one() if each.operations)
    yield from (Workload("old", ("append", each)) for each in (*BESIDE[:-1], CLOSE))
    yield from (Workload("old", (each, CLOSE)) for each in ("prune", "restore", "seal"))
    yield Workload("old", ("prune", "collect"))
    yield from (Workload(start, (READ,)) for start in STARTS)
    yield from (Workload(start, (OPEN,)) for start in (CLEAN, KILLED))


class FaultBench:
    """The store that workloads begin with.

    Args:
        folder: an empty folder, best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder / "store"
        init_store(self._root)
        (self._root / "statefs.toml").write_text(POLICY)
        expected = Expected()
        handlers = Handlers(self._root)
        _do(handlers, expected, SETUP)
        handlers.store.close()
        self._known = {CLEAN: (_files_of(self._root), expected.copy())}
        handlers = Handlers(self._root)
        _do(handlers, expected, UNSETTLED)
        killed = folder / KILLED
        mirror(self._root, killed)
        handlers.store.close()
        self._known[KILLED] = (_files_of(killed), expected)
        shutil.rmtree(killed)
        self._calls = Calls(self._root)
        self._calls.changed.update(_files_of(self._root))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls within the block."""
        with self._calls.watching():
            yield

    def _begin(self, workload: Workload, fault: CallFault | None = None) -> FaultedRun:
        """Make the store what the workload begins with: what has changed is put back."""
        files, expected = self._known.get(workload.start, self._known[CLEAN])
        for name in self._calls.changed - files.keys():
            (self._root / name).unlink(missing_ok=True)
        for name, data in files.items():
            (self._root / name).write_bytes(data)
            (self._root / name).chmod(0o600)
        self._calls.changed = set(files)
        return FaultedRun(self._root, self._calls, expected.copy(), fault)

    def calls_of(self, workload: Workload) -> list[Call]:
        """Return the calls of a workload on a disk that is well."""
        run = self._begin(workload)
        with with_sqlite_syncs():
            wrong = run.wrong(workload)
        assert not wrong, (workload, wrong)
        return run.made

    def tried(self, faults: Sequence[CallFault]) -> FaultedRun:
        """Have a fault happen, and see what is wrong then (`FaultedRun.problems`).

        Args:
            faults: of one workload. As long as its first step is refused and has left nothing
                behind, it is asked for once more, on the same store and with the next fault.
        """
        fault, *others = faults
        run = self._begin(fault.workload, fault)
        run.others = [each for each in others if each.answer != SYNC]
        with with_sqlite_syncs() if fault.answer == SYNC else nullcontext():
            run.problems = run.wrong(fault.workload)
        return run


def faults_of(workload: Workload, calls: Sequence[Call]) -> Iterator[CallFault]:
    """Yield each answer to each call, and a disk that is full from each call on that takes room.

    Of the folders of objects, which are asked about one like the other, the first stands for all.
    """
    syncs = [call for call in calls if call.kind == SQLITE_SYNC]
    yield from (CallFault(workload, number, SYNC) for number, _ in enumerate(syncs, 1))
    alike: set[tuple[str, str]] = set()
    for number, call in enumerate((call for call in calls if call not in syncs), 1):
        if call.kind in ("status", "list") and call.path.startswith("objects/"):
            kind = (call.kind, call.path[: call.path.rfind("/")])
            if kind in alike:
                continue
            alike.add(kind)
        for answer in call.answers:
            yield CallFault(workload, number, answer)
        if call.room > 0:
            for answer in FULL:
                yield CallFault(workload, number, answer, is_lasting=True)


def try_faults(bench: FaultBench, workload: Workload) -> FaultTally:
    """Try each fault of a workload on a store of its own."""
    calls = bench.calls_of(workload)
    tally = FaultTally(workloads=1, calls=len(calls))
    for fault in faults_of(workload, calls):
        tally.note(bench.tried([fault]))
    return tally


def try_faults_in_rows(bench: FaultBench, workload: Workload, keep: int) -> FaultTally:
    """Try faults of a workload, several on one store where that makes no difference.

    Args:
        keep: each so manieth is tried; 1 for all.
    """
    calls = bench.calls_of(workload)
    tally = FaultTally(workloads=1, calls=len(calls))
    faults = [*faults_of(workload, calls)][::keep]
    while faults:
        run = bench.tried(faults)
        tally.note(run)
        del faults[: run.tried]
    return tally


class FaultedRun:
    """One workload on a disk that fails.

    `made` are its calls, `hit` the first that failed; `others` the faults to go on with while
    nothing has come of the one before. `tried` says how many there were, `hits` how many have
    happened, `refused` how many steps were.
    """

    def __init__(
        self, root: Path, calls: Calls, expected: Expected, fault: CallFault | None
    ) -> None:
        self._root = root
        self._calls = calls
        self._expected = expected
        self._room = 0
        self._is_as_before = False
        self.fault = fault
        self.others: list[CallFault] = []
        self.made: list[Call] = []
        self.hit: Call | None = None
        self.tried = 1
        self.hits = 0
        self.refused = 0
        self.problems: list[str] = []

    def wrong(self, workload: Workload) -> list[str]:
        """Do the workload, go on, open the store again; return what is wrong."""
        if workload.operations == (OPEN,):
            wrong = self._opened()
        else:
            wrong = self._worked(workload)
        if wrong:
            return wrong
        with EngineStore(self._root) as engine:
            return engine.problems() or self._expected.compare(engine)

    def _opened(self) -> list[str]:
        try:
            with self._failing():
                engine = EngineStore(self._root)
        except REFUSALS as error:
            return self._wrong_refusal(error)
        with engine:
            return self._expected.compare(engine, with_past=False)

    def _worked(self, workload: Workload) -> list[str]:
        handlers = Handlers(self._root)
        is_closed = False
        for step in _steps_of(workload):
            wrong = self._step(handlers, step)
            while self._is_as_before and self.others and not wrong:
                self._go_on_with(self.others.pop(0), handlers)
                wrong = self._step(handlers, step)
            self.others.clear()
            is_closed = step == (CLOSE,)
            if wrong:
                if not is_closed:
                    handlers.store.close(clean=False)
                return wrong
        if is_closed:
            return []
        wrong = self._went_on(handlers, workload)
        is_killed = bool(self.fault and self.fault.number % 2)
        handlers.store.close(clean=not (is_killed or wrong))
        return wrong

    def _go_on_with(self, fault: CallFault, handlers: Handlers) -> None:
        self.fault = fault
        self._room = 0
        self.made, self.hit = [], None
        self.tried += 1
        assert handlers.store.reserve.hold()

    def _step(self, handlers: Handlers, step: Step) -> list[str]:
        expected = self._expected
        before = copy_of(expected.reference)
        self._is_as_before = False
        if step != (CLOSE,) and not apply(expected.reference, step):
            return []  # an earlier one has been refused
        try:
            with self._failing():
                if step == (CLOSE,):
                    handlers.store.close()
                    return []
                answer = handlers.do(step)
        except REFUSALS as error:
            wrong = self._wrong_refusal(error)
            if wrong or step == (CLOSE,):
                return wrong
            wrong = expected.adopt(handlers.engine, step, before)
            is_sound = not wrong and handlers.store.database.failure is None
            self._is_as_before = is_sound and expected.reference is before
            return wrong
        if step[0] == READ and answer != expected.reference.node(step[1]).content:
            return [f"{step} has read something else"]
        expected.note(step, answer)
        return []

    @contextmanager
    def _failing(self) -> Iterator[None]:
        self._calls.answer = self._answer
        try:
            yield
        finally:
            self._calls.answer = None

    def _answer(self, call: Call) -> str:
        self.made.append(call)
        fault = self.fault
        is_sync = call.kind == SQLITE_SYNC
        number = sum((each.kind == SQLITE_SYNC) == is_sync for each in self.made)
        if fault is None or number < fault.number or is_sync != (fault.answer == SYNC):
            return ""
        if fault.is_lasting:
            self._room -= call.room
            if call.room <= 0 or self._room >= 0:
                return ""
            self._room += call.room
        elif number > fault.number or not (is_sync or fault.answer in call.answers):
            return ""
        self.hits += self.hit is None
        self.hit = self.hit or call
        return fault.answer

    def _wrong_refusal(self, error: Exception) -> list[str]:
        """Return what is wrong with an error: the disk must have failed, and it must say how."""
        self.refused += 1
        code = error.errno if isinstance(error, pyfuse3.FUSEError) else errno_of(error)
        name = errno.errorcode[code]
        if self.hit is None or self.fault is None:
            return [f"refused with {name} although the disk is well: {error!r}"]
        right = {*FULL} if self.fault.answer in FULL else {self.fault.answer} & {"EIO"}
        if self.hit.kind in SYNCS:
            right.add("EIO")
        return [] if name in right else [f"refused with {name}: {error!r}"]

    def _went_on(self, handlers: Handlers, workload: Workload) -> list[str]:
        """Return what is wrong with a store whose disk has failed, and is well again."""
        failure = handlers.store.database.failure
        if failure is None:
            seal: tuple[Step, ...] = (("seal",),) if "seal" in workload.operations else ()
            try:
                _do(handlers, self._expected, (*GOING_ON, *seal))
            except REFUSALS as error:
                return [f"it does not go on: {error!r}"]
            return self._expected.compare(handlers.engine, with_past=False)
        if self.hit is None or self.hit.kind not in SYNCS:
            return [f"it accepts nothing more, though no sync has failed: {failure!r}"]
        try:
            handlers.do(GOING_ON[0])
        except pyfuse3.FUSEError as error:
            if error.errno != errno.EIO:
                return [f"a change is refused with {error!r}"]
            return self._expected.compare(handlers.engine, with_past=False)
        return ["it goes on although a sync has failed"]


def _steps_of(workload: Workload) -> Iterator[Step]:
    """Yield the steps of a workload; those that only this module has, too."""
    if workload.operations == (READ,):
        yield (READ, b"files/" + workload.start.encode())
        return
    ordinary = tuple(each for each in workload.operations if each != CLOSE)
    for steps in Workload(workload.start, ordinary).steps():
        yield from (("restore", OLD) if step[:2] == ("restore", OLDEST) else step for step in steps)
    if CLOSE in workload.operations:
        yield (CLOSE,)


def _do(handlers: Handlers, expected: Expected, steps: Sequence[Step]) -> None:
    for step in steps:
        assert apply(expected.reference, step), step
        expected.note(step, handlers.do(step))


def _files_of(root: Path) -> dict[str, bytes]:
    """Return the bytes of the files of a store by their paths in it, but for the reserve."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "reserve"
    }


@contextmanager
def fault_bench() -> Iterator[FaultBench]:
    """Make a bench in memory, where there is a filesystem for that."""
    with (
        memory_folder("faults") as folder,
        # Nothing else has these stores open: what verify finds need not be looked for once more.
        patch.object(verify, "STEP_SECONDS", 0.0),
        patch.object(reserve, "RESERVE_BYTES", ROOM_BYTES),
        quiet(),
    ):
        bench = FaultBench(folder)
        with bench.watching():
            yield bench
