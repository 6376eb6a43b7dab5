"""What tasks, and the state of a program that works on them, look like. Types and sums alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from statefs.errors import NotInStore
from statefs.state.documents import Form, Migration

TaskStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
"""A task of such a status has an `ended_at`."""

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""ISO 8601 in JSON, with its zone."""

_MICROSECOND: Final = timedelta(microseconds=1)


class Task(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A task; its program changes it, and saves it.

    Args:
        version: of its program's tasks; set when it is saved.
        id: names it in the store.
        data: what the program wants to keep of it; anything JSON holds.
        result: what came out.
        created_at, updated_at: when it was first and last saved.
        started_at, ended_at: set with the status where they are left out.
    """

    version: int = 1
    id: str
    title: str = ""
    status: TaskStatus = "pending"
    created_at: Moment | None = None
    updated_at: Moment | None = None
    started_at: Moment | None = None
    ended_at: Moment | None = None
    data: dict[str, Any] = {}
    result: Any = None
    error: str | None = None

    def stamp(self, now: datetime) -> None:
        """Set the times that its status calls for and that are not set."""
        self.created_at = self.created_at or now
        self.updated_at = now
        if self.status == "running":
            self.started_at, self.ended_at = self.started_at or now, None
        elif self.status in ENDED:
            self.ended_at = self.ended_at or now
        else:
            self.started_at = self.ended_at = None


class WorkSession(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A run of the program, or of one of its workers; its log is a file of its own."""

    id: str
    status: Literal["active", "done", "error"] = "active"
    started_at: Moment | None = None
    ended_at: Moment | None = None
    data: dict[str, Any] = {}


class TaskMetrics(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Sums over the tasks that there are.

    Args:
        total, completed, failed: how many.
        average_completion_seconds: of the completed ones, from their start (or creation) to their
            end; None where there are none.
    """

    total: int = 0
    completed: int = 0
    failed: int = 0
    average_completion_seconds: float | None = None


class TaskState(msgspec.Struct, forbid_unknown_fields=True):
    """The file `state.json`: everything, as it was at `last_saved`."""

    version: int
    tasks: list[Task]
    sessions: list[WorkSession]
    metrics: TaskMetrics
    last_saved: Moment | None

    def task(self, task_id: str) -> Task:
        """Return one of the tasks.

        Raises:
            NotInStore: there is none of that id.
        """
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise NotInStore(f"there is no task '{task_id}'")


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """The file of a report."""

    version: int
    id: str
    saved_at: Moment
    report: Any


REPORT_VERSION: Final = 1
REPORT_FORM: Final = Form(Report, REPORT_VERSION)


class TaskForms(NamedTuple):
    """The forms of the files that have the program's version."""

    task: Form[Task]
    state: Form[TaskState]


def task_forms(version: int | None, migrations: Mapping[int, Migration]) -> TaskForms:
    """Return the forms for a program's version of its tasks.

    Args:
        version: of the tasks; None takes any version as it is.
        migrations: by the version each takes; they get and return one task.
    """
    whole = {step: _of_state(migration, step) for step, migration in migrations.items()}
    return TaskForms(Form(Task, version, migrations), Form(TaskState, version, whole))


def _of_state(migration: Migration, step: int) -> Migration:
    """Return the migration of a state whose tasks a migration is for."""

    def migrated(document: dict[str, Any]) -> dict[str, Any]:
        tasks = document.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            return document  # what is wrong with it is found when its type is looked at
        done = [
            migration(task) | {"version": step + 1} if task.get("version") == step else task
            for task in tasks
        ]
        return document | {"tasks": done}

    return migrated


class Tally(NamedTuple):
    """What one task adds to the metrics.

    Args:
        status: of the task.
        took_us: from start to end, in microseconds, of a completed one; else None.
    """

    status: TaskStatus
    took_us: int | None


def tally_of(task: Task) -> Tally:
    """Return what a task adds to the metrics."""
    began = task.started_at or task.created_at
    if task.status != "completed" or began is None or task.ended_at is None:
        return Tally(task.status, None)
    return Tally(task.status, (task.ended_at - began) // _MICROSECOND)


def metrics_of(tallies: Iterable[Tally]) -> TaskMetrics:
    """Return the sums over tasks."""
    total = completed = failed = took_us = timed = 0
    for status, took in tallies:
        total += 1
        completed += status == "completed"
        failed += status == "failed"
        if took is not None:
            took_us, timed = took_us + took, timed + 1
    return TaskMetrics(total, completed, failed, took_us / timed / 1e6 if timed else None)


def moment_of(time_ns: int) -> datetime:
    """Return a time of the clock, to the microsecond."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC) + timedelta(
        microseconds=time_ns // 1000 % 1_000_000
    )
