"""The one connection to meta.db: transactions, and making what was committed durable.

A commit writes to the log (`meta.db-wal`) and survives a kill -9 of the daemon. To survive a loss
of power the log must be synced; `Database.sync` does that for every commit made before it was
called. Both are told apart by counting commits. Checkpoints run on a connection of their own.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import apsw

from statefs.durable import SyncFailed, is_on_read_only, open_plain, sync_file, sync_folder
from statefs.errors import CorruptStore, NewerStore, NoSuchStore, PosixError, typed
from statefs.metadata import schema

CACHE_KIB: Final = 32 * 1024
"""SQLite's page cache: holds the hot part of a million inodes, well under the 200 MB goal."""
BUSY_MS: Final = 10_000
"""How long a commit waits for another connection (a checkpoint, verify) to let go of a lock."""
RESTART_WAIT_MS: Final = 20
"""How long a checkpoint that holds commits up may wait for readers to let go of the log."""
STATEMENTS_CACHED: Final = 256
"""More than the distinct statements of the code, so none is parsed twice."""


VFS: Final = "unix-excl"
"""SQLite's way for files of one process: locks once and keeps the log's index in memory.

The store's own lock lets no other process in. A mapped index file would cost four system calls for
each transaction, and end the process with SIGBUS when a copy-on-write disk is full.
"""


REFUSALS: Final = (apsw.FullError, apsw.IOError, apsw.ReadOnlyError)
"""What SQLite raises when the disk has refused something."""


def connect(path: Path, flags: int = apsw.SQLITE_OPEN_READONLY) -> apsw.Connection:
    """Open a connection to a database of this process's store.

    On a read-only filesystem, and where it has no log, SQLite is told that nobody changes it: it
    would make a log.

    Raises:
        apsw.Error: it cannot be opened. OSError: this process may not, or has no descriptor for it.
    """
    name, is_read_only = str(path), is_on_read_only(path.parent)
    if is_read_only and not has_log(path):
        name = f"file:{quote(name)}?immutable=1"
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    connection = None
    try:
        connection = apsw.Connection(
            name, flags=flags, vfs=VFS, statementcachesize=STATEMENTS_CACHED
        )
        connection.set_busy_timeout(BUSY_MS)
        connection.pragma("synchronous", "NORMAL")
        connection.pragma("wal_autocheckpoint", 0)
    except apsw.Error as error:
        if connection is not None:
            connection.close()
        raise refused(path, error) or error from None
    if flags & apsw.SQLITE_OPEN_READWRITE and not is_read_only and connection.readonly("main"):
        connection.close()
        may_write = os.access(path, os.W_OK, effective_ids=True)  # else it was the disk
        code = errno.EIO if may_write else errno.EACCES
        raise OSError(code, os.strerror(code), str(path))
    return connection


def refused(path: Path, error: apsw.Error) -> OSError | None:
    """Return what the machine has refused, where that, and no damage, made SQLite fail.

    Args:
        path: of the database.
    """
    if isinstance(error, apsw.NoMemError):
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
    if not isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError | apsw.PermissionsError):
        return None
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            # To close any other descriptor of it would end SQLite's locks (fcntl(2)).
            os.close(os.open(file, os.O_PATH | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except OSError as refusal:
            return refusal
        if not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    return None


def has_log(path: Path) -> bool:
    """Return whether a database has a log with something in it, which it has not when closed."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


class Queries:
    """What can be read from a store's database, by whoever has a connection to it."""

    execute: Callable[..., Any]

    def rows(self, statement: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        found: list[tuple[Any, ...]] = self.execute(statement, tuple(parameters)).fetchall()
        return found

    def value(self, statement: str, parameters: tuple[Any, ...] = ()) -> Any:
        """Return the first column of the first row of a query, or None."""
        row = self.execute(statement, parameters).fetchone()
        return None if row is None else row[0]

    def store_value(self, key: str) -> Any:
        """Return what the table `store` has under a key, or None."""
        return self.value("SELECT value FROM store WHERE key = ?", (key,))


class Reader(Queries):
    """meta.db as it is at one moment, for one thread; whoever writes is not held up.

    Rows that are newer in memory are not seen: settle them first (`FileData.settle`). Close it, or
    use it in a `with` statement; while it is open the log cannot start anew.

    Args:
        path: of meta.db, which this process has open.

    Raises:
        apsw.Error: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self.execute = self._connection.execute
        try:
            self._connection.execute("BEGIN")
            self.value("SELECT count(*) FROM store")  # the moment is that of the first read
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """End the transaction."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Database(Queries):
    """meta.db, open for the one process that holds the store's lock.

    `commits` counts them, `wal_pages` is the log's length (told to `on_commit`), `sync_seconds` how
    long a sync may be expected to take: as long as the last, or a little less than the longest of
    late. `is_read_only` is whether it lies on a read-only filesystem: then there is no log, and no
    transaction.

    Args:
        path: of meta.db.
        newest: the newest format version that may be opened.

    Used from one thread, except `sync` and `checkpoint`, which any thread may call.

    Raises:
        NoSuchStore: there is no database at `path`.
        NewerStore: its format is newer than this program's.
        CorruptStore: it is not a statefs database. OSError: see `connect`.
    """

    def __init__(self, path: Path, newest: int = schema.FORMAT_VERSION) -> None:
        if not path.exists():
            raise NoSuchStore(f"no store at {path.parent}: make one with 'statefs init'")
        self.path = path
        self.is_read_only = is_on_read_only(path.parent)
        self._wal_fd = -1
        if not self.is_read_only:  # before SQLite, which does not tell that a disk is full
            log = path.with_name(f"{path.name}-wal")
            self._wal_fd = open_plain(log, os.O_RDWR | os.O_CREAT)
        try:
            self.connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
        except BaseException as error:
            self._close_log()
            if isinstance(error, apsw.FullError | apsw.IOError):
                raise PosixError(errno.EIO) from error
            if isinstance(error, apsw.Error):
                raise CorruptStore(_unreadable(path, error)) from error
            raise
        self.execute = self.connection.execute
        self.commits = 0
        self.wal_pages = 0
        self._synced_pages = 0
        self.on_commit: Callable[[int], None] | None = None
        self.sync_seconds = 1.0
        self.failure: OSError | None = None
        self._synced_commits = 0
        self._is_name_synced = False
        self._sync_lock = threading.Lock()
        try:
            self._check_identity(newest)
            self.connection.set_wal_hook(self._note_wal_pages)
            self.connection.pragma("cache_size", -CACHE_KIB)
            self.connection.pragma("temp_store", "MEMORY")
            if self.is_read_only:
                self.failure = OSError(errno.EROFS, os.strerror(errno.EROFS))
        except BaseException:
            self.close()
            raise

    def _check_identity(self, newest: int) -> None:
        try:
            identity = self.connection.pragma("application_id")
            version = self.connection.pragma("user_version")
        except (apsw.FullError, apsw.IOError) as error:
            raise PosixError(self.errno_of(error)) from error
        except apsw.Error as error:
            unreadable = CorruptStore(_unreadable(self.path, error))
            raise refused(self.path, error) or unreadable from error
        if identity != schema.APPLICATION_ID:
            raise CorruptStore(
                f"{self.path} is not the database of a statefs store: name another one with "
                "--store DIR; where it has been one, 'statefs repair' makes it sound again"
            )
        if version > newest:
            raise NewerStore(
                f"the store {self.path.parent} has format {version}, this statefs knows up to"
                f" {newest}: install a newer statefs"
            )

    def _note_wal_pages(self, _: apsw.Connection, __: str, pages: int) -> int:
        self.wal_pages = pages
        if self.on_commit is not None:
            self.on_commit(pages)
        return apsw.SQLITE_OK

    @property
    def format_version(self) -> int:
        """The format the database is in; older than `schema.FORMAT_VERSION` until migrated."""
        return int(self.connection.pragma("user_version"))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, or nothing of it when it raises.

        Raises:
            PosixError: as `begin` and `commit` do.
        """
        self.begin()
        try:
            yield
            self.commit()
        except BaseException as error:
            self.roll_back()
            if isinstance(error, REFUSALS):
                raise PosixError(self.errno_of(error)) from error
            raise

    def begin(self) -> None:
        """Begin a transaction.

        Raises:
            PosixError: EIO once a sync has failed: nothing may be promised after that.
        """
        if self.failure is not None:
            raise PosixError(errno.EIO)
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit: from now on a kill -9 does not undo it.

        Raises:
            PosixError: ENOSPC or EDQUOT when the host's disk is full, EIO for other I/O errors;
                call `roll_back` then.
        """
        try:
            self.execute("COMMIT")
        except REFUSALS as error:
            self._note_failed_sync(error)
            raise PosixError(self.errno_of(error)) from error
        self.commits += 1

    def roll_back(self) -> None:
        """Undo what the transaction did, if one is open."""
        if self.connection.in_transaction:
            self.execute("ROLLBACK")

    def errno_of(self, error: apsw.Error) -> int:
        """Return the errno that a failed statement stands for."""
        return _errno_of(error, self.connection)

    def set_store_value(self, key: str, value: Any) -> None:
        """Put a value into the table `store`; inside a transaction."""
        self.execute("INSERT OR REPLACE INTO store VALUES (?, ?)", (key, value))

    @property
    def is_synced(self) -> bool:
        """Whether every commit so far is on stable storage."""
        return self._synced_commits == self.commits

    @property
    def unsynced_bytes(self) -> int:
        """How much of the log is not on stable storage, to a page."""
        if self.is_synced:
            return 0
        pages, synced = self.wal_pages, self._synced_pages
        return schema.PAGE_BYTES * (pages - synced if pages >= synced else pages)

    def is_commit_synced(self, number: int) -> bool:
        """Whether the commit that made `commits` reach `number` is on stable storage."""
        return self._synced_commits >= number

    @property
    def is_syncing(self) -> bool:
        """Whether a thread is syncing now: whoever wants a sync had better share the next one."""
        return self._sync_lock.locked()

    def sync(self) -> None:
        """Make every commit made so far durable; callers who wait meanwhile share one sync.

        Raises:
            SyncFailed: from then on no transaction is accepted. OSError: the folder cannot be
                opened; it may be tried again.
        """
        wanted = self.commits
        with self._sync_lock:
            if self._synced_commits >= wanted:
                return
            if self.failure is not None:
                raise self.failure
            reached, pages = self.commits, self.wal_pages
            try:
                if not self._is_name_synced:  # the log's own must survive a loss of power, too
                    sync_folder(self.path.parent)
                    self._is_name_synced = True
                started = time.perf_counter()
                sync_file(self._wal_fd)
            except SyncFailed as error:
                self.failure = error
                raise
            self._synced_commits, self._synced_pages = reached, pages
            took = time.perf_counter() - started
            self.sync_seconds = max(took, 0.8 * self.sync_seconds)

    def fail(self, error: OSError) -> None:
        """Accept no more transactions: a sync of an object file failed."""
        self.failure = self.failure or error

    def checkpoint(self, restart: bool = False) -> None:
        """Move the log's pages into meta.db, from any thread; as far as readers let it.

        Args:
            restart: also make the next commit start the log anew. Commits wait for that; they wait
                for little, as most pages have been moved before, beside them.

        Raises:
            PosixError: the disk refused: ENOSPC, EDQUOT or EIO.
        """
        connection = connect(self.path, apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(RESTART_WAIT_MS)
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if restart:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.BusyError:
            pass  # verify reads an old state: the log is moved when it has ended
        except REFUSALS as error:
            self._note_failed_sync(error)
            raise PosixError(_errno_of(error, connection)) from error
        finally:
            connection.close()

    def _note_failed_sync(self, error: apsw.Error) -> None:
        """Accept no more transactions when it was SQLite that could not sync: it tries only once.

        The host may have dropped what it could not write, and say that the next sync succeeds.
        """
        if getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_FSYNC:
            self.fail(OSError(errno.EIO, str(error)))

    def close(self) -> None:
        """Close the connection; SQLite checkpoints and removes the log."""
        self._close_log()
        self.connection.close()

    def _close_log(self) -> None:
        if self._wal_fd >= 0:
            os.close(self._wal_fd)


def _unreadable(path: Path, error: apsw.Error) -> str:
    cure = "'statefs repair' makes it sound again"
    if is_on_read_only(path.parent):
        copied = typed("cp", "-a", path.parent, "DIR")
        cure = f"copy the store to another disk ('{copied}'), where {cure}"
    return f"{path} cannot be read as a database ({error}): {cure}"


def _errno_of(error: apsw.Error, connection: apsw.Connection) -> int:
    if isinstance(error, apsw.FullError):
        return errno.ENOSPC
    code = connection.system_errno
    return code if code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else errno.EIO


def create_database(path: Path) -> None:
    """Make an empty meta.db with the current schema.

    Raises:
        OSError: `path` exists or cannot be made.
    """
    os.close(open_plain(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    connection = apsw.Connection(str(path))
    try:
        connection.pragma("page_size", schema.PAGE_BYTES)
        connection.pragma("auto_vacuum", "INCREMENTAL")  # so that meta.db can shrink
        connection.pragma("journal_mode", "WAL")
        with connection:
            schema.create_tables(connection)
    finally:
        connection.close()
