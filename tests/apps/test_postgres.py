"""PostgreSQL on the mount: what it acknowledged before a save is in a copy of the snapshot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.apps.postgres_cluster import DATABASE, NEEDS_POSTGRES, Cluster
from tests.apps.programs import Reporting, reporting, started
from tests.harness.mounted_state import MountedState

SAVES: Final = 4
ROWS_BETWEEN_SAVES: Final = 60
DEATHS: Final = 8
ROWS_BETWEEN_DEATHS: Final = 30
BALANCES_OF_HISTORY: Final = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = coalesce(sum(delta), 0) AND "
    "(SELECT sum(tbalance) FROM pgbench_tellers) = coalesce(sum(delta), 0) AND "
    "(SELECT sum(bbalance) FROM pgbench_branches) = coalesce(sum(delta), 0) FROM pgbench_history"
)
"""Each transaction of pgbench adds one delta to all four tables: half of one would show."""


pytestmark = NEEDS_POSTGRES


@contextmanager
def under_load(cluster: Cluster) -> Iterator[tuple[Reporting, subprocess.Popen[bytes]]]:
    """Run a client that reports each row that it has committed, and pgbench beside it."""
    rows = cluster.disk / "rows.sql"
    rows.write_text(
        "".join(f"INSERT INTO acknowledged VALUES ({n}, now()) RETURNING n;\n" for n in range(9999))
    )
    server = cluster.server_options()
    bench = ["-n", "-c", "3", "-T", "600", DATABASE]
    quiet = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", DATABASE]
    client = ["stdbuf", "-oL", str(cluster.program("psql")), *server, *quiet]
    with (
        started(
            cluster.program("pgbench"), *server, *bench, log=cluster.disk / "bench.log"
        ) as load,
        reporting(*client, log=cluster.disk / "client.log", stdin=rows) as reports,
    ):
        yield reports, load


def save_under_load(cluster: Cluster, state: MountedState) -> dict[str, int]:
    """Save while clients write.

    Returns:
        For each snapshot in order the number of the last row that had been acknowledged
        before its save began.
    """
    known = {}
    with under_load(cluster) as (client, load):
        for number in range(SAVES):
            acknowledged = client.lines_after(ROWS_BETWEEN_SAVES)
            known[state.save(f"under load {number}")] = int(acknowledged[-1])
        client.lines_after(1)
        assert load.poll() is None, (cluster.disk / "bench.log").read_text()
    return known


def check_rows(cluster: Cluster, last_known: int) -> int:
    """Check what the clients of `under_load` left in a running cluster; return its rows."""
    numbers = [int(row) for row in cluster.psql("SELECT n FROM acknowledged ORDER BY n")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > last_known, "an acknowledged transaction is missing"
    assert cluster.psql(BALANCES_OF_HISTORY) == ["t"]
    cluster.check_structure()
    return len(numbers)


def check_copy(cluster: Cluster, snapshot: Path, last_known: int) -> int:
    """Run a second server on a copy of a snapshot's cluster; return its number of rows."""
    copied = replace(cluster, data=cluster.disk / snapshot.name)
    subprocess.run(["cp", "-a", snapshot / "volumes" / "dbdata", copied.data], check=True)
    (copied.data / "postmaster.pid").unlink()
    with copied.serving("fsync=off"):
        rows = check_rows(copied, last_known)
    copied.check_pages()
    shutil.rmtree(copied.data)
    return rows


def test_acknowledged_transactions_are_in_snapshots_taken_under_load(
    app_state: MountedState, new_cluster: Cluster
) -> None:
    """A second server on a copy of each snapshot's volume recovers to all that was committed."""
    with new_cluster.serving():
        known = save_under_load(new_cluster, app_state)
        final = check_rows(new_cluster, max(known.values()))
    new_cluster.check_pages()
    rows = [
        check_copy(new_cluster, app_state.snapshots / name, last) for name, last in known.items()
    ]
    assert [*rows, final] == sorted([*rows, final])


def test_acknowledged_transactions_survive_the_daemon(
    app_state: MountedState, cluster: Cluster
) -> None:
    """The daemon is killed under a busy server; after a new mount the server recovers to all."""
    with cluster.serving(ends_well=False), under_load(cluster) as (client, _):
        client.lines_after(ROWS_BETWEEN_SAVES)
        app_state.kill()
        last = int(client.lines()[-1])
    app_state.mount()
    with cluster.serving():
        check_rows(cluster, last)
    cluster.check_pages()


def test_a_server_goes_through_deaths_of_the_worker(
    app_state: MountedState, cluster: Cluster
) -> None:
    """The worker is killed again and again under a busy server: neither it nor its clients fail."""
    app_state.expected_log = "worker [0-9]+ died"
    with cluster.serving():
        with under_load(cluster) as (client, load):
            for number in range(DEATHS):
                last = int(client.lines_after(ROWS_BETWEEN_DEATHS)[-1])
                status = app_state.status()
                assert status["restarts"] == number
                os.kill(status["worker_pid"], signal.SIGKILL)
            client.lines_after(ROWS_BETWEEN_DEATHS)
            assert load.poll() is None, (cluster.disk / "bench.log").read_text()
        check_rows(cluster, last)
    cluster.check_pages()
