"""Tasks and sessions in memory, and what of them the files do not say yet.

A task is kept as the JSON of its file: whoever saved it may change his own object, and `state.json`
is put together without encoding all tasks again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from statefs.state.documents import encoded
from statefs.state.task_documents import (
    Tally,
    Task,
    TaskMetrics,
    TaskState,
    WorkSession,
    metrics_of,
    tally_of,
)

CHANGES_PER_TASK: Final = 0.01
"""`state.json` is written once for so many changes, besides by autosave: else ten thousand tasks
that are saved one by one would write it ten thousand times. Up to a hundred it is each time."""


class TaskMemory:
    """What a store knows; whoever calls it holds the store's lock."""

    def __init__(self) -> None:
        self.lines: dict[str, bytes] = {}
        self.sessions: dict[str, WorkSession] = {}
        self.unsaved: set[str] = set()
        """Ids of tasks that their files do not have so."""
        self.unsaved_sessions: set[str] = set()
        """Ids of sessions that `state.json` does not have so."""
        self.deleted: set[str] = set()
        """Ids of tasks that are deleted, while `state.json` may tell of them."""
        self.changes = 0
        """That `state.json` does not say."""
        self._tallies: dict[str, Tally] = {}

    def put(self, task: Task) -> bool:
        """Take a task over; return whether it is new or its status another one.

        Raises:
            UsageError: it has a value of a wrong type.
        """
        line = encoded(task, f"the task '{task.id}'")
        before = self._tallies.get(task.id)
        self.lines[task.id] = line
        self._tallies[task.id] = tally_of(task)
        self.unsaved.add(task.id)
        self.deleted.discard(task.id)
        self.changes += 1
        return before is None or before.status != task.status

    def take_read(self, task: Task) -> None:
        """Take over a task that was read from a file."""
        self.lines[task.id] = msgspec.json.encode(task)
        self._tallies[task.id] = tally_of(task)

    def take_unsaved(self, other: TaskMemory) -> None:
        """Take over what another memory has not saved yet."""
        for task_id in other.unsaved:
            self.put(msgspec.json.decode(other.lines[task_id], type=Task))
        for session_id in other.unsaved_sessions:
            self.put_session(other.sessions[session_id])

    def put_session(self, session: WorkSession) -> None:
        """Take a session over.

        Raises:
            UsageError: it has a value of a wrong type.
        """
        line = encoded(session, f"the session '{session.id}'")
        self.sessions[session.id] = msgspec.json.decode(line, type=WorkSession)
        self.unsaved_sessions.add(session.id)
        self.changes += 1

    def remove(self, task_id: str) -> None:
        """Forget a task whose file is gone."""
        del self.lines[task_id], self._tallies[task_id]
        self.unsaved.discard(task_id)
        self.deleted.add(task_id)
        self.changes += 1

    def note_written(self) -> None:
        """Note that `state.json` says everything."""
        self.changes = 0
        self.deleted.clear()
        self.unsaved_sessions.clear()

    def is_state_due(self) -> bool:
        """Return whether `state.json` is to be written with this change."""
        return self.changes >= max(1, CHANGES_PER_TASK * len(self.lines))

    def task(self, task_id: str) -> Task | None:
        """Return a task, a copy of the caller's own."""
        line = self.lines.get(task_id)
        return None if line is None else msgspec.json.decode(line, type=Task)

    def tasks(self) -> list[Task]:
        """Return all tasks, copies of the caller's own."""
        return msgspec.json.decode(b"[" + b",".join(self.lines.values()) + b"]", type=list[Task])

    def metrics(self) -> TaskMetrics:
        """Return the sums over all tasks."""
        return metrics_of(self._tallies.values())

    def state(self, version: int, last_saved: datetime | None) -> TaskState:
        """Return everything, copies of the caller's own."""
        sessions = msgspec.json.decode(
            msgspec.json.encode(list(self.sessions.values())), type=list[WorkSession]
        )
        return TaskState(version, self.tasks(), sessions, self.metrics(), last_saved)

    def text(self, version: int, last_saved: datetime) -> bytes:
        """Return the file `state.json`, with a task or a session to a line."""

        def rows(lines: list[bytes]) -> bytes:
            return b"[\n" + b",\n".join(lines) + b"\n]" if lines else b"[]"

        fields = {
            "version": msgspec.json.encode(version),
            "tasks": rows(list(self.lines.values())),
            "sessions": rows([msgspec.json.encode(each) for each in self.sessions.values()]),
            "metrics": msgspec.json.encode(self.metrics()),
            "last_saved": msgspec.json.encode(last_saved),
        }
        return b"{" + b",\n".join(b'"%s": %s' % (k.encode(), v) for k, v in fields.items()) + b"}\n"
