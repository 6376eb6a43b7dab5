"""The daemon is killed at random instants; nothing that was acknowledged is lost.

STATEFS_CRASH_SECONDS changes how long, STATEFS_CRASH_SEED which instants;
scripts/crash_hunt.py does it for hours.
"""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from tests.crash.hunt import KINDS, Tally
from tests.crash.hunters import ROUNDS_PER_STORE, SPARE_SECONDS, hunt_beside

SECONDS: Final = float(os.environ.get("STATEFS_CRASH_SECONDS", "60"))
JOBS: Final = 2
"""Hunts beside each other: one mounts while the other's clients work."""
KILLS_MIN: Final = 100 * SECONDS / 60
"""A machine of two cores that does nothing else has up to three times as many."""
HUNTS_MAX: Final = 4
"""On a busy machine it is hunted again, until there were so many kills, of each kind."""


@pytest.mark.slow
@pytest.mark.timeout(HUNTS_MAX * (SECONDS + 2 * SPARE_SECONDS))
def test_a_killed_daemon_loses_nothing() -> None:
    """Acknowledged is kept, renames are whole, listed snapshots complete and unchanged."""
    seed = int(os.environ.get("STATEFS_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
    tally = Tally()
    for hunt in range(HUNTS_MAX):
        tally.add(hunt_beside(JOBS, SECONDS, ROUNDS_PER_STORE, seed + hunt))
        print(f"STATEFS_CRASH_SEED={seed + hunt}: {tally}")  # noqa: T201 - shown when it fails
        assert not tally.failures, f"lost: seed {seed + hunt}: {tally.failures}"  # see .ci/run
        if tally.kills >= KILLS_MIN and all(tally.cut.get(kind) for kind in KINDS):
            break
    assert tally.kills >= KILLS_MIN
    assert tally.void_kills <= tally.kills, "most kills came before anything was acknowledged"
    assert all(tally.cut.get(kind) for kind in KINDS), f"a kind was not hit: {tally.cut}"
