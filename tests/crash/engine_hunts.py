"""Runs faults and power cuts on one engine after the other, for as long as is wished."""

from __future__ import annotations

import errno
import random
import time
import traceback
from dataclasses import dataclass, field
from typing import Final
from unittest.mock import patch

from statefs.maintenance import verify
from tests.crash.engine import quiet
from tests.crash.faults import SHORT, FaultRun
from tests.crash.power import PowerCuts
from tests.leftovers import memory_folder

CUTS: Final = 10
"""Power cuts of one run: each is a moment of its own and loses something else."""
CODES: Final = {
    "kill": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT,
    "EROFS": errno.EROFS, "short": SHORT,
}  # fmt: skip


@dataclass
class EngineTally:
    """What was tried, by kind, and what was found: seed, kind and the first lines."""

    tried: dict[str, int] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        tried = ", ".join(f"{kind} {count}" for kind, count in sorted(self.tried.items()))
        return f"tried: {tried}; failed: {len(self.found)}"


def hunt_engine(seconds: float, seed: int) -> EngineTally:
    """Try one seed after the other until the time is over."""
    tally, end = EngineTally(), time.monotonic() + seconds
    rng = random.Random(seed)
    # Nothing else has these stores open: what verify finds need not be looked for once more.
    with quiet(), patch.object(verify, "STEP_SECONDS", 0.0):
        while time.monotonic() < end:
            each = rng.randrange(1 << 32)
            for kind, code in CODES.items():
                _try_fault(each, kind, code, tally)
            _try_power_cuts(each, tally)
    return tally


def _try_fault(seed: int, kind: str, code: int, tally: EngineTally) -> None:
    with memory_folder("engine") as folder:
        run = FaultRun(folder, seed, code)
        try:
            wrong = run.run()
        except Exception:
            wrong = [traceback.format_exc()]
        _note(tally, kind, seed, wrong, tried=bool(run.faults))


def _try_power_cuts(seed: int, tally: EngineTally) -> None:
    with memory_folder("engine") as folder:
        cuts = PowerCuts(folder, seed)
        cuts.run()
        for _ in range(CUTS):
            try:
                wrong = cuts.cut()
            except Exception:
                wrong = [traceback.format_exc()]
            _note(tally, "power cut", seed, wrong, tried=True)


def _note(tally: EngineTally, kind: str, seed: int, wrong: list[str], *, tried: bool) -> None:
    tally.tried[kind] = tally.tried.get(kind, 0) + tried
    if wrong:
        tally.found.append(f"{kind}, seed {seed}: " + "\n  ".join(wrong[:5]))
