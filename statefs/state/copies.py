"""What a file was before: copies beside it in `backups/`, or a snapshot in a mounted state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from statefs.clock import Clock, iso_time
from statefs.durable import make_folder, sync_folder, write_file
from statefs.state.snapshots import mounted_folder

FOLDER: Final = "backups"
MIGRATION: Final = "before-migration"
"""Begins the label of a snapshot that stands for the copies."""
KEPT_COPIES: Final = 10
"""Of each file: enough to go back some days, few enough to be no burden."""

_NAME: Final = re.compile(r"(?P<stem>.+)\.(?P<time>\d{8}T\d{6}\.\d{6}Z)(?P<suffix>\.[^.]*)?")


def keep_before_migration(path: Path, data: bytes, clock: Clock) -> None:
    """Keep `data`, the content of a file of an older version, before it is replaced.

    Raises:
        OSError: there is neither a copy nor a snapshot; nothing may be changed then.
    """
    keep_before(path, data, clock, MIGRATION)


def keep_before(path: Path, data: bytes, clock: Clock, label: str) -> None:
    """Keep `data`, the content of a file that is about to be replaced, as a copy or in a snapshot.

    Args:
        label: of the snapshot, before the time.

    Raises:
        OSError: there is neither a copy nor a snapshot; nothing may be changed then.
    """
    mounted = mounted_folder(path.parent)
    if mounted is None:
        keep_copy(path, data, clock)
    else:
        mounted.take_snapshot(f"{label}-{stamp(clock)}")


def keep_copy(path: Path, data: bytes, clock: Clock) -> Path:
    """Keep `data`, the content of a file that is about to change; only the newest ten stay.

    Returns:
        the copy, durable.

    Raises:
        OSError: the disk refused; nothing may be changed then.
    """
    folder = path.parent / FOLDER
    if not folder.is_dir():
        make_folder(folder)
        sync_folder(path.parent)
    copy = folder / f"{path.stem}.{stamp(clock)}{path.suffix}"
    write_file(copy, data)
    for old in copies_of(path)[KEPT_COPIES:]:
        old.unlink(missing_ok=True)
    return copy


def copies_of(path: Path) -> list[Path]:
    """Return the copies of a file, the newest first."""
    return stamped_files(path.parent / FOLDER, path.stem, path.suffix)


def all_copies(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the copies in a folder by the stem of the file that each was of, there or not."""
    found: dict[str, list[Path]] = {}
    kept = folder / FOLDER
    for each in sorted(kept.iterdir()) if kept.is_dir() else ():
        hit = _NAME.fullmatch(each.name)
        if hit and (hit["suffix"] or "") == suffix:
            found.setdefault(hit["stem"], []).append(each)
    return found


def stamped_files(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Return the files `STEM.TIME` with a suffix in a folder, the newest first."""
    found = []
    for each in folder.iterdir() if folder.is_dir() else ():
        hit = _NAME.fullmatch(each.name)
        if hit and hit["stem"] == stem and (hit["suffix"] or "") == suffix:
            found.append((hit["time"], each))
    return [path for _, path in sorted(found, reverse=True)]


def place_aside(path: Path, clock: Clock) -> Path:
    """Return where a broken file may be moved to, so that nobody takes it for a good one."""
    return path.with_name(f"{path.name}.broken-{stamp(clock)}")


def stamp(clock: Clock) -> str:
    """Return the time for a file name: ordered as text, without characters that need quotes."""
    text = iso_time(clock.now_ns()).replace("-", "").replace(":", "")
    return text if "." in text else text.replace("Z", ".000000Z")
