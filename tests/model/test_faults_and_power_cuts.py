"""Disks that are full, that fail, that lose power, and processes that end, without a mount.

STATEFS_CRASH_SEED changes what is tried; scripts/crash_hunt.py --engine does it for hours.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

import pytest

from tests.crash.engine_hunts import CODES, hunt_engine

SECONDS: Final = 12.0
SEED: Final = int(os.environ.get("STATEFS_CRASH_SEED", "20"))
"""Fixed: what is tried for the first time is tried by the hunt, not by a change's tests."""
TRIED_MIN: Final = 5
"""Of each kind; a machine that does nothing else does ten times as many."""
HUNTS_MAX: Final = 5
"""On a busy machine it goes on, with the next seed, until each kind was tried so often."""

KINDS: Final = (*CODES, "power cut")


@pytest.mark.slow
def test_faults_and_power_cuts_lose_nothing() -> None:
    """Acknowledged steps, synced bytes and snapshots are there; a failed step is not by half."""
    tried: Counter[str] = Counter()
    for hunt in range(HUNTS_MAX):
        tally = hunt_engine(SECONDS, SEED + hunt)
        assert tally.found == []
        tried.update(tally.tried)
        if min(tried[kind] for kind in KINDS) >= TRIED_MIN:
            break
    assert min(tried[kind] for kind in KINDS) >= TRIED_MIN, tried
