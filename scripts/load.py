#!/usr/bin/env python3
"""Have eight programs work in a mount that is saved every second, pruned, and whose worker dies.

    .venv/bin/python scripts/load.py --minutes 10             with kills
    .venv/bin/python scripts/load.py --minutes 60 --no-kills  looks for leaks, too

Prints what was seen and ends with 1 when a program saw an error, something leaked or the store is
not sound (tests/load/soak.py).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.load.soak import soak  # noqa: E402 - found by the path just added


def main() -> int:
    """Run it once; return 1 when something was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="of clients and kills (default: a new one)")
    parser.add_argument("--no-kills", action="store_true", help="let the worker live")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}: ", end="", flush=True)
    with tempfile.TemporaryDirectory(prefix="statefs-load-") as folder:
        tally = soak(Path(folder), given.minutes * 60, seed, kills=not given.no_kills)
    print(tally, *tally.failures, sep="\n")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
