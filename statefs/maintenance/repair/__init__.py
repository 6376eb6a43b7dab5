"""Repairing a store offline: a new meta.db of whatever can still be read, and a report of losses.

The database is never changed in place: what can be read of it (salvage.py), its gaps filled from
its newest sound copy (filling.py), goes into a new one that keeps every rule (rebuilding.py), which
then takes its place (replacing.py), and what it replaces is kept in `backups/`. Content that has
digests is read, if that is wanted; what is damaged is treated as lost, and the database made once
more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from statefs.clock import Clock, SystemClock
from statefs.content.objects import FOLDERS, object_number
from statefs.durable import make_folder
from statefs.errors import CorruptStore, NewerStore, NoSuchStore, StatefsError
from statefs.layout import StoreLayout
from statefs.maintenance.backups import Copy, copies, problems_of
from statefs.maintenance.migrations import migrate
from statefs.maintenance.repair import listing, salvage
from statefs.maintenance.repair.damaged import Damaged, nothing
from statefs.maintenance.repair.filling import fill, note_unknown
from statefs.maintenance.repair.losses import Loss, Report
from statefs.maintenance.repair.moments import Moments
from statefs.maintenance.repair.object_files import Objects
from statefs.maintenance.repair.rebuilding import Rebuilding
from statefs.maintenance.repair.schema_pages import has_schema, put_schema_back
from statefs.maintenance.repair.sealed import search, settle
from statefs.maintenance.replacing import end_replacement, replace_database
from statefs.maintenance.store import open_store
from statefs.maintenance.verify import Problem, verify
from statefs.metadata.schema import APPLICATION_ID, FORMAT_VERSION
from statefs.snapshots.documents import ChangedPaths, decode

MADE: Final = "made"
"""The store, in the folder of a repair, that the new database lies in."""
ROUNDS_MAX: Final = 4
"""Each round leaves out what the one before has found damaged."""

Document = dict[str, Any]
OnProgress = Callable[[Document], None]


def repair(
    layout: StoreLayout,
    *,
    dry_run: bool = False,
    read_data: bool = False,
    clock: Clock | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Make a store sound again; the caller holds its lock and nobody has it open.

    Args:
        dry_run: leave everything as it is, and tell what would be lost.
        read_data: compare all content with its digests, too.
        on_progress: told how far it is (docs/cli.md, "Progress").

    Raises:
        NoSuchStore: there is neither a database nor an object file.
        NewerStore: the store is of a format that this version does not know.
        OSError: the disk refused; nothing has been replaced.
    """
    if not layout.objects.is_dir() and not layout.meta_db.exists():
        raise NoSuchStore(f"there is no store at {layout.root}: name it with --store DIR")
    end_replacement(layout)
    is_new = not layout.backups.exists()
    make_folder(layout.backups)
    work = layout.backups / ".repair"
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    try:
        told = on_progress or _ignore
        return _Repair(layout, work, clock or SystemClock(), dry_run, read_data, told).run()
    except OSError as error:
        if isinstance(error.filename, str):  # reached by a link of the repair's own
            made = str(StoreLayout(work / MADE).objects)
            error.filename = error.filename.replace(made, str(layout.objects))
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if dry_run and is_new:
            layout.backups.rmdir()


def repair_store(
    layout: StoreLayout, *, dry_run: bool, read_data: bool, on_progress: OnProgress | None = None
) -> tuple[Report, list[Problem]]:
    """Repair a store and open it once, so that all of it is as after any crash.

    Returns:
        The report, and the rules that the store breaks even now.

    Raises:
        As `repair`.
    """
    report = repair(layout, dry_run=dry_run, read_data=read_data, on_progress=on_progress)
    if dry_run:
        return report, []
    store = open_store(layout.root)
    try:
        store.collect()
    finally:
        store.close()
    return report, verify(layout, on_rule=_counting(on_progress or _ignore))


def _ignore(_: Document) -> None:
    """Be told how far it is, and do nothing."""


def _counting(on_progress: OnProgress) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        on_progress({"what": "checking rules", "done": done, "total": total, "unit": "rules"})

    return told


class _SoundCopy(NamedTuple):
    """A copy of meta.db of which all can be read.

    Args:
        name: of its file.
        rows: a plain database of its rows (salvage.py), indexed.
    """

    name: str
    rows: Path


class _Repair:
    """One repair, in a folder of its own."""

    def __init__(
        self,
        layout: StoreLayout,
        work: Path,
        clock: Clock,
        dry_run: bool,
        read_data: bool,
        on_progress: OnProgress,
    ) -> None:
        self._layout = layout
        self._work = work
        self._clock = clock
        self._dry_run = dry_run
        self._read_data = read_data
        self._on_progress = on_progress
        self._report = Report(source="")
        self._passed_over: dict[str, str] = {}
        self._moved: list[str] = []

    def run(self) -> Report:
        """Do it."""
        if not self._dry_run:
            self._tidy_objects()
        self._begin("reading the database")
        plain, source, troubles = self._source()
        damaged = nothing()
        for _ in range(ROUNDS_MAX):
            self._report = Report(source=source, troubles=troubles, passed_over=self._passed_over)
            for name in self._moved:
                self._report.right(f"moved to backups/{name}, as it is no object file")
            self._begin("making the new database")
            made = self._rebuild(plain, damaged)
            self._report.right("digests of volumes", settle(made, damaged.epochs))
            if not self._read_data or not damaged.add(search(made, self._on_progress)):
                break
        plain.close()
        self._tell_of_snapshots(made)
        self._drop_unreadable_notes()
        if not self._dry_run:
            kept = replace_database(self._layout, made.meta_db)
            if kept is not None:
                self._report.kept = str(kept.relative_to(self._layout.root))
        return self._report

    def _begin(self, what: str) -> None:
        """Tell what is done now; nobody knows how much that is."""
        self._on_progress({"what": what, "done": 0, "total": None, "unit": "rows"})

    def _tidy_objects(self) -> None:
        """Make the folders of object files that are missing; move out what is no object file."""
        make_folder(self._layout.objects)
        make_folder(self._layout.snapshots)
        folders = {self._layout.objects / f"{number:02x}" for number in range(FOLDERS)}
        for folder in folders:
            make_folder(folder)
        strays = [path for path in self._layout.objects.iterdir() if path not in folders]
        for folder in folders:
            strays += [path for path in folder.iterdir() if object_number(path) is None]
        for path in strays:
            place = self._layout.backups / f"stray-{path.parent.name}-{path.name}"
            os.rename(path, place)
            self._moved.append(place.name)

    # What the new database is made of.

    def _source(self) -> tuple[apsw.Connection, str, list[str]]:
        """Return the rows there are, what they come from, and what is wrong with meta.db."""
        plain = salvage.make_plain(self._work / "rows.db")
        read = self._salvaged(plain)
        salvage.index(plain)
        if not read.troubles:
            return plain, "meta.db", []
        sound = self._sound_copy
        if sound is None:
            note_unknown(plain, read.gaps)
            return plain, "salvage" if read.rows else "objects", read.troubles
        copy = f"copy {sound.name}"
        if not read.rows:
            plain.close()
            return apsw.Connection(str(sound.rows)), copy, read.troubles
        snapshots = {path.stem for path in self._layout.snapshots.glob("*.json")}
        is_filled = fill(plain, read.gaps, sound.rows, snapshots)
        return plain, f"salvage and {copy}" if is_filled else "salvage", read.troubles

    def _salvaged(self, plain: apsw.Connection) -> salvage.Salvaged:
        """Return what can be read of meta.db, and everything that is wrong with it."""
        if not self._layout.meta_db.exists():
            return salvage.all_lost("meta.db is missing")
        found = StoreLayout(self._work / "found")
        make_folder(found.root)
        path = found.meta_db
        lost = 0
        for name in (path.name, f"{path.name}-wal"):
            if (self._layout.root / name).exists():
                lost += salvage.copy_readable(self._layout.root / name, found.root / name)
        troubles = [f"{lost} bytes cannot be read from the disk"] if lost else []
        troubles += self._opened(path)
        with suppress(apsw.Error, StatefsError):  # one that is too damaged is read as it is
            migrate(found)
        try:
            read = salvage.salvage(path, plain)
        except apsw.Error as error:
            read = salvage.all_lost(str(error))
        return read._replace(troubles=[*troubles, *read.troubles])

    def _opened(self, path: Path) -> list[str]:
        """Return what SQLite finds wrong with a database; have it tell of its tables at least."""
        identity, version = 0, 0
        try:
            connection = apsw.Connection(str(path))
            try:
                identity = connection.pragma("application_id")
                version = connection.pragma("user_version")
                found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)")]
            finally:
                connection.close()
        except apsw.Error as error:
            found = [str(error)]
        if identity == APPLICATION_ID and version > FORMAT_VERSION:
            raise NewerStore(
                f"the store has format {version}, this statefs knows up to {FORMAT_VERSION}:"
                " install a newer statefs"
            )
        if (identity, version) == (0, 0) or not has_schema(path):
            put_schema_back(path)
        return [] if found == ["ok"] else found

    @cached_property
    def _sound_copy(self) -> _SoundCopy | None:
        """The newest copy of meta.db of which all can be read; why others cannot is noted."""
        for copy in copies(self._layout):
            try:
                return self._read_copy(copy)
            except (apsw.Error, OSError, StatefsError) as error:
                self._passed_over[copy.path.name] = str(error)
        return None

    def _read_copy(self, copy: Copy) -> _SoundCopy:
        """Read a copy. Raises apsw.Error, OSError, StatefsError: not all of it can be used."""
        layout = StoreLayout(self._work / "copy")
        shutil.rmtree(layout.root, ignore_errors=True)
        make_folder(layout.root)
        lost = salvage.copy_readable(copy.path, layout.meta_db)
        if lost:
            raise CorruptStore(f"{lost} bytes cannot be read from the disk")
        if problems := problems_of(layout.meta_db):
            raise CorruptStore(problems[0])
        migrate(layout)
        rows = self._work / "copy-rows.db"
        plain = salvage.make_plain(rows)
        try:
            read = salvage.salvage(layout.meta_db, plain)
            salvage.index(plain)
        finally:
            plain.close()
        if read.troubles:
            raise CorruptStore(read.troubles[0])
        return _SoundCopy(copy.path.name, rows)

    # The new database.

    def _rebuild(self, plain: apsw.Connection, damaged: Damaged) -> StoreLayout:
        """Make a database; return the store in which it can be looked at."""
        made = StoreLayout(self._work / MADE)
        shutil.rmtree(made.root, ignore_errors=True)
        make_folder(made.root)
        made.objects.symlink_to(self._layout.objects.absolute())
        objects = Objects(self._layout)
        store = listing.read_store(plain)
        newest = 0 if self._report.source == "meta.db" else objects.newest_epoch()
        epoch = listing.current_epoch(plain, store, newest)
        snapshots = listing.read_snapshots(plain, epoch, self._report)
        moments = Moments([*(each.epoch for each in snapshots), epoch])
        Rebuilding(
            plain, made.meta_db, store, snapshots, moments, objects, damaged, self._report,
            self._clock.now_ns(), is_old=self._report.source != "meta.db",
        ).run()  # fmt: skip
        return made

    def _tell_of_snapshots(self, made: StoreLayout) -> None:
        """Tell of snapshots that documents know and the database does not."""
        connection = apsw.Connection(str(made.meta_db))
        known = {name for (name,) in connection.execute("SELECT name FROM snapshots")}
        connection.close()
        told = {name for loss in self._report.losses for name in loss.snapshots if not loss.path}
        for path in sorted(self._layout.snapshots.glob("*.json")):
            if path.stem not in known | told:
                self._report.lose(Loss(what="a snapshot is lost", snapshots=[path.stem]))

    def _drop_unreadable_notes(self) -> None:
        """Remove notes of what restores changed that cannot be read: `undo` compares instead."""
        for path in sorted(self._layout.snapshots.glob("*.changed")):
            try:
                decode(path.read_bytes(), ChangedPaths)
            except (OSError, ValueError):
                self._report.right(f"removed snapshots/{path.name}, which could not be read")
                if not self._dry_run:
                    path.unlink()
