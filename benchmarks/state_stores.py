"""What the state stores cost, beside the calls they cannot do without, in one run.

    python -m benchmarks.state_stores [FOLDER]

Each `set` of a store is followed at once by the bare calls on the same bytes in the same folder, so
that whatever else the machine does slows both. A ratio of 1.3 is the goal of issue 5.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Final
from unittest import mock

from benchmarks.report import keep, table
from statefs.durable import sync_folder
from statefs.state import (
    EncryptedJsonStore,
    JsonStore,
    Key,
    SessionManager,
    SessionStore,
    StatePersistence,
    Task,
)

VALUE: Final = "x" * 2048
SETS: Final = 1000
SESSIONS: Final = (2_500, 5_000, 10_000)
"""The goal is a list of 10,000 within 50 ms, and nothing that grows faster than their number."""
SESSION_COLUMNS: Final = ("ms per create", "ms to open", "ms to list", "MiB, peak")
TASKS: Final = (2_500, 5_000, 10_000)
"""The goal is 10,000 files read within 2 s, and time and memory in proportion to their number."""
TASK_COLUMNS: Final = ("ms per save", "ms to open", "to load", "its CPU", "to write", "MiB, peak")
SET_COLUMNS: Final = ("set, ms", "bare, ms", "durable, ms", "set/bare", "set/durable")
"""Bare is write, fsync and rename; durable has the fsync of the folder, too."""
EVENT: Final = {"text": "x" * 1024}
EVENTS: Final = 10_000
JOURNAL_COLUMNS: Final = ("ms, median", "ms, most")
KEYS: Final = 100
"""Different ones in the growing document, whose file is 2 KB to 200 KB."""


def bare(path: Path, data: bytes, with_folder: bool) -> None:
    """Replace a file: write, fsync and rename, and with `with_folder` make the name durable."""
    temporary = path.with_name("bare.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(temporary, path)
    if with_folder:
        fd = os.open(path.parent, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def seconds(action: Callable[[], object], folder: Path) -> float:
    """Return how long something took; what it leaves to the disk is done before it returns."""
    began = time.perf_counter()
    action()
    took = time.perf_counter() - began
    sync_folder(folder)
    return took


def measure(store: JsonStore, document: str, keys: int) -> tuple[list[float], ...]:
    """Return the seconds of each set, of the bare calls, and of those with the folder's sync."""
    path = store.folder / f"{document}.json"
    took: tuple[list[float], ...] = ([], [], [])
    for number in range(SETS):
        key = f"key-{number % keys}"
        took[0].append(seconds(partial(store.set, document, key, VALUE), store.folder))
        data = path.read_bytes()
        for times, with_folder in ((took[1], False), (took[2], True)):
            calls = partial(bare, store.folder / "bare", data, with_folder)
            times.append(seconds(calls, store.folder))
    return took


def measure_sessions(folder: Path, count: int) -> list[float]:
    """Return what so many sessions cost, as SESSION_COLUMNS says; the syncs are left out."""
    with mock.patch("os.fsync"):
        with SessionManager(folder) as sessions:
            began = time.perf_counter()
            for number in range(count):
                sessions.create("coder", f"session {number}")
            made = time.perf_counter() - began
        began = time.perf_counter()
        with SessionManager(folder) as sessions:
            opened = time.perf_counter() - began
        began = time.perf_counter()
        with SessionManager(folder, read_only=True) as sessions:
            assert len(sessions.list()) == count
        listed = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [made / count * 1e3, opened * 1e3, listed * 1e3, memory]


def measure_tasks(folder: str, count: int) -> list[float]:
    """Return what so many tasks cost, as TASK_COLUMNS says; the syncs are left out."""
    times = [time.perf_counter()]
    with mock.patch("os.fsync"):
        tasks = [Task(id=f"task-{number}", data={"text": "x" * 200}) for number in range(count)]
        with StatePersistence(folder, autosave_seconds=0) as store:
            for task in tasks:
                store.save_task(task)
        times.append(time.perf_counter())
        with StatePersistence(folder, autosave_seconds=0) as store:
            times.append(time.perf_counter())
            busy = time.process_time()
            assert len(store.load_tasks()) == count
            busy = time.process_time() - busy
            times.append(time.perf_counter())
            store.save_state()
            times.append(time.perf_counter())
    saved, opened, loaded, written = [(end - begin) * 1e3 for begin, end in pairwise(times)]
    return [saved / count, opened, loaded, busy * 1e3, written, peak_mib()]


def peak_mib() -> float:
    """Return the most memory that this process has had since its program began. Source: proc(5)."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_sets(place: str | None) -> dict[str, list[float]]:
    """Return for each kind of store what SET_COLUMNS says."""
    found = {}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        key = Key(bytes(32), False, "a benchmark")
        for name, store in (
            ("JsonStore", JsonStore(Path(folder) / "plain")),
            ("EncryptedJsonStore", EncryptedJsonStore(Path(folder) / "encrypted", key)),
        ):
            with store:
                for what, keys in (("one key", 1), (f"{KEYS} keys", KEYS)):
                    took = measure(store, f"d{keys}", keys)
                    medians = [statistics.median(each) * 1e3 for each in took]
                    ratios = [sum(took[0]) / sum(each) for each in took[1:]]
                    found[f"{name}, {what}"] = [*medians, *ratios]
    return found


def measure_journal(place: str | None) -> dict[str, list[float]]:
    """Return what JOURNAL_COLUMNS says of one journaled session: its calls, and resuming it."""
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        store = SessionStore(folder, "a benchmark")
        session = store.create("one")
        beside = os.open(Path(folder) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        line = b"x" * (session.folder / "journal.log").stat().st_blksize

        def timed(name: str, action: Callable[[], object]) -> None:
            took.setdefault(name, []).append(seconds(action, session.folder) * 1e3)

        def bare_append() -> None:
            os.write(beside, line[: len(EVENT["text"]) + 80])
            os.fdatasync(beside)

        for number in range(SETS):
            timed("bare write and fdatasync of an event's bytes", bare_append)
            timed("append of an event of 1 KB", partial(session.append, EVENT))
            if number % 10 == 0:
                state = {"plan": number, "memory": VALUE * 50, "raw": bytes(100_000)}
                timed("snapshot: 3 slots of 200 KB, one changed", partial(session.snapshot, state))
                with session.audit("look", number=number):
                    pass
        os.close(beside)
        for what in ("without a snapshot after them", "with one"):
            with mock.patch("os.fdatasync"):
                for _ in range(EVENTS):
                    session.append(EVENT)
            if what == "with one":
                session.snapshot()
            session.close()
            opened = partial(store.resume, "one")
            began = time.perf_counter()
            session = opened()
            found = (time.perf_counter() - began) * 1e3
            took[f"resume, {EVENTS:,} events {what}"] = [found]
        session.close()
    return {name: [statistics.median(each), max(each)] for name, each in took.items()}


def main() -> None:
    """Measure, print the tables and keep the figures."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    sessions = {}
    for count in SESSIONS:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            sessions[f"{count:,}"] = measure_sessions(Path(folder), count)
    tasks = {}
    for count in TASKS:
        # Each in a process of its own, whose memory nothing else has grown.
        with (
            tempfile.TemporaryDirectory(dir=place) as folder,
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
        ):
            tasks[f"{count:,}"] = process.submit(measure_tasks, folder, count).result()
    sets, journal = measure_sets(place), measure_journal(place)
    for title, columns, found in (
        ("Sessions", SESSION_COLUMNS, sessions),
        ("Tasks", TASK_COLUMNS, tasks),
        (f"{SETS} sets of a 2 KB value: medians, and ratios of the sums", SET_COLUMNS, sets),
        ("A journaled session", JOURNAL_COLUMNS, journal),
    ):
        rows = [[name, *(f"{each:.2f}" for each in figures)] for name, figures in found.items()]
        table(title, ["", *columns], rows)
    keep("state_stores", {"sessions": sessions, "tasks": tasks, "sets": sets, "journal": journal})


if __name__ == "__main__":
    main()
