#!/usr/bin/env python3
"""Kill the daemon at random instants for hours and check that nothing acknowledged is lost.

    .venv/bin/python scripts/crash_hunt.py --hours 8 --keep /tmp/found

Several hunts run beside each other (--jobs); in each a store lives for some rounds
(tests/crash/hunt.py), then a new one begins. The tally says, for each kind of operation, how many
kills fell between its beginning and its acknowledgement. What a failed check found stays in the
folder given with --keep. The seed repeats what the clients do, not how their processes are
scheduled: a failure may need several attempts.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.crash.engine_hunts import hunt_engine  # noqa: E402 - found by the path just added
from tests.crash.hunt import KINDS, Tally  # noqa: E402
from tests.crash.hunters import ROUNDS_PER_STORE, hunt_beside  # noqa: E402

REPORT_SECONDS: Final = 300.0
"""Between two lines of output."""


def main() -> int:
    """Hunt until the time is over; return 1 when something was found or a kind never hit."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="hunts beside each other (default: 2)")
    parser.add_argument("--seed", type=int, help="of the first store (default: a new one)")
    parser.add_argument("--rounds", type=int, default=ROUNDS_PER_STORE, help="kills per store")
    parser.add_argument(
        "--engine", action="store_true",
        help="instead: faults, full disks and power cuts on the engine, without a mount",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, help="where stores go in which something was found")
    given = parser.parse_args()
    end = time.monotonic() + given.hours * 3600
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    if given.engine:
        return hunt_without_mount(end, seed)
    total = Tally()
    while (left := end - time.monotonic()) > 0:
        print(f"seed {seed}: ", end="", flush=True)
        seconds = min(left, REPORT_SECONDS)
        tally = hunt_beside(given.jobs, seconds, given.rounds, seed, given.keep)
        print(tally, flush=True)
        total.add(tally)
        seed = random.Random(seed).randrange(1 << 32)
    never = [kind for kind in KINDS if not total.cut.get(kind)]
    print(f"in all: {total}")
    print(f"never hit: {', '.join(never) or 'none'}; failed: {total.failures or 'none'}")
    return 1 if never or total.failures else 0


def hunt_without_mount(end: float, seed: int) -> int:
    """Try faults and power cuts until the time is over; return 1 when something was found."""
    found = 0
    while (left := end - time.monotonic()) > 0:
        tally = hunt_engine(min(left, REPORT_SECONDS), seed)
        print(f"seed {seed}: {tally}", *tally.found, sep="\n", flush=True)
        found += len(tally.found)
        seed = random.Random(seed).randrange(1 << 32)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
