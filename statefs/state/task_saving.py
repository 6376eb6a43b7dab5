"""When what is in memory goes into which file; and what is counted and told of that.

A task's own file is written first, then `state.json`, which tells of all: see `task_recovery` for
what a kill between the two comes to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from statefs.clock import Clock
from statefs.durable import write_file
from statefs.errors import StatefsError
from statefs.state.task_backups import StateBackups
from statefs.state.task_documents import moment_of
from statefs.state.task_events import TaskEvents, TasksSaved, TasksSaveFailed
from statefs.state.task_files import TaskFiles
from statefs.state.task_health import Saves, Situation
from statefs.state.task_memory import TaskMemory
from statefs.state.task_recovery import Recovered

_log = logging.getLogger(__name__)


class TaskSaving:
    """Writes what one memory holds; whoever calls it holds the store's lock.

    Every save that fails is told, and raises what the disk said; what it was to save stays unsaved.

    Args:
        files: of the store.
        version: of its tasks.
        backups: of its `state.json`.
        clock: for `last_saved`.
        events: through which saves are told.
    """

    def __init__(
        self,
        files: TaskFiles,
        version: int,
        backups: StateBackups,
        clock: Clock,
        events: TaskEvents,
    ) -> None:
        self.memory = TaskMemory()
        self.last_saved: datetime | None = None
        self._files = files
        self._version = version
        self._backups = backups
        self._clock = clock
        self._events = events
        self._saves = Saves()
        self._overwrites = 0

    def adopt(self, found: Recovered) -> None:
        """Take over what the files say; what is unsaved stays as it is."""
        memory = TaskMemory()
        for task in found.tasks.values():
            memory.take_read(task)
        older = found.tasks if found.older else {}
        memory.unsaved = {id_ for id_ in older if self._files.task(id_) in found.older}
        memory.unsaved |= found.unsaved
        memory.sessions, memory.deleted = found.sessions, found.deleted
        memory.changes = int(found.is_late)
        memory.take_unsaved(self.memory)
        self.memory, self.last_saved = memory, found.last_saved

    def save_all(self) -> None:
        """Write what is not in its file, and `state.json`."""
        with self._told():
            for task_id in sorted(self.memory.unsaved):
                self._write_task(task_id)
            self._write_state()

    def save_or_log(self) -> None:
        """Save all; what cannot be saved stays in memory for the next time, which is logged."""
        try:
            self.save_all()
        except (OSError, StatefsError) as error:
            _log.error("%s: what is unsaved stays in memory: %s", self._files.folder, error)

    def save_state(self) -> None:
        """Write `state.json`."""
        with self._told():
            self._write_state()

    def save_task(self, task_id: str) -> None:
        """Write the file of a task, and `state.json` where that is due."""
        with self._told():
            self._write_task(task_id)
            self._write_state_if_due()

    def delete_task(self, task_id: str) -> None:
        """Delete the file of a task, and write `state.json` where that is due."""
        with self._told():
            if self._files.task(task_id).exists():
                self._files.delete_task(task_id)
            self.memory.remove(task_id)
            self._write_state_if_due()

    def save_file(self, path: Path, data: bytes) -> None:
        """Write another file."""
        with self._told():
            write_file(path, data)

    def unsaved(self) -> int:
        """Return how many changes some file does not have."""
        return max(len(self.memory.unsaved), self.memory.changes)

    def situation(self, load_seconds: float) -> Situation:
        """Return how things are, for checks and figures."""
        age_seconds = None
        if self.last_saved is not None:
            now = moment_of(self._clock.now_ns())
            age_seconds = (now - self.last_saved).total_seconds()
        return Situation(
            self.unsaved(),
            age_seconds,
            self._overwrites,
            self._backups.count(),
            self._saves,
            load_seconds,
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except (OSError, StatefsError) as error:
            self._saves.note_failure(str(error))
            self._events.tell(TasksSaveFailed, error=str(error))
            raise
        seconds = time.perf_counter() - began
        self._saves.note(seconds)
        self._events.tell(TasksSaved, tasks=len(self.memory.lines), seconds=seconds)

    def _write_task(self, task_id: str) -> None:
        self._files.write_task(task_id, self.memory.lines[task_id])
        self.memory.unsaved.discard(task_id)

    def _write_state_if_due(self) -> None:
        if self.memory.is_state_due():
            self._write_state()

    def _write_state(self) -> None:
        now = moment_of(self._clock.now_ns())
        self._overwrites += self._backups.keep()
        write_file(self._files.state, self.memory.text(self._version, now))
        self._files.forget_deleted(self.memory.deleted)
        self.memory.note_written()
        self.last_saved = now
