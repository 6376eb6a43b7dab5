"""Eight programs work in a mount while it is saved every second, pruned, and its worker killed.

None of them may see an error; the store is sound at the end; what the daemon holds does not grow.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from statefs.errors import DaemonUnreachable
from statefs.layout import StoreLayout
from statefs.maintenance.pruning import bytes_on_disk
from tests.harness.mounted_state import MountedState, mounted_as
from tests.load.clients import CLIENTS

ROOT: Final = Path(__file__).resolve().parents[2]
SNAPSHOTS_KEPT: Final = 20
SAVE_SECONDS: Final = 1.0
KILL_SECONDS: Final = (3.0, 15.0)
END_SECONDS: Final = 120.0
"""How much longer than asked for a program may take: it finishes a turn, or verifies."""
GROWTH_MAX: Final = 1.5
"""From the second quarter of a run without kills to its last: a cache fills, a leak goes on."""
GROWTH_FLOOR: Final = {"resident_bytes": 32 << 20, "descriptors": 32, "store_bytes": 256 << 20}
"""Growth that means nothing."""
DBENCH_LOADS: Final = Path("/usr/share/dbench/client.txt")
STRESSORS: Final = ("dentry", "dir", "hdd", "link", "rename", "seek", "symlink", "utime", "xattr")


def programs(folder: Path, seconds: float, seed: int) -> dict[str, list[str]]:
    """Return the command lines of the clients by name; of those that are installed.

    Args:
        folder: in the mount; each gets a folder of its own there.
        seconds: how long they are to work.
    """
    python = [sys.executable, "-m", "tests.load.clients"]
    found = {name: [*python, name, str(folder / name), str(seconds), str(seed)] for name in CLIENTS}
    whole = str(max(1, int(seconds)))
    if shutil.which("fio"):
        found["fio"] = [
            "fio", "--name=verify", f"--directory={folder / 'fio'}", "--rw=randrw", "--bs=4k",
            "--size=16m", "--ioengine=psync", "--verify=crc32c", "--verify_backlog=512",
            "--time_based", f"--runtime={whole}", "--fsync=64", f"--randseed={seed}",
            "--fallocate=none", "--verify_state_save=0", "--output-format=terse",
        ]  # fmt: skip
    if shutil.which("stress-ng"):
        stressors = [word for name in STRESSORS for word in (f"--{name}", "1")]
        found["stress-ng"] = [
            "stress-ng", *stressors, "--hdd-bytes", "4m", "--verify", "--timeout", whole,
            "--temp-path", str(folder / "stress-ng"),
        ]  # fmt: skip
    if shutil.which("dbench") and DBENCH_LOADS.exists():
        # Before its time it warms up for a fifth of that.
        measured = str(max(1, int(seconds / 1.2)))
        found["dbench"] = [
            "dbench", "--clients-per-process=1", "-D", str(folder / "dbench"), "-t", measured,
            "-c", str(DBENCH_LOADS), "1",
        ]  # fmt: skip
    return found


@dataclass
class Tally:
    """What a run has seen.

    Args:
        failures: in words; none when all is well.
        samples: of the daemon, once for each save, by what is measured.
    """

    saves: int = 0
    refused: int = 0
    kills: int = 0
    failures: list[str] = field(default_factory=list)
    samples: dict[str, list[int]] = field(default_factory=dict)

    def __str__(self) -> str:
        figures = ", ".join(
            f"{name} {min(values):.0f} to {max(values):.0f}"
            for name, values in self.samples.items()
        )
        return f"{self.saves} saves, {self.refused} cut by kills, {self.kills} kills; {figures}"


class Soak:
    """One run.

    Args:
        state: mounted.
        seconds: how long.
        seed: what the clients do, and when workers are killed.
        kills: whether they are.
    """

    def __init__(self, state: MountedState, seconds: float, seed: int, *, kills: bool) -> None:
        self._state = state
        self._seconds = seconds
        self._seed = seed
        self._chance = random.Random(seed)
        self._kills = kills
        self._tally = Tally()

    def run(self) -> Tally:
        """Run it and return what was seen."""
        StoreLayout(self._state.store).config.write_text(
            f"[retention]\nkeep_last = {SNAPSHOTS_KEPT}\n"
        )
        files = self._state.files
        commands = programs(files, self._seconds, self._seed)
        with tempfile.TemporaryDirectory(prefix="statefs-load-") as folder:
            running = {}
            for name, command in commands.items():
                (files / name).mkdir()
                with open(Path(folder) / name, "wb") as output:
                    running[name] = subprocess.Popen(
                        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                    )
            try:
                self._disturb(running)
            finally:
                self._collect(running, Path(folder))
        if not self._kills:
            self._tally.failures += [
                f"{name} grew: {values}" for name, values in self._tally.samples.items()
                if has_grown(name, values)
            ]  # fmt: skip
        return self._tally

    def _disturb(self, running: dict[str, subprocess.Popen[bytes]]) -> None:
        """Save, and kill workers, until the programs' time is over or one of them has failed."""
        end = time.monotonic() + self._seconds
        over = threading.Event()
        killer = threading.Thread(target=self._kill_workers, args=(over,))
        killer.start()
        try:
            self._save_until(end, running)
        finally:
            over.set()
            killer.join()

    def _kill_workers(self, over: threading.Event) -> None:
        while self._kills and not over.wait(self._chance.uniform(*KILL_SECONDS)):
            worker = self._worker()
            if worker:
                os.kill(worker, signal.SIGKILL)
                self._tally.kills += 1

    def _save_until(self, end: float, running: dict[str, subprocess.Popen[bytes]]) -> None:
        while time.monotonic() < end:
            if any(process.poll() not in (None, 0) for process in running.values()):
                return
            started = time.monotonic()
            done = self._state.run("save", self._state.state)
            if done.returncode == 0:
                self._tally.saves += 1
                self._sample()
            elif done.returncode == DaemonUnreachable.exit_code and self._kills:
                self._tally.refused += 1
            else:
                self._tally.failures.append(f"save: exit {done.returncode}: {done.stderr}")
            time.sleep(max(0.0, SAVE_SECONDS - (time.monotonic() - started)))

    def _worker(self) -> int:
        """Return the pid of the worker, 0 where it is killed while it is asked."""
        done = self._state.run("status", self._state.state, "--json")
        return int(json.loads(done.stdout)["worker_pid"] or 0) if done.returncode == 0 else 0

    def _sample(self) -> None:
        worker = self._worker()
        if not worker:
            return
        try:
            pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
            descriptors = len(os.listdir(f"/proc/{worker}/fd"))
        except FileNotFoundError:
            return  # just killed
        for name, value in (
            ("resident_bytes", pages * os.sysconf("SC_PAGE_SIZE")),
            ("descriptors", descriptors),
            ("store_bytes", bytes_on_disk(self._state.store)),
        ):
            self._tally.samples.setdefault(name, []).append(value)

    def _collect(self, running: dict[str, subprocess.Popen[bytes]], outputs: Path) -> None:
        give_up = time.monotonic() + END_SECONDS
        for name, process in running.items():
            try:
                code: int | str = process.wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = "it did not end"
            if code:
                said = (outputs / name).read_text("utf-8", "replace")[-2000:]
                self._tally.failures.append(f"{name}: {code}\n{said}")


def has_grown(name: str, values: Sequence[int]) -> bool:
    """Return whether something went on growing after it had had half of the time to settle."""
    quarter = len(values) // 4
    if quarter < 3:
        return False
    early = statistics.median(values[quarter : 2 * quarter])
    late = statistics.median(values[-quarter:])
    return late > early * GROWTH_MAX and late - early > GROWTH_FLOOR[name]


def soak(folder: Path, seconds: float, seed: int, *, kills: bool) -> Tally:
    """Run on a new state in `folder` and return what was seen; the store is verified at the end.

    Raises:
        AssertionError: the store is not sound, or the mount could not be ended.
    """
    expected = r"worker \d+ died|operation 'save' failed" if kills else None
    state = MountedState(folder / "state", folder / "state.store", "", expected)
    with mounted_as(state):
        tally = Soak(state, seconds, seed, kills=kills).run()
        state.verify_mounted()
    return tally
