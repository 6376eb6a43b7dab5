"""Programs that write their state in the plainest way, killed at random, as is the worker.

What they have written when only the worker dies is whole, as they notice nothing of it. A program
that is killed between the truncation of a file and what it writes next leaves half of it, as on
any filesystem: what it needs then is the snapshot of its last turn.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.apps.programs import Reporting, needs, started
from tests.harness.mounted_state import MountedState

SCRIPTS: Final = Path(__file__).parent / "unmodified"
ROUNDS: Final = 6
"""Every second one kills the worker, too."""
DIED: Final = "worker [0-9]+ died"
TURN: Final = re.compile(r"turn (\d+)")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("program", "script"),
    [
        pytest.param("node", "settings.js", marks=needs("node"), id="node"),
        pytest.param(sys.executable, "tasks.py", id="python"),
    ],
)
def test_a_program_that_writes_in_place_has_each_turn_in_a_snapshot(
    app_state: MountedState, disk: Path, program: str, script: str
) -> None:
    """Whatever was killed when: each turn that was done is whole in its snapshot, for ever."""
    app_state.expected_log = DIED
    chance = random.Random(f"{script} 7")
    folder = app_state.files / "app"
    command: list[str | Path] = [program, SCRIPTS / script, folder, app_state.snapshots]
    done: set[int] = set()
    for number in range(ROUNDS):
        endless = [*command, "1000000"]
        done |= killed_within(app_state, endless, disk / "log", chance, number % 2 == 1)
    last = max(done) + 5
    with started(*command, str(last), log=disk / "log", stdout=subprocess.PIPE) as process:
        done |= turns_in(Reporting(process, disk / "log").lines_at_end())
    assert app_state.status()["restarts"] == ROUNDS // 2
    assert last in done
    for turn in done:
        assert turns_of(app_state.snapshots / f"turn-{turn}" / "files" / "app") == {turn}
    assert turns_of(folder) == {last}


def killed_within(
    state: MountedState,
    command: Sequence[str | Path],
    log: Path,
    chance: random.Random,
    with_worker: bool,
) -> set[int]:
    """Run a program, kill it after some turns, and return those. It outlives the worker's death."""
    with started(*command, log=log, stdout=subprocess.PIPE) as process:
        reports = Reporting(process, log)
        reports.lines_after(chance.randint(1, 2))
        if with_worker:
            time.sleep(chance.uniform(0, 0.03))
            os.kill(state.worker_pid(), signal.SIGKILL)
            reports.lines_after(2)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.wait()
        return turns_in(reports.lines())


def turns_in(lines: Sequence[str]) -> set[int]:
    """Return the turns that a program has reported."""
    return {int(found[1]) for found in map(TURN.fullmatch, lines) if found}


def turns_of(folder: Path) -> set[int]:
    """Return which turns the documents of a folder are of; each must be whole."""
    paths = sorted(folder.rglob("*.json"))
    assert len(paths) == 5
    return {json.loads(path.read_text())["turn"] for path in paths}
