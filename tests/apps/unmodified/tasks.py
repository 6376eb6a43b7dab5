"""Keeps tasks as programs often do: each file is written in place, and nothing synced.

python tasks.py FOLDER SNAPSHOTS TURNS

A turn writes all files, marks its end by a folder in SNAPSHOTS, and prints "turn N". Begun anew, it
goes on from its files; where they are not whole, from those of the last turn's snapshot.
"""

import json
import os
import shutil
import sys
from pathlib import Path

TASKS = ("build", "test", "deploy")


def turn_of(place: Path) -> int:
    """Return the turn that all files are of; ValueError where they are not whole."""
    state = json.loads((place / "state.json").read_text())
    tasks = [json.loads((place / "tasks" / f"{task}.json").read_text()) for task in TASKS]
    report = json.loads((place / "reports" / "report_last.json").read_text())
    logged = (place / "logs" / "session_one.log").read_text().splitlines()
    turns = {state["turn"], report["turn"], *(task["turn"] for task in tasks)}
    if len(turns) != 1 or not logged or logged[-1] != f"turn {state['turn']}":
        raise ValueError(f"of several turns: {turns}")
    return int(state["turn"])


def last_turn(snapshots: Path) -> int:
    """Return the last turn that has a snapshot, 0 for none."""
    return max((int(path.name[5:]) for path in snapshots.glob("turn-*")), default=0)


def begin(folder: Path, snapshots: Path) -> int:
    """Return the turn that has been done, with the files as they were after it."""
    try:
        return turn_of(folder)
    except (OSError, ValueError):
        last = last_turn(snapshots)
        if last:
            kept = snapshots / f"turn-{last}" / "files" / folder.name
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        return last


def write_all(folder: Path, turn: int) -> None:
    """Write every file anew; the log gets a line."""
    for task in TASKS:
        steps = [
            {"number": number, "text": f"{task} {turn} {number}"} for number in range(20 * turn)
        ]
        (folder / "tasks" / f"{task}.json").write_text(json.dumps({"turn": turn, "steps": steps}))
    (folder / "reports" / "report_last.json").write_text(json.dumps({"turn": turn, "ok": True}))
    with (folder / "logs" / "session_one.log").open("a") as log:
        log.write(f"turn {turn}\n")
    (folder / "state.json").write_text(json.dumps({"turn": turn, "tasks": list(TASKS)}))


def main() -> None:
    """Do the turns."""
    folder, snapshots, turns = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for name in ("tasks", "reports", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for turn in range(begin(folder, snapshots) + 1, turns + 1):
        write_all(folder, turn)
        (snapshots / f"turn-{turn}").mkdir()
        os.write(1, b"turn %d\n" % turn)


main()
