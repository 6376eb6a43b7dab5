"""Whether task persistence is well: checks, figures, and what somebody should look at."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from statefs.state.task_files import TaskFiles
from statefs.units import count_text, duration_text, size_text

REMEMBERED_SAVES: Final = 100
"""Of which the failure rate and the average are: an old failure is no reason for an alert."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be wrong.

    Args:
        check: its name.
        ok: whether it is well.
        what: how it is, in words.
    """

    check: str
    ok: bool
    what: str


class TaskLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is still well; 0 sets no limit.

    Args:
        min_free_bytes: on the disk.
        max_unsaved_seconds: since the last save, while something is unsaved.
        max_failure_rate: of the last hundred saves, from 0 to 1.
        max_save_seconds: that one save may take.
    """

    min_free_bytes: int = 64 * 1024 * 1024
    max_unsaved_seconds: float = 300.0
    max_failure_rate: float = 0.1
    max_save_seconds: float = 5.0


class PersistenceMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What saving and loading costs.

    Args:
        saves, save_failures: of this process.
        failure_rate: of its last hundred saves, from 0 to 1.
        last_save_seconds, average_save_seconds: of the good ones among these; None where there are
            none.
        load_seconds: the last load took.
        disk_bytes: that the files of the store take.
        tasks, logs, reports, backups: how many files there are.
    """

    saves: int
    save_failures: int
    failure_rate: float
    last_save_seconds: float | None
    average_save_seconds: float | None
    load_seconds: float
    disk_bytes: int
    tasks: int
    logs: int
    reports: int
    backups: int


class Saves:
    """Counts saves; who calls it holds the store's lock."""

    def __init__(self) -> None:
        self.count = 0
        self.failures = 0
        self.last_error = ""
        self._recent: deque[float | None] = deque(maxlen=REMEMBERED_SAVES)

    def note(self, seconds: float) -> None:
        """Count a save."""
        self.count += 1
        self.last_error = ""
        self._recent.append(seconds)

    def note_failure(self, error: str) -> None:
        """Count a save that failed."""
        self.failures += 1
        self.last_error = error
        self._recent.append(None)

    def recent_seconds(self) -> list[float]:
        """Return what the good ones among the last hundred took, the oldest first."""
        return [seconds for seconds in self._recent if seconds is not None]

    def failure_rate(self) -> float:
        """Return which part of the last hundred failed."""
        return self._recent.count(None) / len(self._recent) if self._recent else 0.0


class Situation(NamedTuple):
    """How a store is, besides what its folder shows.

    Args:
        unsaved: how many changes are in memory alone.
        save_age_seconds: since the last save; None before the first.
        overwrites: of `state.json` by this process.
        backups: that there are.
        saves: of this process.
        load_seconds: the last load took.
    """

    unsaved: int
    save_age_seconds: float | None
    overwrites: int
    backups: int
    saves: Saves
    load_seconds: float


def checks_of(folder: Path, now: Situation, limits: TaskLimits) -> list[Check]:
    """Return every check, always in the same order."""
    is_there = folder.is_dir()
    return [
        Check(check="directory", ok=is_there, what=str(folder) if is_there else "it is gone"),
        _writable(folder),
        _disk(folder, limits),
        _last_save(now, limits),
        Check(
            check="backups", ok=now.backups > 0 or not now.overwrites, what=count_text(now.backups)
        ),
    ]


def _writable(folder: Path) -> Check:
    is_writable = os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
    return Check(check="writable", ok=is_writable, what="yes" if is_writable else "no")


def _disk(folder: Path, limits: TaskLimits) -> Check:
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return Check(check="disk", ok=False, what=str(error.strerror))
    free_bytes = disk.f_bavail * disk.f_frsize
    what = f"{size_text(free_bytes)} of {size_text(disk.f_blocks * disk.f_frsize)} free"
    return Check(check="disk", ok=free_bytes >= limits.min_free_bytes, what=what)


def _last_save(now: Situation, limits: TaskLimits) -> Check:
    age = now.save_age_seconds
    what = "never" if age is None else f"{duration_text(age)} ago"
    is_old = now.unsaved > 0 and 0 < limits.max_unsaved_seconds < (age or 0)
    if now.unsaved:
        what += f", {count_text(now.unsaved)} unsaved"
    if now.saves.last_error:
        what += f"; the last one failed: {now.saves.last_error}"
    return Check(check="last save", ok=not is_old and not now.saves.last_error, what=what)


def alerts_of(checks: Iterable[Check], now: Situation, limits: TaskLimits) -> list[str]:
    """Return a line for each thing that somebody should look at."""
    found = [f"{check.check}: {check.what}" for check in checks if not check.ok]
    rate, recent = now.saves.failure_rate(), now.saves.recent_seconds()
    if 0 < limits.max_failure_rate < rate:
        found.append(f"saves: {rate:.0%} of the last ones failed")
    if recent and 0 < limits.max_save_seconds < recent[-1]:
        found.append(f"saves: the last one took {duration_text(recent[-1])}")
    return found


def metrics_of(files: TaskFiles, now: Situation) -> PersistenceMetrics:
    """Return the figures of a store; looks at each of its files."""
    recent = now.saves.recent_seconds()
    return PersistenceMetrics(
        saves=now.saves.count,
        save_failures=now.saves.failures,
        failure_rate=now.saves.failure_rate(),
        last_save_seconds=recent[-1] if recent else None,
        average_save_seconds=sum(recent) / len(recent) if recent else None,
        load_seconds=now.load_seconds,
        disk_bytes=_bytes_below(files.folder),
        tasks=len(files.task_files()),
        logs=len(files.log_files()),
        reports=len(files.report_files()),
        backups=now.backups,
    )


def _bytes_below(folder: Path) -> int:
    """Return what all files take on the disk; one with two names once."""
    sizes: dict[int, int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue  # replaced at this moment
            sizes[status.st_ino] = status.st_blocks * 512  # the unit of stat(2) everywhere
    return sum(sizes.values())
