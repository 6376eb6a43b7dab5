"""A PostgreSQL server on a throw-away copy of a data folder: does it recover, does it answer?

The copy's own configuration is not used: it may name archives, preloaded libraries and other
files of the living server. What a recovery needs of it is read from pg_control.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from statefs.errors import HookFailed
from statefs.hooks.commands import Account, Deadline, end_group, owner_of, run, start
from statefs.hooks.postgres import program, query, version_of
from statefs.hooks.postgres_memory import remove_left_segment

SERVER_USER: Final = "postgres"
"""Who runs a server whose data folder belongs to root, which may not."""
REMOVED: Final = ("postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal")
"""What a server leaves while it runs, and what would make the copy follow another server."""
FROM_CONTROL: Final = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
"""Lines of pg_controldata and the settings that a recovery wants no smaller."""
SHARED_MEMORY: Final = "pg_dynshmem"
"""The folder in which a server has shared memory of the type `mmap`; it empties it first."""
REDO: Final = "Latest checkpoint's REDO location"
TIMELINE: Final = "Latest checkpoint's TimeLineID"
"""Lines of pg_controldata that say where a recovery begins."""
POLL_SECONDS: Final = 0.05
SHUTDOWN_SECONDS: Final = 60.0
"""Everything is written back first; a server that is killed leaves shared memory behind."""
LOG_CHARACTERS: Final = 400
"""How much of the server's log is put into an error."""


class ClusterDamaged(Exception):
    """The copy is no valid backup; the message says why."""


def check_cluster(data: Path, deadline: Deadline, moved: tuple[Path, Path]) -> None:
    """Start a server on a copy, ask each database something, and stop it.

    Args:
        data: the copy's data folder; is changed.
        moved: where the original lay and where the copy of that lies: links to tablespaces and to
            the log that lead into the first are led into the second.

    Raises:
        ClusterDamaged: it does not recover or answer, or parts of it are outside of the copy.
        HookFailed: it cannot be told: programs are missing, or time ran out.
    """
    account = _server_account(data)
    for name in REMOVED:
        (data / name).unlink(missing_ok=True)
    _make_shared_memory(data, account)
    _lead_links_into_copy(data, moved)
    with tempfile.TemporaryDirectory(prefix="statefs-") as room:
        folder = Path(room)
        if account:
            os.chown(folder, account.uid, account.gid)
        cluster = _Copy(data, folder, account, deadline)
        control = cluster.control()
        cluster.refuse_new_tablespaces(control)
        cluster.write_settings(control)
        try:
            user = cluster.superuser()
            with cluster.serving():
                cluster.ask_all_databases(user)
        finally:
            remove_left_segment(data, account.uid if account else os.geteuid())


def stranger_to(data: Path, deadline: Deadline) -> str | None:
    """Return the user who would have to run a server on a data folder and cannot reach it, if so.

    A mount without the option allow_other lets in nobody but the user who made it.
    """
    if os.geteuid() != 0:
        return None
    found = data.stat()
    try:
        user = pwd.getpwuid(found.st_uid) if found.st_uid else pwd.getpwnam(SERVER_USER)
    except KeyError:
        return None  # starting the server will tell
    account = Account(user.pw_uid, user.pw_gid)
    try:
        run(
            ["test", "-x", str(data.parent if not found.st_uid else data)],
            deadline,
            account=account,
        )
    except HookFailed:
        return user.pw_name
    return None


def _server_account(data: Path) -> Account | None:
    """Return whom the server runs as: the owner, or `postgres` where that is root."""
    if os.geteuid() != 0:
        return None
    owner = owner_of(data)
    if owner is None:
        run(["chown", "-R", f"{SERVER_USER}:", str(data)], Deadline(60))
        owner = owner_of(data)
    return owner


def _make_shared_memory(data: Path, account: Account | None) -> None:
    """Give the copy a folder for shared memory; a link would lead to that of the living server."""
    place = data / SHARED_MEMORY
    if place.is_symlink():
        place.unlink()
    if not place.exists():  # a server that has its shared memory elsewhere does not miss it
        place.mkdir(mode=0o700)
        if account:
            os.chown(place, account.uid, account.gid)


def outside_folders(data: Path, original: Path) -> list[Path]:
    """Return the folders that a data folder's links lead to, relative to `original`.

    Raises:
        ClusterDamaged: one is not in `original`, so it is not in a snapshot of it either.
    """
    found = (_target(link, data, original) for link in _links(data))
    return [path for path in found if path is not None]


def _links(data: Path) -> list[Path]:
    spaces = data / "pg_tblspc"
    places = [*(spaces.iterdir() if spaces.is_dir() else ()), data / "pg_wal"]
    return [place for place in places if place.is_symlink()]


def _target(link: Path, data: Path, original: Path) -> Path | None:
    """Return where a link leads, relative to `original`; None when it stays inside of `data`."""
    target = Path(os.path.normpath(link.parent / os.readlink(link)))
    if target.is_relative_to(data):
        return None
    if not target.is_relative_to(original):
        raise ClusterDamaged(
            f"{link.relative_to(data)} leads to {target}, which is not in the snapshot: "
            "a backup needs the whole data folder, the log and all tablespaces"
        )
    return target.relative_to(original)


def _lead_links_into_copy(data: Path, moved: tuple[Path, Path]) -> None:
    """Make tablespaces and the log of a copy its own; a server would write into the original's."""
    original, copy = moved
    for link in _links(data):
        inside = _target(link, data, original)
        if inside is not None:
            link.unlink()
            link.symlink_to(copy / inside)


class _Copy:
    def __init__(
        self, data: Path, folder: Path, account: Account | None, deadline: Deadline
    ) -> None:
        self._data = data
        self._folder = folder
        self._account = account
        self._deadline = deadline
        self._version = version_of(data)
        self._log = folder / "log"
        self._postgres = program("postgres", self._version)

    def control(self) -> dict[str, str]:
        """Return what pg_control says of the cluster."""
        told = run(
            [program("pg_controldata", self._version), "-D", str(self._data)],
            self._deadline,
            account=self._account,
            env={"LC_ALL": "C"},
        )
        return dict(re.findall(r"^([^:]+):\s+(.*)$", told, re.MULTILINE))

    def refuse_new_tablespaces(self, control: Mapping[str, str]) -> None:
        """Refuse a log that makes a tablespace: recovery would link the copy to the original's.

        Raises:
            HookFailed: it does.
        """
        place = (control.get(TIMELINE, "1"), control.get(REDO, "0/0"))
        words = ["--rmgr=Tablespace", "--timeline", place[0], "--start", place[1]]
        dump = [program("pg_waldump", self._version), "--path", str(self._data / "pg_wal"), *words]
        # It complains at the end of every log, and of one that is damaged recovery tells.
        told = run(
            ["sh", "-c", '"$@" 2>/dev/null || true', "sh", *dump],
            self._deadline,
            account=self._account,
            env={"LC_ALL": "C"},
        )
        if made := re.search(r"desc: CREATE \d+ (.*)", told):
            raise HookFailed(
                f"since its last checkpoint the tablespace {made[1]} was made, which a copy would"
                " write to: run CHECKPOINT before the save"
            )

    def write_settings(self, control: Mapping[str, str]) -> None:
        """Write settings of our own: local connections alone, and nothing that lasts."""
        values = {
            "data_directory": f"'{self._data}'",
            "hba_file": f"'{self._folder}/hba.conf'",
            "ident_file": f"'{self._folder}/ident.conf'",
            "listen_addresses": "''",
            "unix_socket_directories": f"'{self._folder}'",
            "shared_buffers": "16MB",
            # In the copy, with which it goes when a server dies of what is damaged.
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
            "autovacuum": "off",
            **{name: control[line] for line, name in FROM_CONTROL.items() if line in control},
        }
        files = {
            "postgresql.conf": "".join(f"{name} = {value}\n" for name, value in values.items()),
            "hba.conf": "local all all trust\n",
            "ident.conf": "",
        }
        for name, text in files.items():
            self._write(name, text)

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        if self._account:
            os.chown(path, self._account.uid, self._account.gid)
        return path

    def _options(self) -> list[str]:
        return [f"--config-file={self._folder}/postgresql.conf"]

    def superuser(self) -> str:
        """Recover, and return the name of the role that initdb made; needs no role to connect.

        Source: the manual, postgres, "Single-User Mode".
        """
        sql = self._write("superuser.sql", "SELECT rolname FROM pg_authid WHERE oid = 10\n")
        single = [self._postgres, "--single", *self._options(), "template1"]
        try:
            # The shell gives it the query: our programs read nothing by themselves.
            told = run(
                ["sh", "-c", 'query=$1; shift; exec "$@" < "$query"', "sh", str(sql), *single],
                self._deadline,
                account=self._account,
                env={"LC_ALL": "C"},
            )
        except HookFailed as error:
            if not self._deadline.left_seconds():
                raise
            raise ClusterDamaged(f"it does not recover: {error}") from error
        found = re.search(r'rolname = "(.*)"', told)
        if not found:
            raise ClusterDamaged("it has no superuser")
        return found[1]

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the server until the end of the block."""
        with self._log.open("wb") as log:
            server = self._started(log)
        try:
            self._await_answer(server)
            yield
        finally:
            # Fast shutdown: clients are ended, everything is written back.
            end_group(server, signal.SIGINT, SHUTDOWN_SECONDS)

    def _started(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return start(
            [self._postgres, *self._options()],
            output=log,
            errors=log,
            account=self._account,
            env={"LC_ALL": "C"},
        )

    def _await_answer(self, server: subprocess.Popen[bytes]) -> None:
        ready = [program("pg_isready", self._version), "-q", "-h", str(self._folder)]
        while subprocess.run(ready, cwd="/").returncode != 0:
            if server.poll() is not None:
                raise ClusterDamaged(f"the server does not start: {self._said()}")
            self._deadline.require(f"the server on a copy of {self._data}")
            time.sleep(POLL_SECONDS)

    def ask_all_databases(self, user: str) -> None:
        """Have each database read its catalog of tables."""
        connect = f"host={self._folder} user={_quoted(user)} dbname="
        try:
            names = query(
                "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1",
                f"{connect}template1",
                self._deadline,
                self._account,
            )
            for name in names:
                sql = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
                query(sql, connect + _quoted(name), self._deadline, self._account)
        except HookFailed as error:
            if not self._deadline.left_seconds():
                raise
            raise ClusterDamaged(f"{error} ({self._said()})") from error

    def _said(self) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return " ".join(text.split())[-LOG_CHARACTERS:]


def _quoted(value: str) -> str:
    """Return a value as a libpq connection string wants it."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
