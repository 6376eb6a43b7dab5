"""Disks that are full, that fail, that lose power, and processes that end, without a mount.

STATEFS_CRASH_SEED changes what is tried; scripts/crash_hunt.py --engine does it for hours.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

from tests.crash.engine_hunts import CODES, hunt_engine

SECONDS: Final = 12.0
SEED: Final = int(os.environ.get("STATEFS_CRASH_SEED", "20"))
"""Fixed: what is tried for the first time is tried by the hunt, not by a change's tests."""
TRIED_MIN: Final = 5
"""Of each kind; a machine that does nothing else does ten times as many."""


@pytest.mark.slow
def test_faults_and_power_cuts_lose_nothing() -> None:
    """Acknowledged steps, synced bytes and snapshots are there; a failed step is not by half."""
    tally = hunt_engine(SECONDS, SEED)
    assert tally.found == []
    assert all(tally.tried.get(kind, 0) >= TRIED_MIN for kind in (*CODES, "power cut")), tally
