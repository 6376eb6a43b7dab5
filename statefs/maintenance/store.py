"""A store as a whole: making one, opening one, and the work that needs no mount.

`open_store` expects the caller to hold the store's lock (locking.py). The object it returns is what
the daemon serves from, and what a command uses when no daemon runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec

from statefs.clock import Clock, SystemClock
from statefs.config import ConfigFile
from statefs.content.checks import ContentChecks, DamagedBytes
from statefs.content.objects import FOLDERS, ObjectFiles
from statefs.content.reserve import FULL, Reserve
from statefs.durable import SyncFailed, is_on_read_only, sync_folder, write_file
from statefs.errors import CorruptStore, InvalidConfig, NoSuchStore, PosixError
from statefs.ids import CLONES_ROOT, DELETED_CLONES, FIRST_FREE_INO, LIVING, TREE_ROOT
from statefs.layout import CURRENT_FOLDERS, RUNTIME, StoreLayout
from statefs.locking import boot_id
from statefs.maintenance import cloning, saving, steps
from statefs.maintenance.backups import Backuper
from statefs.maintenance.gc import Collector
from statefs.maintenance.host import Host, Unmounted
from statefs.maintenance.migrations import migrate
from statefs.maintenance.opening import refuse_older, refuse_planted, refuse_unclean
from statefs.maintenance.progress import OnProgress
from statefs.maintenance.recovery import recover
from statefs.maintenance.replacing import end_replacement
from statefs.maintenance.rereading import describe
from statefs.maintenance.scrubbing import Scrubber
from statefs.maintenance.sealing import Sealer
from statefs.maintenance.status import status_of
from statefs.maintenance.verify import Problem, verify
from statefs.metadata.connection import Database, Reader, create_database
from statefs.snapshots.catalog import Catalog, Snapshot, document_of
from statefs.snapshots.clones import Clones
from statefs.snapshots.documents import ChangedPaths, decode, encode
from statefs.snapshots.namespace import Namespace
from statefs.snapshots.runtime import NEW_DOCUMENTS
from statefs.telemetry.events import CorruptionDetected, Events
from statefs.telemetry.kept import KeptEvents
from statefs.telemetry.kept_trend import read_trend
from statefs.telemetry.tallies import Tallies
from statefs.volume.names import Creator
from statefs.volume.volume import Volume

T = TypeVar("T")

log = logging.getLogger(__name__)

FILE_MODE: Final = stat.S_IFREG | 0o644
FOLDER_MODE: Final = stat.S_IFDIR | 0o755
STORE_MODE: Final = 0o700
SHRINK_SECONDS: Final = 0.5
"""How long a clean close may take to make meta.db small; what is left over is done next time."""
FREEING_ATTEMPTS: Final = 3
"""On a copy-on-write disk room is used by each write and given back with the next commits only."""


def init_store(
    root: Path,
    app_id: str | None = None,
    clock: Clock | None = None,
    runtime: Mapping[str, msgspec.Struct] = NEW_DOCUMENTS,
) -> None:
    """Make a new store at `root`, whole or not at all.

    Args:
        root: where; its parent exists, it does not (or is an empty folder).
        app_id: what the application calls itself; goes into index.json.
        clock: for the times in it; None is the system's.
        runtime: the documents that lie in runtime/ at first, by file name.

    Raises:
        OSError: the disk refused, or `root` is not empty.
    """
    building = root.with_name(f".{root.name}.{os.getpid()}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=STORE_MODE)
    try:
        _fill(StoreLayout(building), app_id, clock or SystemClock(), runtime)
        for folder in (building / "objects", building):
            sync_folder(folder)
        os.rename(building, root)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_folder(root.parent)


def _fill(
    layout: StoreLayout, app_id: str | None, clock: Clock, runtime: Mapping[str, msgspec.Struct]
) -> None:
    layout.objects.mkdir(mode=STORE_MODE)
    layout.snapshots.mkdir(mode=STORE_MODE)
    for number in range(FOLDERS):
        (layout.objects / f"{number:02x}").mkdir(mode=STORE_MODE)
    _make_database(layout, app_id, clock.now_ns())
    owner = Creator(os.getuid(), os.getgid())
    store = Store(layout, clock)
    try:
        for name in CURRENT_FOLDERS:
            store.volume.names.create(TREE_ROOT, name.encode(), FOLDER_MODE, owner)
        folder = store.volume.names.lookup(TREE_ROOT, RUNTIME).ino
        for name, document in runtime.items():
            file = store.volume.names.create(folder, name.encode(), FILE_MODE, owner)
            store.volume.data.write(file.ino, 0, encode(document))
        store.write_all_documents()
    finally:
        store.close()


def _make_database(layout: StoreLayout, app_id: str | None, now_ns: int) -> None:
    """Make meta.db with the values of the store and its roots, which are empty folders."""
    create_database(layout.meta_db)
    values = {
        "uuid": str(uuid.uuid4()),
        "lineage": str(uuid.uuid4()),
        "app_id": app_id,
        "created_ns": now_ns,
        "epoch": 1,
        "next_id": FIRST_FREE_INO,
        "last_slot": 0,
        "last_modified_ns": now_ns,
        "clean": 1,
        "files": 0,
        "bytes": 0,
    }
    owner = (os.getuid(), os.getgid())
    database = Database(layout.meta_db)
    with database.transaction():
        for key, value in values.items():
            database.set_store_value(key, value)
        for root in (TREE_ROOT, CLONES_ROOT, DELETED_CLONES):
            database.execute(
                "INSERT INTO inodes (ino, valid_to, valid_from, mode, nlink, uid, gid, rdev, size,"
                " blocks, atime_ns, mtime_ns, ctime_ns, btime_ns, parent, flags)"
                " VALUES (?, ?, 1, ?, 2, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?, 0)",
                (root, LIVING, FOLDER_MODE, *owner, now_ns, now_ns, now_ns, now_ns, root),
            )
    database.close()


def open_store(root: Path, clock: Clock | None = None, *, follows_another: bool = False) -> Store:
    """Open a store, recovering it if it was not closed cleanly.

    Args:
        follows_another: its mount goes on, which an earlier process has served until now.

    On a read-only filesystem it can only be read: operations of `READING` (control/kinds.py).

    Raises:
        NoSuchStore: nothing is there. NewerStore: it needs a newer statefs. CorruptStore: its
            database cannot be read, or a file of it is a link. ReadOnlyStore, OlderStore: it would
            have to be recovered, or migrated, and nothing can be written there.
    """
    layout = StoreLayout(root)
    end_replacement(layout)
    if not layout.meta_db.exists():
        if layout.objects.is_dir():
            raise CorruptStore(f"{layout.meta_db} is missing: 'statefs repair' makes another one")
        raise NoSuchStore(f"no store at {root}: make one with 'statefs init'")
    refuse_planted(layout)
    return Store(layout, clock or SystemClock(), follows_another)


class Store:
    """An open store; the caller holds its lock.

    `was_clean` says whether the last close was, `host` what else the process that has the store
    knows of it: the daemon puts its mount there. `events` tells what happens, `damages` are those
    that this process has found.
    """

    def __init__(self, layout: StoreLayout, clock: Clock, follows_another: bool = False) -> None:
        self.layout = layout
        self.clock = clock
        self.reserve = Reserve(layout.reserve)
        self.objects = ObjectFiles(layout)
        self.host: Host = Unmounted()
        self._is_open = False
        self.events = Events(SystemClock())  # its looks at a clock move no time of the store
        self.kept_events = KeptEvents(layout.events)
        disk = os.statvfs(layout.root)
        self.trend = read_trend(layout.trend_json, disk.f_blocks * disk.f_frsize, time.time())
        self.tallies = Tallies()
        self.events.listen(self.tallies.note)
        self.damages: set[str] = set()
        self._owes_index = False
        self._owes_documents = False
        self.database = self.freeing(lambda: _opened_database(layout))
        self._is_open = True
        try:
            self._come_up(follows_another)
        except BaseException:
            self.close(clean=False)
            raise

    def _come_up(self, follows_another: bool) -> None:
        """Recover what the database tells, if need be, and read from it what is kept in memory."""
        layout, clock = self.layout, self.clock
        self.was_clean = bool(self.database.store_value("clean"))
        if self.is_read_only:
            refuse_unclean(layout, self.was_clean)
        elif not self.was_clean:
            is_other_boot = self.database.store_value("boot_id") != boot_id()
            self.freeing(
                lambda: recover(
                    self.database,
                    self.objects,
                    layout.root,
                    may_have_lost_power=is_other_boot,
                    keeps_orphans=follows_another,
                )
            )
        if not self.is_read_only:
            self.events.listen(self.kept_events.keep)
            self.freeing(self._mark_open)
            self.database.sync()  # or after a loss of power nobody would recover what comes now
        self.volume = Volume(self.database, self.objects, clock, follows_another)
        self.catalog = Catalog(self.volume)
        self.settings = ConfigFile(layout.config)
        self.refresh_policy()
        self.clones = Clones(self.volume)
        self.collector = Collector(self.database, self.objects, self.catalog, self.clones)
        self.sealer = Sealer(self)
        self.scrubber = Scrubber(self)
        self.backuper = Backuper(self)
        owner = layout.root.stat()
        self.namespace = Namespace(self.volume, self.catalog, (owner.st_uid, owner.st_gid))
        if not self.was_clean:
            self.freeing(self.write_all_documents)
        if not self.is_read_only:
            cloning.delete_left_over(self)

    @property
    def is_read_only(self) -> bool:
        """Whether it lies on a read-only filesystem."""
        return self.database.is_read_only

    def _mark_open(self) -> None:
        with self.database.transaction():
            self.database.set_store_value("clean", 0)
            self.database.set_store_value("boot_id", boot_id())

    @property
    def checks(self) -> ContentChecks:
        """What is known of content that has digests."""
        return self.volume.table.checks

    def tell_damage(self, damage: DamagedBytes) -> str:
        """Have it known that damaged bytes were to be used; return what is damaged, in words.

        From any thread.
        """
        try:
            with self.reader() as reader:
                text = describe(reader, damage)
        except (apsw.Error, OSError, PosixError):  # it is damaged, too, or cannot be read now
            text = str(damage)
        self.tell_damages("read", [text])
        return text

    def tell_damages(self, found_by: str, damages: Iterable[str]) -> None:
        """Tell of damage, each of it once: this is the one place from which it is told.

        Args:
            found_by: "read", "scrub" or "verify".
        """
        for text in damages:
            if text not in self.damages:
                self.damages.add(text)
                self.events.tell(CorruptionDetected, found_by=found_by, damage=text)

    @property
    def created_ns(self) -> int:
        """When the store was made."""
        return int(self.database.store_value("created_ns"))

    def refresh_policy(self) -> None:
        """Have index.json tell the retention policy as statefs.toml has it now.

        While that file is wrong the last right one is told, and nothing is pruned.
        """
        with suppress(InvalidConfig):
            self.catalog.show_policy(self.settings.read().retention)

    def freeing(self, action: Callable[[], T]) -> T:
        """Run what makes room, or must not fail for lack of it, on a full disk with the reserve.

        Args:
            action: changes nothing when it raises.

        Raises:
            PosixError, OSError: as the action; ENOSPC when even the reserve does not help.
        """
        for _ in range(FREEING_ATTEMPTS):
            try:
                return action()
            except (OSError, PosixError) as error:
                if error.errno not in FULL:
                    raise
            self.reserve.give_up()
            if self._is_open:
                with suppress(PosixError, apsw.Error):  # it needs room itself; the action will tell
                    self.database.checkpoint(restart=True)
        return action()

    # What a save consists of; the daemon runs the parts that wait in threads.

    def owed_objects(self) -> list[int]:
        """Return the objects that files have written to and that may not be durable."""
        owed = list(self.volume.table.unsynced.values())
        return [number for numbers in owed for number in list(numbers)]

    def sync(self, owed: Sequence[int] | None = None) -> None:
        """Make everything acknowledged so far durable: bytes first, then names.

        Args:
            owed: `owed_objects` as of a moment at which the files were there; None for those of
                now. What is removed owes nothing, though a snapshot may hold it.

        Raises:
            SyncFailed: the store accepts nothing from then on. OSError: an object cannot be opened.
        """
        self.sync_bytes(owed)
        self.database.sync()

    def sync_bytes(self, owed: Sequence[int] | None = None) -> None:
        """Make the bytes written so far durable. Args and raises as `sync`."""
        for number in self.owed_objects() if owed is None else owed:
            self._sync_object(number)

    def _sync_object(self, number: int) -> None:
        try:
            self.objects.sync(number)
        except FileNotFoundError:
            pass  # it lost its last reference meanwhile: nothing is owed for it
        except SyncFailed as error:
            self.database.fail(error)
            raise

    def settle(self) -> None:
        """Write what is newer in memory into the rows, for a `Reader`."""
        self.volume.data.settle(self.volume.table.unsettled_nodes())

    def reader(self) -> Reader:
        """Return the database as it is now, for one thread; `settle` first to see the newest."""
        return Reader(self.layout.meta_db)

    def document_path(self, snapshot: Snapshot) -> Path:
        """Return where the store keeps a snapshot's metadata.json as a plain file."""
        return self.layout.snapshots / f"{snapshot.name}.json"

    def write_document(self, snapshot: Snapshot) -> None:
        """Write a snapshot's metadata.json; before it is complete, so that a listed one has it."""
        write_file(self.document_path(snapshot), encode(snapshot.document()))

    def _changed_path(self, snapshot: Snapshot) -> Path:
        return self.layout.snapshots / f"{snapshot.name}.changed"

    def write_changed(self, snapshot: Snapshot, changed: ChangedPaths) -> None:
        """Write beside a snapshot's document what was changed right after it was taken.

        Where the disk is full it is not: then `undo` finds out by comparing.
        """
        try:
            self.freeing(lambda: write_file(self._changed_path(snapshot), encode(changed)))
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("what the restore changed is not noted: %s", error)

    def read_changed(self, snapshot: Snapshot) -> ChangedPaths | None:
        """Return what was changed right after a snapshot was taken, None where nobody noted it.

        Raises:
            CorruptStore: the file cannot be read.
        """
        path = self._changed_path(snapshot)
        try:
            return decode(path.read_bytes(), ChangedPaths)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptStore(f"{path} is damaged: {error}") from error

    def remove_documents(self, snapshot: Snapshot) -> None:
        """Remove the plain files of a snapshot that is gone."""
        for path in (self.document_path(snapshot), self._changed_path(snapshot)):
            path.unlink(missing_ok=True)

    def write_index(self, data: bytes) -> None:
        """Write index.json; may run in a thread.

        Where the disk is full it stays owed: the mount shows the right one anyway.
        """
        self.owe_index()
        try:
            self.freeing(lambda: write_file(self.layout.index_json, data))
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("index.json in the store is out of date: %s", error)
        else:
            self._owes_index = False

    @property
    def owes_documents(self) -> bool:
        """Whether documents do not say what the database does, or may not."""
        return self._owes_index or self._owes_documents

    def owe_index(self) -> None:
        """Note that index.json is behind until it is written."""
        self._owes_index = True

    @contextmanager
    def owing_documents(self) -> Iterator[None]:
        """Bring documents up to date in the block; should it fail, all of them stay owed."""
        was_owing, self._owes_documents = self._owes_documents, True
        yield
        self._owes_documents = was_owing

    def pay_documents(self) -> None:
        """Write the documents again if a save or a deletion could not end with doing so."""
        if self.owes_documents:
            self.write_all_documents()

    def write_all_documents(self) -> None:
        """Make the plain files of documents equal to what the database says."""
        wanted = {self.document_path(snapshot): snapshot for snapshot in self.catalog.snapshots}
        for path, snapshot in wanted.items():
            if not path.exists() or path.read_bytes() != encode(snapshot.document()):
                self.write_document(snapshot)
        kept = {*wanted, *map(self._changed_path, self.catalog.snapshots)}
        for path in set(self.layout.snapshots.iterdir()) - kept:
            path.unlink()
        self.write_index(self.namespace.index_bytes())
        self._owes_documents = False

    # What tests and scripts use of a store that no daemon has; commands go through commands.py.

    def save(self, message: str, reason: str, labels: dict[str, str]) -> dict[str, Any]:
        """Take a snapshot and return its document. Raises as `saving.save`."""
        return document_of(steps.run(saving.save(self, reason, message, labels)))

    def delete(self, selector: str) -> dict[str, Any]:
        """Delete a snapshot and give its space back; return its document."""
        snapshot = steps.run(saving.delete(self, self.catalog.choose(selector)))
        self.collect()
        return document_of(snapshot)

    def collect(self) -> None:
        """Free everything that nothing refers to, now."""
        self.sync_bytes()
        self.settle()  # or it would be kept for a loss of power
        self._free_rows_and_objects()
        if self.collector.is_held:  # there may be room now
            self._free_rows_and_objects()
        while self.collector.shrink():
            pass

    def _free_rows_and_objects(self) -> None:
        self.collector.try_again()
        while self.freeing(self.collector.delete_rows):
            pass
        while candidates := self.collector.candidates():
            self.sync()
            self.collector.free(candidates)

    def status(self) -> dict[str, Any]:
        """Return what is known of the store; a daemon adds what it knows of the mount."""
        return status_of(self)

    def verify_files(
        self, totals: tuple[int, int] | None = None, on_rule: OnProgress | None = None
    ) -> list[Problem]:
        """Check the store as it lies on disk; may run in a thread while the mount goes on.

        Args:
            totals: files and bytes of the living tree, where nothing changes meanwhile.
            on_rule: see `verify`.
        """
        return verify(self.layout, totals, on_rule)

    def close(self, *, clean: bool = True) -> None:
        """Settle what is newer in memory, make it durable and close.

        Args:
            clean: False leaves the store to be recovered when it is opened next.
        """
        try:
            if clean and self.database.failure is None:
                self._close_cleanly()
        finally:
            self.objects.close()
            self.database.close()

    def _shrink_for_a_while(self) -> None:
        """Give the unused pages of meta.db back, as far as nobody has to wait for it."""
        give_up = time.monotonic() + SHRINK_SECONDS
        with suppress(PosixError, apsw.Error):  # a full disk: the next close has another chance
            while time.monotonic() < give_up and self.collector.shrink(to_the_end=True):
                pass

    def _close_cleanly(self) -> None:
        table = self.volume.table
        for (ino,) in self.database.rows("SELECT ino FROM orphans"):
            table.reap(ino)
        self.sync_bytes()
        self.settle()
        self.database.sync()
        self.objects.sync_removals()
        sync_folder(self.layout.snapshots)  # documents of deleted snapshots are gone for good
        self.pay_documents()
        self._shrink_for_a_while()
        with self.database.transaction():
            totals = {"files": table.files, "bytes": table.bytes}
            for key, value in {**totals, "next_id": table.next_id, "clean": 1}.items():
                self.database.set_store_value(key, value)


def _opened_database(layout: StoreLayout) -> Database:
    if is_on_read_only(layout.root):
        refuse_older(layout)
        refuse_unclean(layout)
    else:
        migrate(layout)
    return Database(layout.meta_db)
