"""Putting a new meta.db in the place of the old one, so that a store has one of the two, whole.

The log of the old database must never be read with the new one, nor the old one without its log:
two names cannot change at once. So the old one goes to `backups/` first, under names that say that
its replacement is not done. Whoever opens the store meanwhile, or after a crash, comes to the end
of it: the new database is there, or the old one is put back.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from statefs.durable import is_on_read_only, sync_folder
from statefs.layout import StoreLayout

NAMES: Final = ("meta.db", "meta.db-wal", "meta.db-shm")
"""In this order they are put away; in the other one they are put back."""
UNDER_WAY: Final = "replacing-"
DONE: Final = "replaced-"
_PUT_AWAY: Final = re.compile(rf"{UNDER_WAY}[\d.T-]+Z\.db(-wal|-shm)?")
_MOMENT: Final = "%Y-%m-%dT%H-%M-%S"


def replace_database(layout: StoreLayout, new: Path) -> Path | None:
    """Put a new database in the place of the old one, which is kept.

    Args:
        new: on the filesystem of the store, and without a log.

    Returns:
        Where the old one, or its log, is kept; None where there was neither.

    Raises:
        OSError: the disk refused; whoever opens the store next finds one of the two.
    """
    with new.open("rb") as file:
        os.fsync(file.fileno())
    moment = _free_moment(layout)
    for name in NAMES:
        path = layout.root / name
        if path.exists():
            _move(path, layout.backups / _kept_name(UNDER_WAY, moment, name))
    os.rename(new, layout.meta_db)
    sync_folder(layout.root)
    return next(iter(_note_done(layout)), None)


def end_replacement(layout: StoreLayout) -> None:
    """Come to the end of a replacement that was interrupted; the caller holds the store's lock.

    On a read-only filesystem, where nothing can be done, the store stays without a database.

    Raises:
        OSError: the disk refused; it may be tried again.
    """
    put_away = _under_way(layout)
    if not put_away or is_on_read_only(layout.root):
        return
    if layout.meta_db.exists():
        sync_folder(layout.root)  # the new one's name first
        _note_done(layout)
        return
    for path in reversed(put_away):
        _move(path, layout.root / _name_of(path))


def _move(old: Path, new: Path) -> None:
    """Give a file of a store another name, durably, before anything else is renamed."""
    os.rename(old, new)
    for folder in (new.parent, old.parent):
        sync_folder(folder)


def _note_done(layout: StoreLayout) -> list[Path]:
    """Let the names of what was put away say that it has been replaced; return them."""
    done = []
    for path in _under_way(layout):
        done.append(path.with_name(path.name.replace(UNDER_WAY, DONE, 1)))
        os.rename(path, done[-1])
    sync_folder(layout.backups)
    return done


def _under_way(layout: StoreLayout) -> list[Path]:
    """Return what has been put away and not been replaced, as far as is known, as in NAMES."""
    if layout.backups.is_symlink() or not layout.backups.is_dir():
        return []
    found = [path for path in layout.backups.iterdir() if _PUT_AWAY.fullmatch(path.name)]
    return sorted(found, key=lambda path: NAMES.index(_name_of(path)))


def _kept_name(state: str, moment: str, name: str) -> str:
    return f"{state}{moment}Z{name.removeprefix('meta')}"


def _name_of(path: Path) -> str:
    """Return the name that a file which was put away had in the store."""
    return f"meta{path.name[path.name.index('.db') :]}"


def _free_moment(layout: StoreLayout) -> str:
    """Return the time, in as many digits as no other replacement's files have in their names."""
    now = datetime.now(UTC)
    moment = now.strftime(_MOMENT)
    is_taken = any(layout.backups.glob(f"{DONE}{moment}Z*"))
    return now.strftime(f"{_MOMENT}.%f") if is_taken else moment
