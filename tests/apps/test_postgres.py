"""PostgreSQL on the mount: what it acknowledged before a save is in a copy of the snapshot."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests.apps.programs import Account, Reporting, reporting, run, started, wait_until
from tests.harness.mounted_state import MountedState

DATABASE: Final = "bench"
ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
STOP_FAST: Final = (signal.SIGINT, signal.SIGQUIT)
"""PostgreSQL's fast shutdown, which ends all clients, then the one that waits for nothing."""
SAVES: Final = 4
ROWS_BETWEEN_SAVES: Final = 60
BALANCES_OF_HISTORY: Final = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = coalesce(sum(delta), 0) AND "
    "(SELECT sum(tbalance) FROM pgbench_tellers) = coalesce(sum(delta), 0) AND "
    "(SELECT sum(bbalance) FROM pgbench_branches) = coalesce(sum(delta), 0) FROM pgbench_history"
)
"""Each transaction of pgbench adds one delta to all four tables: half of one would show."""


def programs_of_postgres() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, None where there is none."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql*/bin")]
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).parent)
    complete = [folder for folder in folders if (folder / "initdb").exists()]
    return max(complete, key=lambda folder: (len(str(folder)), str(folder)), default=None)


PROGRAMS: Final = programs_of_postgres()
pytestmark = [
    pytest.mark.skipif(PROGRAMS is None, reason="not installed: PostgreSQL's server"),
    pytest.mark.timeout(240),
    pytest.mark.slow,
]


@dataclass(frozen=True)
class Cluster:
    """One PostgreSQL data folder and the server on it, reached through a Unix socket alone.

    Args:
        data: the data folder.
        disk: where sockets and logs lie, outside of the mount.
        account: whom the server runs as; None is the user of the test.
    """

    data: Path
    disk: Path
    account: Account | None

    def program(self, name: str) -> Path:
        """Return one of PostgreSQL's own programs."""
        assert PROGRAMS is not None
        return PROGRAMS / name

    def initialise(self) -> None:
        """Make the data folder with checksums on its pages."""
        options = ["-U", "postgres", "-A", "trust", "--data-checksums", "-E", "UTF8"]
        self.run("initdb", "-D", self.data, *options)

    @contextmanager
    def serving(self, *settings: str, ends_well: bool = True) -> Iterator[None]:
        """Run the server until the end of the block.

        Args:
            settings: each "NAME=VALUE".
            ends_well: fail when the server panics or does not shut down in order.
        """
        log = self.disk / f"{self.data.name}.log"
        log.write_bytes(b"")
        local = ["listen_addresses=", f"unix_socket_directories={self.disk}"]
        words = [word for setting in (*local, *settings) for word in ("-c", setting)]
        with started(
            self.program("postgres"),
            *("-D", str(self.data), *words),
            log=log,
            account=self.account,
            env=ENVIRONMENT,
            stop_signals=STOP_FAST,
        ) as server:
            wait_until([self.program("pg_isready"), *self.server_options()], server, log)
            yield
        said = log.read_text(errors="replace")
        assert not ends_well or (server.returncode == 0 and "PANIC" not in said), said

    def server_options(self) -> list[str]:
        """Return what tells a client where the server is."""
        return ["-h", str(self.disk), "-U", "postgres"]

    def psql(self, sql: str, database: str = DATABASE) -> list[str]:
        """Return the rows of a query, columns joined by "|"."""
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        return self.run("psql", *self.server_options(), *options, database).splitlines()

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of PostgreSQL's programs as the server's user."""
        path = self.program(program)
        return run(path, *arguments, account=self.account, env=ENVIRONMENT)

    def check_structure(self) -> None:
        """Compare every index with its table, where PostgreSQL's own check is installed."""
        if self.program("pg_amcheck").exists() and self.psql(
            "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'"
        ):
            options = ["--install-missing", "--heapallindexed", "-d", DATABASE]
            self.run("pg_amcheck", *self.server_options(), *options)

    def check_pages(self) -> None:
        """Read every page of a stopped cluster and compare its checksum."""
        self.run("pg_checksums", "--check", "-D", self.data)


@pytest.fixture
def cluster(app_state: MountedState, disk: Path) -> Cluster:
    """A new cluster in volumes/dbdata of a mounted state, with pgbench's tables; stopped."""
    account = None
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root and there is no user postgres")
        account = Account(entry.pw_uid, entry.pw_gid)
    made = Cluster(app_state.current / "volumes" / "dbdata", disk / "s", account)
    for folder in (made.data, made.disk):
        folder.mkdir(mode=0o700)
        if account:
            os.chown(folder, account.uid, account.gid)
    made.initialise()
    with made.serving():
        made.run("createdb", *made.server_options(), DATABASE)
        made.run("pgbench", *made.server_options(), "-i", "-s", "1", "-q", DATABASE)
        made.psql("CREATE TABLE acknowledged (n integer PRIMARY KEY, at timestamptz)")
    return made


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
    app_state: MountedState, cluster: Cluster
) -> None:
    """A second server on a copy of each snapshot's volume recovers to all that was committed."""
    with cluster.serving():
        known = save_under_load(cluster, app_state)
        final = check_rows(cluster, max(known.values()))
    cluster.check_pages()
    rows = [check_copy(cluster, app_state.snapshots / name, last) for name, last in known.items()]
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
