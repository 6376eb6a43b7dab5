"""A PostgreSQL cluster of a test: its programs, its server, its client."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from statefs.hooks.commands import Account
from tests.apps.programs import run, started, wait_until
from tests.leftovers import RUN_VARIABLE

DATABASE: Final = "bench"
ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "LC_ALL": "C",
    "TZ": "UTC",
    RUN_VARIABLE: os.environ.get(RUN_VARIABLE, ""),
}
STOP_FAST: Final = (signal.SIGINT, signal.SIGQUIT)
"""PostgreSQL's fast shutdown, which ends all clients, then the one that waits for nothing."""


def programs_of_postgres() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, None where there is none."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql*/bin")]
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).parent)
    complete = [folder for folder in folders if (folder / "initdb").exists()]
    return max(complete, key=lambda folder: (len(str(folder)), str(folder)), default=None)


PROGRAMS: Final = programs_of_postgres()
NEEDS_POSTGRES: Final = [
    pytest.mark.skipif(PROGRAMS is None, reason="not installed: PostgreSQL's server"),
    pytest.mark.timeout(240),
    pytest.mark.slow,
]
"""The marks of a module whose tests run PostgreSQL."""


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

    def fill(self) -> None:
        """Make the data folder, pgbench's tables and one for what was acknowledged."""
        self.initialise()
        with self.serving():
            self.run("createdb", *self.server_options(), DATABASE)
            self.run("pgbench", *self.server_options(), "-i", "-s", "1", "-q", DATABASE)
            self.psql("CREATE TABLE acknowledged (n integer PRIMARY KEY, at timestamptz)")

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
