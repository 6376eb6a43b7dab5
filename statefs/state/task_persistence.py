"""The tasks of a program, saved when they begin, change and end: one object for one folder.

Owns opening, closing and who may do what when. What is written when is in `task_saving`, what the
files say after a kill or damage in `task_recovery`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from statefs.clock import Clock, SystemClock
from statefs.errors import NotInStore, UsageError
from statefs.state.autosave import Autosave, InterruptibleLock, SaveOnSigterm, SystemTimer, Timer
from statefs.state.documents import Migration
from statefs.state.json_store import LOCK, made_folder
from statefs.state.locks import ProcessLock
from statefs.state.snapshots import mounted_folder
from statefs.state.task_backups import StateBackups
from statefs.state.task_documents import Report, Task, TaskState, WorkSession, moment_of
from statefs.state.task_events import (
    AlertsChanged,
    AutosaveBegun,
    TaskEvents,
    TaskListener,
    TasksLoaded,
)
from statefs.state.task_files import TaskFiles, log_bytes, report_bytes
from statefs.state.task_health import (
    Check,
    PersistenceMetrics,
    TaskLimits,
    alerts_of,
    checks_of,
    metrics_of,
)
from statefs.state.task_loading import load_to_read, load_to_write
from statefs.state.task_saving import TaskSaving

PATH_VARIABLE: Final = "STATE_PATH"
AUTOSAVE_SECONDS: Final = 30.0

_log = logging.getLogger(__name__)


class StatePersistence:
    """The tasks, sessions, logs and reports of a program; threads share one object.

    Opening it reads everything, puts right what is broken as far as it can be, and starts autosave.
    `recovery` tells what was found.

    Args:
        folder: made, with mode 0700, where there is none; None takes STATE_PATH of the environment.
        version: of the program's tasks, counted up when what is in them changes.
        migrations: by the version each takes; they get and return one task.
        autosave_seconds: between two looks at whether something is unsaved; 0 never looks.
        listeners: are told of every event, that of loading among them.
        limits: beyond which there are alerts.
        read_only: change nothing, take no lock, and read anew with each `load_state`.
        clock: for times.
        timer: that autosave waits with.

    Raises:
        StoreLocked: another process has the folder open to write.
        NewerStore: a newer program has written there.
        StateDamaged: an older one has, and no migration leads from its version.
        UsageError: no folder is given, and STATE_PATH is not set.
        OSError: the disk refused.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
        autosave_seconds: float = AUTOSAVE_SECONDS,
        listeners: Sequence[TaskListener] = (),
        limits: TaskLimits | None = None,
        read_only: bool = False,
        clock: Clock | None = None,
        timer: Timer | None = None,
    ) -> None:
        self.folder = _folder_of(folder)
        self.version = version
        self._limits = limits or TaskLimits()
        self._clock = clock or SystemClock()
        self._events = TaskEvents(self._clock)
        for listener in listeners:
            self._events.listen(listener)
        self._files = TaskFiles(self.folder, version, migrations or {})
        self._busy = InterruptibleLock()
        self._alerts: list[str] = []
        self._is_open = True
        self._lock: ProcessLock | None = None
        self._sigterm: SaveOnSigterm | None = None
        self._autosave: Autosave | None = None
        if read_only:
            if not self.folder.is_dir():
                raise NotInStore(f"there is no folder {self.folder}")
        else:
            made_folder(self.folder)
            self._lock = ProcessLock(self.folder / LOCK)
            self._lock.acquire()
        try:
            self._mounted = mounted_folder(self.folder)
            self._backups = StateBackups(self._files.state, self._clock, self._mounted)
            self._saving = TaskSaving(
                self._files, version, self._backups, self._clock, self._events
            )
            self._load()
        except BaseException:
            self._release()
            raise
        if self._lock is not None and autosave_seconds > 0:
            self._autosave = Autosave(autosave_seconds, self.autosave, timer or SystemTimer())

    def listen(self, listener: TaskListener) -> None:
        """Have a listener be told of every event from now on, in the thread that saves.

        It may ask the store, and must not wait for another thread that does.
        """
        self._events.listen(listener)

    def load_state(self) -> TaskState:
        """Read everything from the files again, and return it; what is unsaved stays as it is.

        Raises:
            NewerStore, OSError: see the class.
        """
        with self._busy:
            self._require_open()
            self._load()
            return self.state()

    def state(self) -> TaskState:
        """Return everything as it is in memory: copies of the caller's own."""
        with self._busy:
            self._require_open()
            return self._saving.memory.state(self.version, self._saving.last_saved)

    def task(self, task_id: str) -> Task:
        """Return one task as it is in memory: a copy of the caller's own.

        Raises:
            NotInStore: there is none of that id.
        """
        with self._busy:
            self._require_open()
            task = self._saving.memory.task(task_id)
        if task is None:
            raise NotInStore(f"{self.folder} has no task '{task_id}'")
        return task

    def load_tasks(self) -> list[Task]:
        """Read everything from the files again, and return the tasks; see `load_state`."""
        return self.load_state().tasks

    def save_state(self) -> None:
        """Write everything that is not in its file, and `state.json`; all is durable then.

        Raises:
            OSError: the disk refused; everything is in memory, and autosave tries again.
        """
        with self._busy:
            self._require_writable()
            self._saving.save_all()

    def save_task(self, task: Task) -> None:
        """Save a task, new or changed; it is durable then. Its times are set as its status is.

        Raises:
            UsageError: its id cannot name a task, or it has a value of a wrong type.
            OSError: the disk refused; the task is in memory, and autosave tries again.
        """
        with self._busy:
            self._note(task)
            self._saving.save_task(task.id)

    def update_task(self, task: Task) -> None:
        """Take over a task that has changed; save it at once where it is new or its status changed.

        Else it is saved by autosave, or whatever saves before that: for what changes often, such as
        progress.

        Raises:
            UsageError, OSError: see `save_task`.
        """
        with self._busy:
            if self._note(task):
                self._saving.save_task(task.id)

    def delete_task(self, task_id: str) -> None:
        """Delete a task; that is durable then.

        Raises:
            NotInStore: there is none of that id.
            OSError: the disk refused.
        """
        with self._busy:
            self._require_writable()
            if task_id not in self._saving.memory.lines:
                raise NotInStore(f"{self.folder} has no task '{task_id}'")
            self._saving.delete_task(task_id)

    def save_session(self, session: WorkSession) -> None:
        """Save a session, new or changed, in `state.json`; it is durable then.

        Raises:
            UsageError, OSError: see `save_task`.
        """
        with self._busy:
            self._require_writable()
            self._files.log(session.id)
            session.started_at = session.started_at or moment_of(self._clock.now_ns())
            self._saving.memory.put_session(session)
            self._saving.save_state()

    def save_session_log(self, session_id: str, text: str) -> None:
        """Write the log of a session in place of what it was; it is durable then.

        Raises:
            UsageError: the id cannot name one, or the text is not UTF-8.
            OSError: the disk refused; the log is as it was.
        """
        with self._busy:
            self._require_writable()
            self._saving.save_file(self._files.log(session_id), log_bytes(text))

    def load_session_log(self, session_id: str) -> str:
        """Return the log of a session.

        Raises:
            NotInStore: there is none.
        """
        with self._busy:
            self._require_open()
        return self._files.read_log(session_id)

    def save_report(self, report_id: str, report: Any) -> None:
        """Write a report, anything that JSON holds, in place of what it was; it is durable then.

        Raises:
            UsageError: the id cannot name one, or JSON does not hold it.
            OSError: the disk refused; the report is as it was.
        """
        data = report_bytes(report_id, report, moment_of(self._clock.now_ns()))
        with self._busy:
            self._require_writable()
            self._saving.save_file(self._files.report(report_id), data)

    def load_report(self, report_id: str) -> Report:
        """Return a report and when it was saved.

        Raises:
            NotInStore: there is none.
            StateDamaged, NewerStore: its file cannot be understood; the message names it.
        """
        with self._busy:
            self._require_open()
        return self._files.read_report(report_id)

    def autosave(self) -> bool:
        """Save what is unsaved, if anything is, and look for alerts; return whether all is saved.

        Raises nothing: what fails is told and logged, and tried again the next time.
        """
        with self._busy:
            if not self._is_open or self._lock is None:
                return True
            if self._saving.unsaved():
                self._events.tell(AutosaveBegun)
                self._saving.save_or_log()
            alerts = self.alerts()
            if alerts != self._alerts:
                self._alerts = alerts
                for alert in alerts:
                    _log.warning("%s: %s", self.folder, alert)
                self._events.tell(AlertsChanged, alerts=tuple(alerts))
            return not self._saving.unsaved()

    def save_on_sigterm(self) -> None:
        """From now on have SIGTERM save what is unsaved, and then do what it did before.

        Raises:
            UsageError: this is not the main thread, which alone can handle signals.
        """
        self._require_writable()
        if self._sigterm is None:
            self._sigterm = SaveOnSigterm(self._busy, self.autosave)

    def health(self) -> list[Check]:
        """Return the checks: directory, writable, disk, last save, backups."""
        with self._busy:
            return checks_of(self.folder, self._saving.situation(self._load_seconds), self._limits)

    def metrics(self) -> PersistenceMetrics:
        """Return what saving and loading costs and how much there is; looks at every file."""
        with self._busy:
            return metrics_of(self._files, self._saving.situation(self._load_seconds))

    def alerts(self) -> list[str]:
        """Return a line for each thing that somebody should look at; none where all is well."""
        with self._busy:
            now = self._saving.situation(self._load_seconds)
            return alerts_of(checks_of(self.folder, now, self._limits), now, self._limits)

    def shutdown(self) -> None:
        """Save what is unsaved, end autosave, and let go of the folder; harmless the second time.

        Raises:
            OSError: the disk refused; the store stays open, and this may be tried again.
        """
        with self._busy:
            if not self._is_open:
                return
            if self._lock is not None and self._saving.unsaved():
                self.save_state()
            self._is_open = False
        if self._autosave is not None:
            self._autosave.stop()
        if self._sigterm is not None:
            self._sigterm.remove()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _load(self) -> None:
        began = time.perf_counter()
        parts = self._files, self._backups, self._saving
        if self._lock is None:
            found = load_to_read(*parts)
        else:
            found = load_to_write(*parts, self._clock, self._mounted)
        self.recovery = found
        self._load_seconds = time.perf_counter() - began
        self._events.tell(
            TasksLoaded,
            source=found.source,
            tasks=len(found.tasks),
            losses=tuple(loss.message for loss in found.losses),
            seconds=self._load_seconds,
        )

    def _note(self, task: Task) -> bool:
        self._require_writable()
        self._files.task(task.id)
        task.version = self.version
        known = None if task.created_at else self._saving.memory.task(task.id)
        if known is not None:  # the caller has made the object anew
            task.created_at = known.created_at
            task.started_at = task.started_at or known.started_at
        task.stamp(moment_of(self._clock.now_ns()))
        return self._saving.memory.put(task)

    def _release(self) -> None:
        self._is_open = False
        if self._lock is not None:
            self._lock.release()

    def _require_open(self) -> None:
        if not self._is_open:
            raise UsageError(f"the tasks in {self.folder} have been closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._lock is None:
            raise UsageError(f"the tasks in {self.folder} were opened to be read only")


def _folder_of(folder: str | os.PathLike[str] | None) -> Path:
    if folder is None:
        folder = os.environ.get(PATH_VARIABLE, "")
    if not str(folder):
        raise UsageError(f"no folder is given: name one, or set {PATH_VARIABLE}")
    return Path(folder)
