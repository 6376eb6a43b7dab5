"""The daemon is killed at random instants; nothing that was acknowledged is lost.

STATEFS_CRASH_SECONDS changes how long, STATEFS_CRASH_SEED which instants;
scripts/crash_hunt.py does it for hours.
"""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from tests.crash.hunt import KINDS
from tests.crash.hunters import ROUNDS_PER_STORE, SPARE_SECONDS, hunt_beside

SECONDS: Final = float(os.environ.get("STATEFS_CRASH_SECONDS", "60"))
JOBS: Final = 2
"""Hunts beside each other: one mounts while the other's clients work."""
KILLS_MIN: Final = 60
"""In a minute; a machine of two cores that does nothing else has five times as many."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 2 * SPARE_SECONDS)
def test_a_killed_daemon_loses_nothing() -> None:
    """Acknowledged is kept, renames are whole, listed snapshots complete and unchanged."""
    seed = int(os.environ.get("STATEFS_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
    tally = hunt_beside(JOBS, SECONDS, ROUNDS_PER_STORE, seed)
    print(f"STATEFS_CRASH_SEED={seed}: {tally}")  # noqa: T201 - shown when the test fails
    assert tally.failures == []
    assert tally.kills >= KILLS_MIN * SECONDS / 60
    assert tally.void_kills <= tally.kills, "most kills came before anything was acknowledged"
    assert all(tally.cut.get(kind) for kind in KINDS), f"a kind was not hit: {tally.cut}"
