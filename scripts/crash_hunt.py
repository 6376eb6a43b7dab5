#!/usr/bin/env python3
"""Kill the daemon at random instants for hours and check that nothing acknowledged is lost.

    .venv/bin/python scripts/crash_hunt.py --hours 8 --keep /tmp/found

Each store lives for some rounds (see tests/crash/hunt.py), then a new one begins. The seed of each
is printed; what a failed check found stays in the folder given with --keep. The seed repeats what
the clients do, not how their processes are scheduled: a failure may need several attempts.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.crash.hunt import CrashHunt  # noqa: E402 - found by the path that was just added
from tests.harness.mounted_state import mounted, open_folder  # noqa: E402

ROUNDS_PER_STORE: Final = 50


def main() -> int:
    """Hunt until the time is over; return 1 when something was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, help="of the first store (default: a new one)")
    parser.add_argument("--rounds", type=int, default=ROUNDS_PER_STORE, help="kills per store")
    parser.add_argument("--keep", type=Path, help="where stores go in which something was found")
    given = parser.parse_args()
    end = time.monotonic() + given.hours * 3600
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    found = 0
    while time.monotonic() < end:
        found += not hunted(seed, given.rounds, end, given.keep)
        seed = random.Random(seed).randrange(1 << 32)
    print(f"{found} stores with a failed check")
    return 1 if found else 0


def hunted(seed: int, rounds: int, end: float, keep: Path | None) -> bool:
    """Take one store through its rounds; return whether all checks held."""
    print(f"seed {seed}: ", end="", flush=True)
    with open_folder("crash") as folder:
        hunt = None
        try:
            with mounted(folder) as state:
                (folder / "journals").mkdir()
                hunt = CrashHunt(state, folder / "journals", seed)
                while hunt.rounds + hunt.void_rounds < rounds and time.monotonic() < end:
                    hunt.run_round()
                state.verify_mounted()
        except (AssertionError, OSError, subprocess.SubprocessError):
            print(f"FAILED in round {hunt.rounds + hunt.void_rounds if hunt else 0}")
            traceback.print_exc()
            if keep is not None:
                shutil.copytree(folder, keep / str(seed), symlinks=True, dirs_exist_ok=True)
                print(f"kept in {keep / str(seed)}")
            return False
    print(
        f"{hunt.rounds} kills ({hunt.void_rounds} too early), {hunt.acknowledged} operations, "
        f"{hunt.saves} saves; within a save {hunt.saves_cut}, a deletion {hunt.deletes_cut}, "
        f"a mount {hunt.mounts_cut}"
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
