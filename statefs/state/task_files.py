"""Where the files of task persistence lie, and what reads and writes one of them.

Which of several files is right is decided in `task_recovery`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from statefs.durable import sync_folder, write_file
from statefs.errors import StateDamaged
from statefs.state.documents import Migration, current_text, decoded, read_bytes
from statefs.state.identifiers import file_name_of, name_of_file
from statefs.state.json_store import made_folder
from statefs.state.task_documents import Task, TaskState, task_forms

STATE: Final = "state.json"
TASKS: Final = "tasks"
LOGS: Final = "logs"
REPORTS: Final = "reports"
SUFFIX: Final = ".json"
_LOG_PREFIX: Final = "session_"
_REPORT_PREFIX: Final = "report_"
_DELETED: Final = ".deleted"
"""Ends the name of a task's file that is deleted, while `state.json` may still tell of the task."""


class TaskFiles:
    """The files of one folder.

    Args:
        folder: of the store.
        version: of the program's tasks; None takes any version as it is.
        migrations: by the version each takes; they get and return one task.
    """

    def __init__(
        self, folder: Path, version: int | None = None, migrations: Mapping[int, Migration] = {}
    ) -> None:
        self.folder = folder
        self.version = version
        self._forms = task_forms(version, migrations)
        self.state = folder / STATE
        self.tasks = folder / TASKS
        self.reports = folder / REPORTS
        self.logs = folder / LOGS

    def make_folders(self) -> None:
        """Make the folders that are missing, for their owner alone."""
        for each in (self.tasks, self.logs, self.reports):
            made_folder(each)

    def task(self, task_id: str) -> Path:
        """Return the file of a task. Raises UsageError: the id cannot name one."""
        return self.tasks / file_name_of(task_id, SUFFIX, "task id")

    def log(self, session_id: str) -> Path:
        """Return the log of a session. Raises UsageError: the id cannot name one."""
        return self.logs / (_LOG_PREFIX + file_name_of(session_id, ".log", "session id"))

    def report(self, report_id: str) -> Path:
        """Return the file of a report. Raises UsageError: the id cannot name one."""
        return self.reports / (_REPORT_PREFIX + file_name_of(report_id, SUFFIX, "report id"))

    def task_files(self) -> dict[str, Path]:
        """Return the files of tasks by the id of their task."""
        found = {}
        for each in os.scandir(self.tasks) if self.tasks.is_dir() else ():
            id_ = name_of_file(each.name, SUFFIX)
            if id_ is not None and each.is_file():
                found[id_] = self.tasks / each.name
        return found

    def report_files(self) -> list[Path]:
        """Return the files of reports."""
        return sorted(self.reports.glob(f"{_REPORT_PREFIX}*{SUFFIX}"))

    def log_files(self) -> list[Path]:
        """Return the logs of sessions."""
        return sorted(self.logs.glob(f"{_LOG_PREFIX}*.log"))

    def read_task(self, path: Path) -> tuple[Task, int | None]:
        """Return the task in a file, and the version it was migrated from.

        Raises:
            FileNotFoundError: there is none.
            StateDamaged: it is broken, or of another task than the file's name says.
            NewerStore: a newer program has written it.
        """
        text, was_version = current_text(read_bytes(path), path, self._forms.task)
        task = decoded(text, path, Task)
        if file_name_of(task.id, SUFFIX, "task id") != path.name:
            raise StateDamaged(f"{path} holds another task, '{task.id}'")
        return task, was_version

    def read_state(self, path: Path) -> tuple[TaskState, int | None]:
        """Return what `state.json`, or a backup of it, says; errors as those of `read_task`."""
        text, was_version = current_text(read_bytes(path), path, self._forms.state)
        return decoded(text, path, TaskState), was_version

    def write_task(self, task_id: str, line: bytes) -> None:
        """Write the file of a task, whose JSON is `line`; it is durable then."""
        write_file(self.task(task_id), msgspec.json.format(line) + b"\n")

    def delete_task(self, task_id: str) -> None:
        """Take a task's file away in one durable step that leaves a trace of it.

        Raises:
            FileNotFoundError: there is none.
        """
        path = self.task(task_id)
        os.rename(path, _deleted_path(path))
        sync_folder(self.tasks)

    def deleted(self) -> dict[str, Path]:
        """Return the traces of deleted tasks by their id."""
        found = {}
        for path in self.tasks.glob(f".*{_DELETED}"):
            id_ = name_of_file(path.name[1:].removesuffix(_DELETED), SUFFIX)
            if id_ is not None:
                found[id_] = path
        return found

    def forget_deleted(self, task_ids: set[str]) -> None:
        """Remove traces, of tasks of which no other file tells any more."""
        for task_id in task_ids:
            _deleted_path(self.task(task_id)).unlink(missing_ok=True)


def _deleted_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_DELETED}")
