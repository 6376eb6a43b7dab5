"""Bringing the files of tasks from one version to the next, and back again.

Everything is read and migrated in memory before the first file is written, so that a migration that
cannot be done changes nothing. What the files were is kept in a folder, or a snapshot, that the
audit log names; a write that fails, and `rollback_migration`, put it back from there.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from statefs.clock import Clock, SystemClock
from statefs.durable import make_folder, sync_folder
from statefs.errors import NotInStore
from statefs.state.audit import DONE, FAILED, AuditLog, read_actions
from statefs.state.copies import FOLDER as BACKUPS
from statefs.state.copies import MIGRATION, stamp
from statefs.state.documents import read_bytes
from statefs.state.json_store import AUDIT, LOCK, made_folder
from statefs.state.locks import ProcessLock
from statefs.state.snapshots import MountedFolder, mounted_folder
from statefs.state.task_backups import link_or_copy
from statefs.state.task_files import STATE, TaskFiles

MIGRATE: Final = "migrate"
ROLLBACK: Final = "rollback"

_log = logging.getLogger(__name__)


class RolledBack(NamedTuple):
    """What a rollback has done.

    Args:
        source: the folder that the files came from.
        restored: how many are as they were.
        aside: where the files are that it replaced.
    """

    source: Path
    restored: int
    aside: Path


class _Migration(NamedTuple):
    """What the audit log says of one.

    Args:
        number: of its record.
        to: the version.
        kept: where the files are that it replaced.
        is_done: whether it came to its end.
    """

    number: int
    to: int
    kept: str
    is_done: bool


def migrated(
    files: TaskFiles,
    older: dict[Path, int],
    write: Callable[[], None],
    clock: Clock,
    mounted: MountedFolder | None,
) -> None:
    """Have `write` replace files of an older version, after they were kept and that was noted.

    Raises:
        OSError: the disk refused; all files are as they were, or the error has a note that says
            which could not be put back.
    """
    kept = _kept_before(files, len(older)) or _keep(files, clock, mounted)
    details = {"from": sorted(set(older.values())), "to": files.version, "files": len(older)}
    log = AuditLog(files.folder / AUDIT, clock)
    with log, log.action(MIGRATE, **details, kept=kept):
        try:
            write()
        except Exception as error:
            try:
                _put_back(files, _source(files.folder, kept, mounted), None)
            except OSError as second:
                error.add_note(f"what the files were is in {kept}, and not back: {second}")
            raise
    _log.info("%s: %d files brought to version %s", files.folder, len(older), files.version)


def rollback_migration(folder: str | os.PathLike[str], clock: Clock | None = None) -> RolledBack:
    """Put back what the files of a closed store were before its last migration.

    What it replaces, and tasks that were made since, lie in a folder in `backups/` then. A rollback
    that was cut short is gone on with by the next one.

    Raises:
        NotInStore: no migration is left that could be rolled back.
        StoreLocked: a program has the store open.
        OSError: the disk refused; try again.
    """
    files, clock = TaskFiles(Path(folder)), clock or SystemClock()
    if not files.folder.is_dir():
        raise NotInStore(f"there is no folder {folder}")
    with ProcessLock(files.folder / LOCK), AuditLog(files.folder / AUDIT, clock) as audit:
        last = _last_migration(files.folder / AUDIT)
        if last is None:
            raise NotInStore(f"no migration of {folder} is left that could be rolled back")
        source = _source(files.folder, last.kept, mounted_folder(files.folder))
        if not source.is_dir():
            raise NotInStore(f"what {folder} was before its migration is no longer in {source}")
        with audit.action(ROLLBACK, of=last.number, kept=last.kept):
            aside = files.folder / BACKUPS / f"before-rollback-{stamp(clock)}"
            return RolledBack(source, _put_back(files, source, aside), aside)


def _kept_before(files: TaskFiles, older: int) -> str | None:
    """Return where a migration that was cut short between two files has kept them all."""
    if older == len(_all_files(files)):
        return None  # none is replaced yet, and they may have changed since
    last = _last_migration(files.folder / AUDIT)
    return last.kept if last is not None and not last.is_done and last.to == files.version else None


def _keep(files: TaskFiles, clock: Clock, mounted: MountedFolder | None) -> str:
    """Keep all files as they are, and return where: what `_source` understands."""
    name = f"{MIGRATION}-{stamp(clock)}"
    if mounted is not None:
        return f"snapshots/{mounted.take_snapshot(name).name}"
    made_folder(files.folder / BACKUPS)
    under_way = files.folder / BACKUPS / f".{name}.new"
    for each in (under_way, under_way / files.tasks.name):
        make_folder(each)
    for path in _all_files(files):
        link_or_copy(path, under_way / path.relative_to(files.folder))
    for each in (under_way / files.tasks.name, under_way):
        sync_folder(each)
    os.rename(under_way, files.folder / BACKUPS / name)
    sync_folder(files.folder / BACKUPS)
    for unfinished in (files.folder / BACKUPS).glob(f".{MIGRATION}-*.new"):
        shutil.rmtree(unfinished)
    return f"{BACKUPS}/{name}"


def _source(folder: Path, kept: str, mounted: MountedFolder | None) -> Path:
    if kept.startswith("snapshots/") and mounted is not None:
        return mounted.mount_point / kept / mounted.place
    return folder / kept


def _all_files(files: TaskFiles) -> list[Path]:
    state = [files.state] if files.state.exists() else []
    return [*state, *sorted(files.task_files().values())]


def _last_migration(path: Path) -> _Migration | None:
    """Return the newest migration that came to its end, or to none, and is not rolled back."""
    found: list[_Migration] = []
    for begun, outcome, _ in read_actions(path):
        details = begun.details
        if begun.what == MIGRATE and outcome != FAILED:  # then its files were put back at once
            found.append(_Migration(begun.number, details["to"], details["kept"], outcome == DONE))
        elif begun.what == ROLLBACK and outcome == DONE:
            found = [migration for migration in found if migration.kept != details["kept"]]
    return found[-1] if found else None


def _put_back(files: TaskFiles, source: Path, aside: Path | None) -> int:
    """Make the files what they are in `source`, `state.json` last; return how many those are.

    Args:
        files: of the store.
        source: an earlier state of its folder.
        aside: gets what is replaced, as in the folder itself; None throws it away.
    """
    wanted = {path.relative_to(source) for path in _all_files(TaskFiles(source))}
    present = {path.relative_to(files.folder) for path in _all_files(files)}
    for place in sorted(present - wanted):
        _set_aside(files.folder, place, aside)
        (files.folder / place).unlink()
    for place in sorted(wanted, key=lambda place: place.name == STATE and len(place.parts) == 1):
        path = files.folder / place
        if place in present and read_bytes(path) == read_bytes(source / place):
            continue
        if place in present:
            _set_aside(files.folder, place, aside)
        second = path.with_name(f".{path.name}.new")
        second.unlink(missing_ok=True)
        link_or_copy(source / place, second)  # a disk that is full has room for a link
        os.rename(second, path)
    for each in (files.tasks, files.folder):
        sync_folder(each)
    return len(wanted)


def _set_aside(folder: Path, place: Path, aside: Path | None) -> None:
    if aside is not None:
        made_folder((aside / place).parent)
        link_or_copy(folder / place, aside / place)
