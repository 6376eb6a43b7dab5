"""Copies of meta.db in `backups/`: made in the background, in steps, and checked before they count.

A copy is that of one moment: the source stays in one read transaction, so nothing that is committed
meanwhile begins it anew. It gets its name when it is whole, sound and on the disk.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from statefs.config import Backups, Config
from statefs.durable import make_folder, open_plain, sync_folder
from statefs.errors import CorruptStore, InvalidConfig
from statefs.layout import StoreLayout
from statefs.maintenance.steps import Steps
from statefs.metadata.connection import connect, refused

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

log = logging.getLogger(__name__)

PAGES_PER_STEP: Final = 512
"""Copied at a time: 2 MiB, some milliseconds in a thread."""
PAUSE_SECONDS: Final = 0.01
"""After each step, so that a large copy leaves the disk to others."""
ROOM_FACTOR: Final = 3
"""A copy is made where the disk has so many times its size: it must not be what fills the disk."""
LOOK_SECONDS: Final = 30.0
LOOKS_PER_INTERVAL: Final = 4
"""However short the interval is: a look costs some microseconds."""
NS: Final = 1_000_000_000
_NAME: Final = re.compile(r"meta-v(\d+)-(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)(\.\d{6})?Z\.db")
_MOMENT: Final = "%Y-%m-%dT%H-%M-%S.%f"


class Copy(NamedTuple):
    """A copy of meta.db.

    Args:
        version: the format of the store then.
        made: when, in seconds since 1970.
        size: in bytes.
    """

    path: Path
    version: int
    made: float
    size: int


def copies(layout: StoreLayout) -> list[Copy]:
    """Return the copies of a store's database, the newest first."""
    if not layout.backups.exists():
        return []
    found = []
    for path in layout.backups.iterdir():
        if match := _NAME.fullmatch(path.name):
            made = datetime.strptime(match[2] + (match[3] or ".0"), _MOMENT).replace(tzinfo=UTC)
            found.append(Copy(path, int(match[1]), made.timestamp(), path.stat().st_size))
    return sorted(found, key=lambda copy: (copy.made, copy.version), reverse=True)


def copy_database(layout: StoreLayout, pause_seconds: float = 0.0) -> Steps[Path]:
    """Copy meta.db, as it is now, into backups/; whole, sound and durable, or not at all.

    Raises:
        CorruptStore: what was copied is damaged. OSError, apsw.Error: the disk refused.
    """
    make_folder(layout.backups)
    part = layout.backups / ".new"
    part.unlink(missing_ok=True)
    os.close(open_plain(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    source = connect(layout.meta_db)
    target = apsw.Connection(str(part))
    try:
        source.execute("BEGIN")
        version = source.pragma("user_version")
        for name in ("journal_mode", "synchronous"):
            target.pragma(name, "OFF")  # it is worth nothing before it is whole
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                yield partial(_copy_pages, backup, pause_seconds)
        target.close()
        yield partial(_require_sound, part)
        moment = datetime.now(UTC).strftime(_MOMENT)
        path = layout.backups / f"meta-v{version}-{moment}Z.db"
        yield partial(_place, part, path)
    finally:
        target.close()
        source.close()
        part.unlink(missing_ok=True)
    return path


def _copy_pages(backup: apsw.Backup, pause_seconds: float) -> None:
    backup.step(PAGES_PER_STEP)
    time.sleep(pause_seconds)


def problems_of(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a database that nobody writes; none when it is sound.

    Raises:
        OSError: a right, a descriptor or memory is missing to look.
    """
    try:
        uri = f"{path.absolute().as_uri()}?immutable=1"
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(uri, flags=flags)
        try:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)")]
        finally:
            connection.close()
    except apsw.Error as error:
        if why := refused(path, error):
            raise why from error
        return [str(error)]
    return [] if found == ["ok"] else found


def _require_sound(path: Path) -> None:
    if problems := problems_of(path):
        raise CorruptStore(f"meta.db is damaged, no copy of it is kept: {problems[0]}")


def _place(part: Path, path: Path) -> None:
    fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(part, path)
    sync_folder(path.parent)


def superfluous(found: list[Copy], wanted: Backups) -> list[Copy]:
    """Return which copies go: all beyond a number and a size, but never the newest.

    Args:
        found: the newest first.
    """
    total, kept = 0, 0
    gone = []
    for copy in found:
        total += copy.size
        if kept and (kept >= wanted.count or total > wanted.max_bytes):
            gone.append(copy)
        else:
            kept += 1
    return gone


class Backuper:
    """Copies the database of one open store.

    Args:
        store: open.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commits = -1
        self._failed_ns: int | None = None

    def _settings(self) -> Backups:
        try:
            config = self._store.settings.read()
        except InvalidConfig:  # others complain of it
            config = Config()
        return config.backups

    @property
    def look_seconds(self) -> float:
        """After how long it is worth looking whether a copy is due."""
        interval = self._settings().interval_seconds
        return min(LOOK_SECONDS, interval / LOOKS_PER_INTERVAL) if interval > 0 else LOOK_SECONDS

    def is_due(self) -> bool:
        """Whether the newest copy is old, and something has been committed since."""
        settings, layout = self._settings(), self._store.layout
        if settings.interval_seconds <= 0 or self._commits == self._store.database.commits:
            return False
        newest = next(iter(copies(layout)), None)
        since = self._store.created_ns / NS if newest is None else newest.made
        since = max(since, (self._failed_ns or 0) / NS)
        return self._store.clock.now_ns() / NS - since >= settings.interval_seconds

    def run(self) -> Steps[Path | None]:
        """Make a copy and remove what is superfluous then.

        Returns:
            Where it lies; None where the disk has not the room for it, or the database is damaged.
        """
        layout = self._store.layout
        size = layout.meta_db.stat().st_size
        disk = os.statvfs(layout.root)
        if disk.f_bavail * disk.f_frsize < ROOM_FACTOR * size:
            log.info("no copy of meta.db is made: the disk has too little room for it")
            self._failed_ns = self._store.clock.now_ns()
            return None
        commits = self._store.database.commits
        try:
            path = yield from copy_database(layout, PAUSE_SECONDS)
        except CorruptStore as error:
            self._store.tell_damages("verify", [str(error)])
            self._failed_ns = self._store.clock.now_ns()
            return None
        self._commits = commits
        yield self.prune
        log.info("copied the database to %s", path.name)
        return path

    def prune(self) -> None:
        """Remove the copies that are too many."""
        for copy in superfluous(copies(self._store.layout), self._settings()):
            with suppress(FileNotFoundError):
                copy.path.unlink()
