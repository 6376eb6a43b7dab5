"""PostgreSQL before a save, and a server on a copy; with the real one, on an ordinary folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from statefs.config import parse_config
from statefs.errors import HookFailed
from statefs.hooks import postgres
from statefs.hooks.commands import Account, Deadline, end_group, run, start
from statefs.hooks.postgres_copy import ClusterDamaged, check_cluster
from statefs.hooks.postgres_memory import remove_left_segment, segments
from statefs.hooks.quiesce import Preparation
from tests.harness.accounts import make_private_folder, postgres_account
from tests.harness.mounted_state import open_folder

VERSIONS = sorted(
    path.parent.parent.name for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")
)
pytestmark = pytest.mark.skipif(not VERSIONS, reason="not installed: PostgreSQL's server")
SUPERUSER = "the boss"
"""Not `postgres`: the check must find the name out; with a space, to be quoted."""


@dataclass(frozen=True)
class Server:
    """A data folder in current/ of a folder that plays a state, and whom its server runs as."""

    current: Path
    account: Account | None

    @property
    def data(self) -> Path:
        """The data folder: inside of the volume, as container images have it."""
        return self.current / "volumes" / "db" / "pgdata"

    @property
    def connection(self) -> str:
        """A libpq connection string."""
        return f"host={self.current.parent} user='{SUPERUSER}' dbname=postgres"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the server until the end of the block, then stop it in order."""
        program = postgres.program("postgres", VERSIONS[-1])
        words = ["-D", str(self.data), "-c", "listen_addresses=", "-c", "autovacuum=off"]
        sockets = f"unix_socket_directories={self.current.parent}"
        with (self.current.parent / "log").open("wb") as log:
            command = [program, *words, "-c", sockets]
            process = start(command, output=log, errors=log, account=self.account)
        try:
            ready = [
                postgres.program("pg_isready", VERSIONS[-1]),
                "-q",
                "-h",
                str(self.current.parent),
            ]
            deadline = Deadline(30)
            while subprocess.run(ready).returncode != 0:
                deadline.require("the server")
            yield
        finally:
            end_group(process, signal.SIGINT, 30)

    def sql(self, sql: str) -> list[str]:
        """Return the rows of a query."""
        return postgres.query(sql, self.connection, Deadline(30), self.account)


@pytest.fixture
def server() -> Iterator[Server]:
    """A new cluster with a table of a thousand rows; stopped."""
    account = postgres_account()
    with open_folder("pg") as folder:
        made = Server(folder / "current", account)
        make_private_folder(made.data, account)
        if account:
            os.chown(folder, account.uid, account.gid)
        initdb = postgres.program("initdb", VERSIONS[-1])
        options = ["-U", SUPERUSER, "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]
        run([initdb, "-D", str(made.data), *options], Deadline(60), account=account)
        yield made


def copied(server: Server) -> Path:
    """Return a copy of the server's data folder, as a snapshot taken now would have it."""
    copy = server.current.with_name("copy")
    subprocess.run(["cp", "-a", server.current, copy], check=True)
    return copy / "volumes" / "db" / "pgdata"


def prepared(server: Server, more: str = "") -> Preparation:
    """Return the preparation of the server's volume."""
    text = f'[[volumes]]\nname = "db"\nconsistency = "postgres"\nconnection = "{server.connection}"'
    config = parse_config(f"{text}\n{more}", "x")
    return Preparation(config.volumes, server.current, "manual")


def test_a_running_server_writes_back_and_is_dumped(server: Server) -> None:
    """A later checkpoint, and a dump with its digest from which the rows come back."""
    with server.serving():
        server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        before = server.sql("SELECT checkpoint_lsn FROM pg_control_checkpoint()")
        preparation = prepared(server)
        (result,) = preparation.prepare()
        assert preparation.release("first") == []
        assert server.sql("SELECT checkpoint_lsn FROM pg_control_checkpoint()") > before
        server.sql("DROP TABLE t")
        assert result.format == f"postgres-{VERSIONS[-1]}"
        assert result.consistency == "app-consistent" and result.dump is not None
        dump = server.current / "dumps" / "db.dump"
        assert result.dump.path == "dumps/db.dump"
        data = dump.read_bytes()
        assert result.dump.bytes == len(data)
        assert result.dump.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert dump.stat().st_mode & 0o777 == 0o600
        restore = postgres.program("pg_restore", VERSIONS[-1])
        command = [restore, "-d", server.connection, str(dump)]
        run(command, Deadline(60), account=server.account)
        assert server.sql("SELECT count(*) FROM t") == ["1000"]
        (again,) = prepared(server, "dump = false").prepare()
        assert again.dump is None and dump.read_bytes() == data


def test_a_save_that_fails_puts_the_former_dump_back(server: Server) -> None:
    """Also where there was none; no snapshot sees it meanwhile, and nothing is left over."""
    dump, runtime = server.current / "dumps" / "db.dump", server.current / "runtime"
    with server.serving():
        preparation = prepared(server)
        preparation.prepare()
        assert dump.exists()
        assert preparation.release(None, "no space left") == []
        assert not dump.parent.exists()
        preparation = prepared(server)
        preparation.prepare()
        preparation.release("first")
        former = dump.read_bytes()
        server.sql("CREATE TABLE t (n int)")
        preparation = prepared(server)
        preparation.prepare()
        assert dump.read_bytes() != former
        assert os.listdir(dump.parent) == ["db.dump"]
        preparation.release(None, "no space left")
        assert dump.read_bytes() == former and os.listdir(runtime) == []


def test_a_late_dump_leaves_nothing(server: Server) -> None:
    """Another session holds a lock: the error names the volume, current/ is as it was."""
    with server.serving():
        server.sql("CREATE TABLE t (n int)")
        lock = "BEGIN; LOCK TABLE t; SELECT pg_sleep(60)"
        psql = [postgres.program("psql"), "-X", "-d", server.connection, "-c", lock]
        holder = start(psql, output=subprocess.DEVNULL, errors=subprocess.DEVNULL)
        waiting = Deadline(20)
        while not server.sql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"):
            waiting.require("the lock")
        with pytest.raises(HookFailed, match=r"^volume db: .*pg_dump: "):
            prepared(server, "deadline = 1.5").prepare()
        assert os.listdir(server.current) == ["volumes"]
        end_group(holder)


def test_a_server_recovers_on_a_copy_of_a_running_one(server: Server) -> None:
    """Without its configuration and prepared transactions' settings at hand."""
    with (server.data / "postgresql.conf").open("a") as file:
        file.write("max_prepared_transactions = 5\nshared_preload_libraries = ''\n")
    with server.serving():
        server.sql("CREATE TABLE t (n int)")
        server.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'waiting'")
        data = copied(server)
        (data / "postgresql.conf").write_text("archive_mode = nonsense\n")
        check_cluster(data, Deadline(60), (server.current, server.current.with_name("copy")))
        assert server.sql("SELECT count(*) FROM t") == ["0"]
        server.sql("ROLLBACK PREPARED 'waiting'")
    assert not (data / "postmaster.pid").exists()


def test_a_copy_without_its_log_is_damaged(server: Server) -> None:
    """What a server needs to recover is missing: told, not waited for; its memory is the copy's."""
    with server.serving():
        data = copied(server)
    for segment in (data / "pg_wal").glob("0*"):
        segment.unlink()
    before = segments()
    with pytest.raises(ClusterDamaged, match="does not recover"):
        check_cluster(data, Deadline(60), (server.current, server.current.with_name("copy")))
    assert list((data / "pg_dynshmem").iterdir()) != []
    pid = abs(int((data / "postmaster.pid").read_text().splitlines()[0]))
    assert [each for each in segments() if each.maker == pid and each not in before] == []


def test_a_segment_of_somebody_else_stays(server: Server) -> None:
    """The lock file of a copy says which one it is, and is believed of its own maker's alone."""
    with server.serving():
        lines = (server.data / "postmaster.pid").read_text().splitlines()
        number = int(lines[6].split()[1])
        uid = server.account.uid if server.account else os.geteuid()
        (present,) = [each for each in segments() if each.number == number]
        assert (present.maker, present.uid) == (int(lines[0]), uid) and present.users
        data = server.current.with_name("copy")
        data.mkdir()
        for lock in ("", "1\n2\n", "\n".join(lines), "\n".join(["1", *lines[1:]])):
            (data / "postmaster.pid").write_text(lock)
            remove_left_segment(data, uid)
            assert present.number in {each.number for each in segments()}


def test_shared_memory_of_a_copy_is_its_own(server: Server) -> None:
    """A server empties the folder of its shared memory: that is never the living server's."""
    elsewhere = server.current.parent / "memory"
    make_private_folder(elsewhere, server.account)
    (elsewhere / "mmap.1").touch()
    with server.serving():
        data = copied(server)
    (data / "pg_dynshmem").rmdir()
    (data / "pg_dynshmem").symlink_to(elsewhere)
    check_cluster(data, Deadline(60), (server.current, server.current.with_name("copy")))
    assert (elsewhere / "mmap.1").exists()


def test_tablespaces_of_a_copy_are_its_own(server: Server) -> None:
    """Links into current/ lead into the copy; one that leads elsewhere makes no backup."""
    space = server.current / "volumes" / "space"
    make_private_folder(space, server.account)
    with server.serving():
        server.sql(f"CREATE TABLESPACE s LOCATION '{space}'")
        server.sql("CREATE TABLE t TABLESPACE s AS SELECT generate_series(1, 10) AS n")
    data = copied(server)
    copy = server.current.with_name("copy")
    shutil.move(space, server.current.parent / "hidden")  # a server that looked there would fail
    check_cluster(data, Deadline(60), (server.current, copy))
    (link,) = (data / "pg_tblspc").iterdir()
    assert Path(os.readlink(link)) == copy / "volumes" / "space"
    link.unlink()
    link.symlink_to("/elsewhere")
    with pytest.raises(ClusterDamaged, match="leads to /elsewhere, which is not in the snapshot"):
        check_cluster(data, Deadline(60), (server.current, copy))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")
def test_a_copy_that_belongs_to_root_is_given_to_postgres(server: Server) -> None:
    """PostgreSQL refuses to run as root, and a copy may have lost its owners."""
    with server.serving():
        data = copied(server)
    subprocess.run(["chown", "-R", "root:", data], check=True)
    check_cluster(data, Deadline(60), (server.current, server.current.with_name("copy")))
