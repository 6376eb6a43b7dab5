"""Where the files of task persistence lie, and what reads and writes one of them.

Which of several files is right is decided in `task_recovery`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from statefs.durable import sync_folder, write_file
from statefs.errors import NotInStore, StateDamaged, UsageError
from statefs.state.documents import (
    Migration,
    current_text,
    decoded,
    encoded,
    read_bytes,
    read_document,
)
from statefs.state.identifiers import file_name_of, name_of_file
from statefs.state.json_store import made_folder
from statefs.state.task_documents import (
    REPORT_FORM,
    REPORT_VERSION,
    Report,
    Task,
    TaskState,
    task_forms,
)

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
            if id_ is not None and each.is_file(follow_symlinks=False):
                found[id_] = self.tasks / each.name
        return found

    def report_files(self) -> list[Path]:
        """Return the files of reports."""
        return sorted(self.reports.glob(f"{_REPORT_PREFIX}*{SUFFIX}"))

    def log_files(self) -> list[Path]:
        """Return the logs of sessions."""
        return sorted(self.logs.glob(f"{_LOG_PREFIX}*.log"))

    def read_task(self, path: Path, task_id: str) -> tuple[Task, int | None]:
        """Return the task of that id in its file, and the version it was migrated from.

        Raises:
            FileNotFoundError: there is none.
            StateDamaged: it is broken, or of another task.
            NewerStore: a newer program has written it.
        """
        text, was_version = current_text(read_bytes(path), path, self._forms.task)
        task = decoded(text, path, Task)
        if task.id != task_id:
            raise StateDamaged(f"{path} holds another task, '{task.id}'")
        return task, was_version

    def read_state(self, path: Path) -> tuple[TaskState, int | None]:
        """Return what `state.json`, or a backup of it, says; errors as those of `read_task`."""
        text, was_version = current_text(read_bytes(path), path, self._forms.state)
        return decoded(text, path, TaskState), was_version

    def read_report(self, report_id: str) -> Report:
        """Return a report; errors as those of `read_task`, but for NotInStore: there is none."""
        try:
            return read_document(self.report(report_id), REPORT_FORM)
        except FileNotFoundError:
            raise NotInStore(f"{self.folder} has no report '{report_id}'") from None

    def read_log(self, session_id: str) -> str:
        """Return the log of a session. Raises NotInStore: there is none."""
        try:
            return read_bytes(self.log(session_id)).decode(errors="replace")
        except FileNotFoundError:
            raise NotInStore(f"{self.folder} has no log of the session '{session_id}'") from None

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


def report_bytes(report_id: str, report: Any, now: datetime) -> bytes:
    """Return the file of a report. Raises UsageError: JSON does not hold it."""
    document = Report(REPORT_VERSION, report_id, now, report)
    return msgspec.json.format(encoded(document, f"the report '{report_id}'")) + b"\n"


def log_bytes(text: str) -> bytes:
    """Return the file of a log. Raises UsageError: it is not UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("the log has text that is not UTF-8") from None


def _deleted_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_DELETED}")
