"""The daemon is killed at random instants; nothing that was acknowledged is lost.

STATEFS_CRASH_SECONDS changes how long, STATEFS_CRASH_SEED which instants;
scripts/crash_hunt.py does it for hours.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final

import pytest

from tests.crash.hunt import CrashHunt
from tests.harness.mounted_state import aborted_after, mounted, open_folder

SECONDS: Final = float(os.environ.get("STATEFS_CRASH_SECONDS", "60"))
SPARE_SECONDS: Final = 60.0
"""For the last round and the final verify."""
ROUNDS_MIN: Final = 5
"""With fewer rounds in the time, the test has tested nothing."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 2 * SPARE_SECONDS)
def test_a_killed_daemon_loses_nothing() -> None:
    """Acknowledged is kept, renames are whole, listed snapshots complete and unchanged."""
    seed = int(os.environ.get("STATEFS_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"STATEFS_CRASH_SEED={seed}")  # noqa: T201 - shown by pytest when the test fails
    with (
        open_folder("crash") as folder,
        aborted_after(SECONDS + SPARE_SECONDS, folder),
        mounted(folder) as state,
    ):
        (folder / "journals").mkdir()
        hunt = CrashHunt(state, folder / "journals", seed)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            hunt.run_round()
        state.verify_mounted()
    assert hunt.rounds >= ROUNDS_MIN
    assert hunt.void_rounds <= hunt.rounds, "most kills came before anything was acknowledged"
    assert hunt.saves_cut + hunt.deletes_cut > 0, "no kill hit a save or a deletion"
