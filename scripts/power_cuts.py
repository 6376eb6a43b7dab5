#!/usr/bin/env python3
"""Cut the power at every moment of all short workloads; leave each sync of the store out.

    .venv/bin/python scripts/power_cuts.py                        every one and two operations
    .venv/bin/python scripts/power_cuts.py --three 500 --seed 7   and random three
    .venv/bin/python scripts/power_cuts.py --during-only          what lands while another waits
    .venv/bin/python scripts/power_cuts.py --replay 'old:append!,save@41/bytes/0'
    .venv/bin/python scripts/power_cuts.py --without-syncs        does a test see each of them?

A workload is some operations on a small store (tests/crash/workloads.py), one after the other, or
one while the sync of another is under way: on the kind of file whose old bytes may have to stand in
all of those, on others some. At each change that its
disk sees the store is rebuilt as a power cut may leave it, opened, verified (tests/crash/cuts.py).
What fails is printed as the argument that repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.crash.cuts import (  # noqa: E402 - found by the path just added
    Cut,
    CutTally,
    bench,
    places_of_syncs,
    seen_without,
    try_all,
    try_one,
)
from tests.crash.workloads import (  # noqa: E402
    STARTS,
    Workload,
    all_during,
    all_of_one,
    all_of_two,
    all_with_beside,
    some_during,
    some_of_three,
)

BATCH: Final = 12
"""Workloads given to a process at a time."""
WITNESSES_MAX: Final = 200
"""Workloads that are asked whether they see that a sync is missing, until one does."""
LOG: Final = "metadata/connection.py:sync < maintenance/store.py:sync < maintenance/"
SPARE: Final = {
    f"{LOG}restoring.py:bring_back": (
        "paid while programs go on, so that little is owed while they are held up"
    ),
    "metadata/connection.py:sync < maintenance/store.py:_close_cleanly": (
        "SQLite syncs the log when it is closed, but not while somebody still reads"
    ),
    f"{LOG}saving.py:make_durable": "a disk that fails is noticed before the snapshot is shown",
}
"""Syncs that nothing is lost without, and why they are there."""
OF_SQLITE: Final = "SQLite's own"


def _is_of_sqlite(place: str) -> bool:
    """Return whether SQLite syncs by itself there, with a commit, a checkpoint or a close."""
    return place.partition(" < ")[0].removeprefix("metadata/connection.py:") in (
        "commit", "checkpoint", "close",
    )  # fmt: skip


def main() -> int:
    """Do what is asked for; return 1 when something was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--three", type=int, default=200, help="random workloads of three (200)")
    parser.add_argument(
        "--during", type=int, default=150, help="random ones in which a step lands in another (150)"
    )
    parser.add_argument("--during-only", action="store_true", help="those, and none of the others")
    parser.add_argument("--seed", type=int, default=1, help="of those (default: 1)")
    parser.add_argument(
        "--start", choices=STARTS, action="append", help="with pairs on this kind of file only"
    )
    parser.add_argument("--replay", metavar="CUT", help="cut the power once, as was printed")
    parser.add_argument(
        "--without-syncs", action="store_true",
        help="instead: leave the syncs of one place out after the other, and tell who sees it",
    )  # fmt: skip
    given = parser.parse_args()
    if given.replay:
        return replay(Cut.parse(given.replay))
    if given.without_syncs:
        return leave_syncs_out()
    starts = tuple(given.start or STARTS)
    during = [*all_during(("old",)), *some_during(given.during, given.seed)]
    if given.during_only:
        return hunt(during, given.jobs)
    threes = some_of_three(given.three, given.seed)
    return hunt(
        [*all_of_one(), *all_of_two(starts), *all_with_beside(starts), *threes, *during], given.jobs
    )


def replay(cut: Cut) -> int:
    """Cut the power once; return 1 when something is wrong then."""
    with bench() as made:
        wrong = try_one(made, cut)
    print(cut, *(wrong or ["nothing is wrong"]), sep="\n  ")
    return 1 if wrong else 0


def hunt(workloads: Sequence[Workload], jobs: int) -> int:
    """Try workloads; return 1 when something was found."""
    started, total = time.monotonic(), CutTally()
    shuffled = random.Random(0).sample(workloads, len(workloads))
    batches = [shuffled[start : start + BATCH] for start in range(0, len(shuffled), BATCH)]
    with multiprocessing.Pool(jobs) as pool:
        for tally in pool.imap_unordered(_tried, batches):
            total.add(tally)
            seconds = time.monotonic() - started
            print(
                f"{seconds:5.0f} s, of {len(workloads)}: {total}",
                *tally.found,
                sep="\n",
                flush=True,
            )
    return 1 if total.found else 0


def _tried(workloads: Sequence[Workload]) -> CutTally:
    total = CutTally()
    with bench() as made:
        for workload in workloads:
            total.add(try_all(made, workload))
    return total


def leave_syncs_out() -> int:
    """Tell for each place that syncs which cut misses it; return 1 when an unknown one is spare."""
    unseen = 0
    with bench() as made:
        workloads = [*all_of_one(), *all_with_beside(), *all_of_two(("small", "old"))]
        places = places_of_syncs(made, workloads)
        for place, witnesses in sorted(places.items()):
            found = ""
            for workload in witnesses[:WITNESSES_MAX]:
                found = found or seen_without(made, workload, place)
            why = SPARE.get(place) or (OF_SQLITE if _is_of_sqlite(place) else "")
            unseen += not (found or why)
            print(f"{place}\n    {found or why or 'NOBODY MISSES IT'}", flush=True)
    print(f"{len(places)} places, {unseen} of which nobody misses")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
