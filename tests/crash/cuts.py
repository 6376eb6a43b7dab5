"""The power is cut at every moment of a workload, and takes something else each time.

At each change of the disk, and each kind of loss (`disk.Loss`), the store is rebuilt as it would be
found; disks that are equal are opened once. What is found must be what the steps had left at some
moment, not before the last one that was made durable (tests/crash/power.py).
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest.mock import patch

from statefs.maintenance import verify
from statefs.maintenance.store import init_store
from tests.crash.disk import Image, Kept, Loss, WatchedDisk
from tests.crash.engine import DURING, Step, apply, quiet
from tests.crash.power import Recording
from tests.crash.rebuilt import Found, Place
from tests.crash.workloads import OLDEST, POLICY, SETUP, Workload
from tests.leftovers import memory_folder

SOME: Final = 2
"""How often `Loss.SOME` is tried at each moment."""


@dataclass(frozen=True)
class Cut:
    """One power cut of a workload; `str` and `parse` write and read it.

    Args:
        length: changes of the disk before it.
        number: of the attempt, where the loss is random.
    """

    workload: Workload
    length: int
    loss: Loss
    number: int = 0

    def __str__(self) -> str:
        return f"{self.workload}@{self.length}/{self.loss.value}/{self.number}"

    @staticmethod
    def parse(text: str) -> Cut:
        """Return the cut that `str` has written."""
        workload, _, rest = text.partition("@")
        length, loss, number = rest.split("/")
        return Cut(Workload.parse(workload), int(length), Loss(loss), int(number))


@dataclass
class CutTally:
    """What was tried: workloads, moments, disks that were rebuilt, different ones; what failed."""

    workloads: int = 0
    moments: int = 0
    rebuilt: int = 0
    opened: int = 0
    found: list[str] = field(default_factory=list)

    def add(self, other: CutTally) -> None:
        """Count what another one has seen."""
        self.workloads += other.workloads
        self.moments += other.moments
        self.rebuilt += other.rebuilt
        self.opened += other.opened
        self.found += other.found

    def __str__(self) -> str:
        return (
            f"{self.workloads} workloads, {self.moments} moments, {self.rebuilt} losses,"
            f" {self.opened} different disks; failed: {len(self.found)}"
        )


class Bench:
    """The store that workloads begin with, and places for what becomes of it.

    Args:
        folder: an empty folder, best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._base = folder / "base"
        init_store(self._base)
        (self._base / "statefs.toml").write_text(POLICY)
        self._before = Recording(self._base)
        with self._before.running():
            for step in SETUP:
                assert apply(self._before.reference, step), step
                self._before.do(step)
        self._whole = WatchedDisk(self._base).start
        self._store = Place(folder / "store")
        self.place = Place(folder / "cut")

    def recorded(self, workload: Workload) -> tuple[Recording, int]:
        """Do a workload; return what its disk saw, and where its last operation begins."""
        self._store.put(self._whole)
        recording = Recording(self._store.root, self._before)
        begin = 0
        with recording.running():
            for steps in workload.steps():
                begin = len(recording.disk.changes)
                for step in steps:
                    step = _of_snapshots(step, recording.snapshots)
                    assert apply(recording.reference, step), (workload, step)
                    recording.do(step)
        return recording, begin


def _of_snapshots(step: Step, snapshots: Sequence[bytes]) -> Step:
    """Return a step that names the oldest snapshot where it asks for that."""
    if step[:2] == ("restore", OLDEST):
        return ("restore", snapshots[0])
    if step[0] == DURING:
        return (DURING, _of_snapshots(step[1], snapshots), *step[2:])
    return step


class Looking:
    """What was found on the disks of one recording; equal ones are looked at once.

    Args:
        place: where disks are put.
        recording: of a workload.
    """

    def __init__(self, place: Place, recording: Recording) -> None:
        self._place = place
        self._recording = recording
        self._keys: dict[Kept, bytes] = {}
        self._found: dict[bytes, Found | str] = {}
        self._wrong: dict[tuple[object, ...], list[str]] = {}

    @property
    def opened(self) -> int:
        """How many disks were opened."""
        return len(self._found)

    def wrong(self, kept: Kept, length: int, *, is_all_kept: bool) -> list[str]:
        """Return what is wrong with the disk on which a power cut has left some changes."""
        disk = self._recording.disk
        kept = disk.without_syncs(kept)
        if kept not in self._keys:
            image = disk.image(kept)
            self._keys[kept] = image.digest()
            self._look(self._keys[kept], image)
        key = self._keys[kept]
        found = self._found[key]
        if isinstance(found, str):
            return [*found.splitlines()[-1:], found]
        case = (key, self._recording.steps_at(length), is_all_kept)
        if case not in self._wrong:
            problems = found.problems
            self._wrong[case] = problems or self._recording.wrong(
                length, found, is_all_kept=is_all_kept
            )
        return self._wrong[case]

    def _look(self, key: bytes, image: Image) -> None:
        if key not in self._found:
            try:
                self._found[key] = self._place.opened(image)
            except Exception:
                self._found[key] = traceback.format_exc()


def try_all(bench: Bench, workload: Workload) -> CutTally:
    """Cut the power at each moment of the last operation, of what syncs it, and of the close."""
    tally = CutTally(workloads=1)
    recording, begin = bench.recorded(workload)
    looking = Looking(bench.place, recording)
    for length in range(begin, len(recording.disk.changes) + 1):
        tally.moments += 1
        for loss, number in _losses():
            cut = Cut(workload, length, loss, number)
            wrong = _wrong(recording, cut, looking, tally)
            if wrong:
                tally.found.append("\n  ".join((str(cut), *wrong[:5])))
    tally.opened = looking.opened
    return tally


def try_one(bench: Bench, cut: Cut) -> list[str]:
    """Cut the power once and return what is wrong then."""
    recording, _ = bench.recorded(cut.workload)
    return _wrong(recording, cut, Looking(bench.place, recording), CutTally())


def _wrong(recording: Recording, cut: Cut, looking: Looking, tally: CutTally) -> list[str]:
    kept = recording.disk.kept(cut.length, cut.loss, random.Random(str(cut)))
    if kept is None:
        return []
    tally.rebuilt += 1
    return looking.wrong(kept, cut.length, is_all_kept=cut.loss is Loss.NOTHING)


def _losses() -> Iterator[tuple[Loss, int]]:
    for loss in Loss:
        for number in range(SOME if loss is Loss.SOME else 1):
            yield loss, number


# Syncs that are left out.


def places_of_syncs(bench: Bench, workloads: Iterable[Workload]) -> dict[str, list[Workload]]:
    """Return where the engine syncs, and which workloads lead there."""
    found: dict[str, list[Workload]] = {}
    for workload in workloads:
        recording, _ = bench.recorded(workload)
        for place in dict.fromkeys(each.place for each in recording.disk.changes if each.place):
            found.setdefault(place, []).append(workload)
    return found


def seen_without(bench: Bench, workload: Workload, place: str) -> str:
    """Return the first cut that goes wrong without the syncs of a place, "" when none does."""
    recording, _ = bench.recorded(workload)
    changes = recording.disk.changes
    begin = next(number for number, each in enumerate(changes) if each.place == place)
    looking = Looking(bench.place, recording)
    for length in range(begin + 1, len(changes) + 1):
        for loss in (Loss.EVERYTHING, Loss.BYTES, Loss.NAMES):
            kept = recording.disk.kept(length, loss, random.Random(0), left_out=place)
            assert kept is not None
            wrong = looking.wrong(kept, length, is_all_kept=False)
            if wrong:
                return f"{Cut(workload, length, loss)}: {wrong[0]}"
    return ""


@contextmanager
def bench() -> Iterator[Bench]:
    """Make a bench in memory, where there is a filesystem for that."""
    with (
        memory_folder("power") as folder,
        # Nothing else has these stores open: what verify finds need not be looked for once more.
        patch.object(verify, "STEP_SECONDS", 0.0),
        quiet(),
    ):
        yield Bench(folder)
