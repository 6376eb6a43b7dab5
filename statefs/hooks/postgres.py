"""PostgreSQL before a save, through its own programs: CHECKPOINT and a logical dump."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from statefs.errors import HookFailed
from statefs.hooks.commands import Account, Deadline, run
from statefs.hooks.results import DumpResult

FOLDERS_OF_VERSIONS: Final = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin")
"""Where distributions put the programs of one major version."""
DEPTH_MAX: Final = 3
"""A data folder is the volume itself or a few folders below, e.g. `data/pgdata`."""
CONNECT_SECONDS_MIN: Final = 2
"""libpq rounds less up to this. Source: the manual, connect_timeout."""
DUMP_MODE: Final = 0o600
HASHED_BYTES: Final = 1 << 20
"""How much of a dump is read at once."""


def is_cluster(folder: Path) -> bool:
    """Return whether a folder is a data folder (base/N has PG_VERSION too, but no pg_control)."""
    return (folder / "PG_VERSION").is_file() and (folder / "global" / "pg_control").is_file()


def find_clusters(folder: Path, depth: int = DEPTH_MAX) -> Iterator[Path]:
    """Yield the data folders in a folder, itself included, sorted; none inside of another."""
    if is_cluster(folder):
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink():
                yield from find_clusters(inner, depth - 1)


def version_of(cluster: Path) -> str:
    """Return the major version of a data folder, such as "15"."""
    return (cluster / "PG_VERSION").read_text().strip()


def program(name: str, version: str | None = None) -> str:
    """Return one of PostgreSQL's programs: of a major version, or the one on the path.

    Raises:
        HookFailed: it is not installed.
    """
    if version is None:
        found = shutil.which(name)
    else:
        places = (Path(folder.format(version), name) for folder in FOLDERS_OF_VERSIONS)
        found = next((str(place) for place in places if place.exists()), None)
    if found is None:
        of_version = f" {version}" if version else ""
        raise HookFailed(f"PostgreSQL{of_version}'s program {name} is not installed here")
    return found


def query(
    sql: str, connection: str, deadline: Deadline, account: Account | None = None
) -> list[str]:
    """Return the rows of a query, columns joined by "|".

    Args:
        connection: a libpq connection string or URI.
        account: whom psql runs as; matters where the server asks the kernel who calls ("peer").

    Raises:
        HookFailed: the server was not reached, refused, or was too slow.
    """
    options = ["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"]
    command = [program("psql"), *options, "-d", connection, "-c", sql]
    return run(command, deadline, account=account, env=_environment(deadline)).splitlines()


def checkpoint(connection: str, deadline: Deadline, account: Account | None = None) -> None:
    """Have the server write everything back, so that a recovery from the snapshot is short.

    Raises:
        HookFailed: see `query`.
    """
    query("CHECKPOINT", connection, deadline, account)


def size_of_databases(connection: str, deadline: Deadline, account: Account | None = None) -> int:
    """Return the bytes of all databases of the server."""
    sql = "SELECT sum(pg_database_size(oid)) FROM pg_database"
    return int(query(sql, connection, deadline, account)[0])


def dump(
    connection: str, target: Path, deadline: Deadline, account: Account | None = None
) -> DumpResult:
    """Write a dump of the connection's database, as it is at one moment, to a new file.

    Args:
        account: whom pg_dump runs as, and who owns the file.

    Raises:
        HookFailed: see `query`; nothing is left of the file. OSError: it cannot be written.
    """
    patience = f"--lock-wait-timeout={int(deadline.require('pg_dump') * 1000)}"
    command = [program("pg_dump"), "-Fc", "-w", patience, "-d", connection]
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, DUMP_MODE)
    try:
        if account:
            os.fchown(fd, account.uid, account.gid)
        run(command, deadline, output=fd, account=account, env=_environment(deadline))
        os.fsync(fd)
        return DumpResult(path=str(target), bytes=os.fstat(fd).st_size, digest=_digest(fd))
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise
    finally:
        os.close(fd)


def _digest(fd: int) -> str:
    hashed = hashlib.sha256()
    offset = 0
    while data := os.pread(fd, HASHED_BYTES, offset):
        hashed.update(data)
        offset += len(data)
    return f"sha256:{hashed.hexdigest()}"


def _environment(deadline: Deadline) -> dict[str, str]:
    patience = max(CONNECT_SECONDS_MIN, int(deadline.left_seconds()))
    return {"PGCONNECT_TIMEOUT": str(patience), "LC_ALL": "C.UTF-8"}
