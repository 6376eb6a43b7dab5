"""What a folder of tasks says when it is opened, whatever has happened to its files.

A task's own file is written before `state.json`, so that it is right where both can be read. What
tells of everything is looked for in `state.json`, in its newest good backup, in the task files
alone. What is broken, gone or left out is a line of `losses`, and of the log: nothing is passed
over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

from statefs.clock import Clock
from statefs.durable import sync_folder
from statefs.errors import StateDamaged
from statefs.state.copies import place_aside
from statefs.state.documents import NoMigration
from statefs.state.task_backups import StateBackups, link_or_copy
from statefs.state.task_documents import Task, TaskState, WorkSession
from statefs.state.task_files import TaskFiles

READS_MAX: Final = 10
"""Of a folder with losses whose writer never rests; what is lost in all of them is lost."""

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

Source = Literal["state.json", "backup", "task files", "nothing"]


class Loss(NamedTuple):
    """Something that could not be read as it was.

    Args:
        path: of the file.
        message: one line, with file and line: what is wrong, and what came instead.
    """

    path: Path
    message: str


@dataclass
class Recovered:
    """What was found.

    Args:
        source: of the sessions, and of tasks without a good file of their own; "nothing" where the
            folder is new.
        path: of `state.json` or the backup that was read.
        tasks: by id, in the order in which they were made.
        sessions: by id.
        last_saved: what the source says.
        version: of the newest file.
        losses: all that could not be read as it was.
        lost: ids of tasks that nothing can be read of.
        broken: files that cannot be read.
        unsaved: ids of tasks that have no good file of their own.
        deleted: ids of tasks whose file left a trace.
        older: files of an older version, and that version.
        is_late: whether `state.json` says something else, or nothing.
    """

    source: Source = "nothing"
    path: Path | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    sessions: dict[str, WorkSession] = field(default_factory=dict)
    last_saved: datetime | None = None
    version: int = 0
    losses: list[Loss] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    broken: list[Path] = field(default_factory=list)
    unsaved: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    older: dict[Path, int] = field(default_factory=dict)
    is_late: bool = False

    def lose(self, path: Path, what: str) -> None:
        """Note a loss."""
        self.losses.append(Loss(path, f"{path}{what}"))

    @property
    def is_partial(self) -> bool:
        """Return whether something is lost that no file says any more."""
        return bool(self.lost) or (self.source == "task files")


def recovered(files: TaskFiles, backups: StateBackups) -> Recovered:
    """Read a folder; nothing is changed.

    Raises:
        NewerStore: a newer program has written in it.
        NoMigration: an older one has, and nothing leads from its version.
        OSError: the disk refused.
    """
    found = Recovered()
    base = _base(files, backups, found)
    broken = _read_task_files(files, found)
    known: dict[str, Task] = {}
    if base is not None:
        known = {task.id: task for task in base.tasks}
        found.sessions = {session.id: session for session in base.sessions}
        found.last_saved = base.last_saved
    versions = (task.version for task in (*found.tasks.values(), *known.values()))
    found.version = max(versions, default=0 if base is None else base.version)
    found.deleted = set(files.deleted()) - found.tasks.keys()
    found.is_late = found.source != "state.json" or _differ(found.tasks, known)
    _complete(files, found, known, broken)
    found.tasks = {task.id: task for task in sorted(found.tasks.values(), key=_age)}
    return found


def _age(task: Task) -> tuple[datetime, str]:
    return task.created_at or _LONG_AGO, task.id


def read_beside_a_writer(files: TaskFiles, backups: StateBackups) -> Recovered:
    """Read a folder that another process may write to; losses are of one state of it."""
    for _ in range(READS_MAX):
        before = _stamp(files.state)
        found = recovered(files, backups)
        if not found.losses or _stamp(files.state) == before:
            break
    return found


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _base(files: TaskFiles, backups: StateBackups, found: Recovered) -> TaskState | None:
    """Return what tells of everything, and note in `found` what that is."""
    state = _state_of(files, files.state, found)
    if state is not None:
        found.source, found.path = "state.json", files.state
        return state
    was_there = bool(found.broken)
    for path in backups.newest_first():
        state = _state_of(files, path, found)
        if state is not None:
            found.source, found.path = "backup", path
            found.lose(files.state, f": {path.name} of {state.last_saved} is read instead")
            return state
    if was_there or files.task_files():
        found.source = "task files"
        found.lose(files.state, ": made again from the task files; sessions are not known")
    return None


def _state_of(files: TaskFiles, path: Path, found: Recovered) -> TaskState | None:
    try:
        state, was_version = files.read_state(path)
    except FileNotFoundError:
        return None
    except NoMigration:  # sound, and lost if it were taken for broken
        raise
    except StateDamaged as error:
        found.losses.append(Loss(path, str(error)))
        if path == files.state:
            found.broken.append(path)
        return None
    if was_version is not None and path == files.state:
        found.older[path] = was_version
    return state


def _read_task_files(files: TaskFiles, found: Recovered) -> dict[str, str]:
    """Read all tasks that have a good file; return what is wrong with the others by their id."""
    broken = {}
    for task_id, path in files.task_files().items():
        try:
            found.tasks[task_id], was_version = files.read_task(path, task_id)
        except FileNotFoundError:
            continue  # a program that writes has just deleted it
        except NoMigration:
            raise
        except StateDamaged as error:
            broken[task_id] = str(error)
            found.broken.append(path)
        else:
            if was_version is not None:
                found.older[path] = was_version
    return broken


def _differ(tasks: dict[str, Task], known: dict[str, Task]) -> bool:
    return tasks.keys() != known.keys() or any(
        known[task_id] != task for task_id, task in tasks.items()
    )


def _complete(
    files: TaskFiles, found: Recovered, known: dict[str, Task], broken: dict[str, str]
) -> None:
    """Take what has no good file of its own from the source, and note what is lost."""
    has_folder = files.tasks.is_dir()
    for task_id, message in broken.items():
        if task_id in known:
            found.tasks[task_id] = known[task_id]
            found.unsaved.add(task_id)
            what = f"; the task is as {_name(found)} has it"
            found.losses.append(Loss(files.task(task_id), message + what))
        else:
            found.lost.add(task_id)
            found.losses.append(Loss(files.task(task_id), f"{message}; the task is lost"))
    for task_id in known.keys() - found.tasks.keys() - found.deleted:
        if found.source == "state.json" or not has_folder:
            found.tasks[task_id] = known[task_id]
            found.unsaved.add(task_id)
            what = f" is gone; the task is as {_name(found)} has it"
        else:
            # Since the backup was made, the task may well have been deleted.
            what = f" is not there; the task that {_name(found)} has is left out"
        found.lose(files.task(task_id), what)


def _name(found: Recovered) -> str:
    return found.path.name if found.path is not None else "nothing"


def set_aside(found: Recovered, files: TaskFiles, clock: Clock) -> Iterator[tuple[Path, Path]]:
    """Move what is broken aside, durably; return where each file was, and is.

    A task that is to get a good file keeps its broken one until then: without any, a kill now would
    have the next recovery take it for a task that was deleted.
    """
    stay = {files.task(task_id) for task_id in found.unsaved}
    for path in found.broken:
        aside = place_aside(path, clock)
        if path in stay:
            link_or_copy(path, aside)
        else:
            os.rename(path, aside)
        os.chmod(aside, 0o600)
        sync_folder(path.parent)
        yield path, aside
