"""Runs crash hunts one after the other, and several beside each other in processes of their own.

`python -m tests.crash.hunters SECONDS ROUNDS SEED [KEEP]` is one such process; its last line of
output is its tally.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from tests.crash.fork_server import ROOT, ForkedState, ForkServer
from tests.crash.hunt import CrashHunt, Tally
from tests.harness.mounted_state import aborted_after, mounted_as, open_folder

ROUNDS_PER_STORE: Final = 50
"""Kills of one store before a new one is made."""
SPARE_SECONDS: Final = 50.0
"""For the last round and the final verify; then the mount is aborted, as something hangs."""
STORE_SECONDS_MAX: Final = 600.0
"""How long one store may be hunted on, so that one that hangs is found within the night."""


def hunt_beside(
    jobs: int, seconds: float, rounds: int, seed: int, keep: Path | None = None
) -> Tally:
    """Hunt in some processes for some time and return what all of them have seen.

    Args:
        jobs: processes.
        seconds: how long; each ends the round it is in.
        rounds: kills of one store before the next is made.
        seed: of the first store; all others follow from it.
        keep: where to put stores in which something was found.
    """
    seeds = [seed, *(random.Random(seed).randrange(1 << 32) for _ in range(jobs - 1))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.crash.hunters", str(seconds), str(rounds), str(each)]
            + ([str(keep)] if keep else []),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in seeds
    ]
    total = Tally()
    for process in processes:
        output, _ = process.communicate()
        lines = output.splitlines()
        print("\n".join(lines[:-1]))  # noqa: T201 - what a failed check found
        assert process.returncode == 0, f"a hunter ended with {process.returncode}"
        total.add(Tally(**json.loads(lines[-1])))
    return total


def hunt_on(seconds: float, rounds: int, seed: int, keep: Path | None = None) -> Tally:
    """Take one store after the other through its rounds until the time is over."""
    end = time.monotonic() + seconds
    total = Tally()
    while True:
        total.add(_hunted(seed, rounds, end, keep))
        if time.monotonic() >= end:
            return total
        seed = random.Random(seed).randrange(1 << 32)


def _hunted(seed: int, rounds: int, end: float, keep: Path | None) -> Tally:
    """Take one store through its rounds; return what was seen."""
    tally = Tally()
    end = min(end, time.monotonic() + STORE_SECONDS_MAX)
    spare = end - time.monotonic() + SPARE_SECONDS
    with open_folder("crash") as folder, aborted_after(spare, folder):
        try:
            _run_rounds(folder, seed, rounds, end, tally)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            tally.failures.append(seed)
            if keep is not None:
                shutil.copytree(folder, keep / str(seed), symlinks=True, dirs_exist_ok=True)
    return tally


def _run_rounds(folder: Path, seed: int, rounds: int, end: float, tally: Tally) -> None:
    (folder / "journals").mkdir()
    with ForkServer() as server:
        state = ForkedState(server, folder / "state", folder / "state.store")
        with mounted_as(state):
            hunt = CrashHunt(state, folder / "journals", seed, tally)
            while tally.kills + tally.void_kills < rounds and time.monotonic() < end:
                hunt.run_round()


def main() -> None:
    """Be one of the processes."""
    seconds, rounds, seed = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    keep = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    tally = hunt_on(seconds, rounds, seed, keep)
    sys.stdout.write(json.dumps(dataclasses.asdict(tally)) + "\n")


if __name__ == "__main__":
    main()
