"""`python -m benchmarks.write_back`: the kernel's write-back cache beside write-through.

The same workloads run in turn on a plain folder, on a mount as it is, and on a mount whose kernel
was asked for FUSE_WRITEBACK_CACHE, of each durability mode; then `stale_pairs` counts what decides:
snapshots that hold a later write without an earlier one. Decision 0013 has the figures. The flag
is asked for here alone (benchmarks/daemon.py, mode `write-back`); statefs has no option for it.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import statefs
from benchmarks.mounted import Mode, Mounted, mounted
from benchmarks.operations import Place
from benchmarks.report import RESULTS, console, figure, keep, median, table
from benchmarks.workloads import WORKLOADS, Workload
from tests.apps.postgres_cluster import DATABASE, PROGRAMS, Cluster
from tests.harness.accounts import make_private_folder, postgres_account

NAMES: Final = (
    "create+write 1 KiB+close", "append 100 B, large file", "append 100 B, small file",
    "pwrite 4 KiB", "safe JSON save", "safe JSON save, fsync", "write 1 MiB",
)  # fmt: skip
"""The workloads of benchmarks.operations that write bytes."""
WAYS: Final[tuple[tuple[str, Mode], ...]] = (("through", "plain"), ("back", "write-back"))
DURABILITIES: Final = ("close", "fsync")
ROWS: Final = 200
PAIRS: Final = 8
SAVES: Final = 100


def _database(journal: str, folder: Path, _: int) -> None:
    with closing(sqlite3.connect(folder / f"{journal}.db", isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={journal}")
        database.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT)")


def _transactions(journal: str, folder: Path, operations: int) -> None:
    """Insert rows, one transaction each, synced as the journal's mode has it by default."""
    with closing(sqlite3.connect(folder / f"{journal}.db", isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={journal}")
        for _ in range(operations):
            database.execute("INSERT INTO notes VALUES (?)", ("x" * 100,))


SQLITE: Final = tuple(
    Workload(
        f"SQLite {journal}", ROWS, partial(_database, journal), partial(_transactions, journal)
    )
    for journal in ("wal", "delete")
)


@contextmanager
def served(place: Place, disk: Path) -> Iterator[Cluster]:
    """Run PostgreSQL with pgbench's tables in a place."""
    account = postgres_account()
    sockets = disk / f"sockets-{place.name.replace(', ', '-')}"
    data = place.folder / "cluster"
    for folder in (sockets, data):
        make_private_folder(folder, account)
    cluster = Cluster(data, sockets, account)
    cluster.initialise()
    with cluster.serving():
        cluster.run("createdb", *cluster.server_options(), DATABASE)
        cluster.run("pgbench", *cluster.server_options(), "-i", "-q", "-s", "2", DATABASE)
        yield cluster


def transactions_per_second(cluster: Cluster, clients: int, seconds: int) -> float:
    """Return what `pgbench` says."""
    wanted = ("-n", "-c", str(clients), "-T", str(seconds))
    said = cluster.run("pgbench", *cluster.server_options(), *wanted, DATABASE)
    line = next(line for line in said.splitlines() if line.startswith("tps = "))
    return float(line.split()[2])


def stale_pairs(mount: Mounted) -> int:
    """Return in how many snapshots a file has a newer number than one that is written before it.

    Writers put each number into a first file and then into a second one, without fsync.
    """
    stop = threading.Event()
    folder = mount.files / "pairs"
    folder.mkdir()

    def write(name: str) -> None:
        first, second = (os.open(folder / f"{name}{end}", os.O_CREAT | os.O_RDWR) for end in "ab")
        number = 0
        while not stop.is_set():
            number += 1
            for fd in (first, second):
                os.pwrite(fd, b"%020d" % number, 0)
        os.close(first)
        os.close(second)

    writers = [threading.Thread(target=write, args=(str(each),)) for each in range(PAIRS)]
    for writer in writers:
        writer.start()
    stale = 0
    try:
        with statefs.open(mount.state) as state:
            names = [state.save(message="pairs").name for _ in range(SAVES)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    for name in names:
        past = mount.state / "snapshots" / name / "files" / "pairs"
        numbers = [
            [int((past / f"{each}{end}").read_bytes() or b"0") for end in "ab"]
            for each in range(PAIRS)
            if (past / f"{each}b").exists()
        ]
        stale += any(first < second for first, second in numbers)
    return stale


def measure(places: list[Place], rounds: int) -> None:
    """Run every workload in every place, `rounds` times, interleaved."""
    chosen = (*(one for one in WORKLOADS if one.name in NAMES), *SQLITE)
    for number in range(rounds):
        for workload in chosen:
            for place in places:
                place.measure(workload)
        console.print(f"round {number + 1} of {rounds}", style="dim")


def measure_postgres(places: list[Place], disk: Path, rounds: int, seconds: int) -> None:
    """Let pgbench run in every place, `rounds` times; its microseconds for a transaction."""
    for place in places:
        with served(place, disk) as cluster:
            for _ in range(rounds):
                for clients in (1, 4):
                    tps = transactions_per_second(cluster, clients, seconds)
                    place.times_us.setdefault(f"pgbench -c {clients}", []).append(1e6 / tps)


@contextmanager
def every_place(folder: Path) -> Iterator[list[Place]]:
    """Give a plain folder and a mount of each way and durability mode."""
    with ExitStack() as stack:
        plain = folder / "plain"
        plain.mkdir()
        places = [Place("plain", plain)]
        for durability in DURABILITIES:
            for way, mode in WAYS:
                name = f"{durability}, {way}"
                options = f"durability={durability},allow_other"
                mount = stack.enter_context(mounted(folder / f"{durability}-{way}", options, mode))
                places.append(Place(name, mount.files, mount))
        yield places


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each pgbench")
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="statefs-bench-", dir=chosen.folder) as name:
        disk = Path(name)
        disk.chmod(0o755)  # PostgreSQL's account has to pass
        with every_place(disk) as places:
            measure(places, chosen.rounds)
            if PROGRAMS is not None:
                measure_postgres(places, disk, max(1, chosen.rounds // 2), chosen.seconds)
            stale = {place.name: stale_pairs(place.mount) for place in places if place.mount}
    times = {place.name: place.times_us for place in places}
    rows = [
        [name, *(figure(median(figures[name])) for figures in times.values())]
        for name in times["plain"]
    ]
    table("us for an operation", ["", *times], rows)
    rows = [[name, f"{number} of {SAVES}"] for name, number in stale.items()]
    table("Snapshots with a newer number written after an older one", ["", "stale"], rows)
    print(keep("write-back", {"times_us": times, "stale_pairs": stale}, chosen.results))


if __name__ == "__main__":
    main()
