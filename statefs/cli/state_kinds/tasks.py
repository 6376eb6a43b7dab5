"""Folders of a `StatePersistence` in `statefs state`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from statefs.cli.output import Column, plain
from statefs.cli.state_kinds.kind import Kind, Listing
from statefs.errors import NotInStore
from statefs.state import task_checking
from statefs.units import local_text

SHOWN = ("id", "title", "status", "created_at", "updated_at", "started_at", "ended_at", "error")
"""The fields of a task that a list has; `data` and `result` may be large."""


def listed(folder: Path) -> Listing:
    """Return the tasks in the order in which they were made, and after them the lost ones."""
    found = task_checking.list_tasks(folder)
    rows = []
    for task in found.tasks.values():
        fields = plain(task)
        rows.append({name: fields[name] for name in SHOWN} | {"lost": False})
    rows += [dict.fromkeys(SHOWN) | {"id": id_, "lost": True} for id_ in sorted(found.lost)]
    columns = [
        Column("task", style="bold", may_shorten=True),
        Column("status"),
        Column("title", may_shorten=True),
        Column("saved", drop_rank=1),
        Column("error", style="red", may_shorten=True),
    ]
    return Listing(rows, columns, [cells_of(row) for row in rows])


def cells_of(row: dict[str, Any]) -> list[str]:
    """Return one task of the list as cells of the table."""
    if row["lost"]:
        return [row["id"], "lost", "", "", ""]
    saved = local_text(row["updated_at"]) if row["updated_at"] else ""
    return [row["id"], row["status"], row["title"], saved, row["error"] or ""]


def shown(folder: Path, name: str, part: str | None) -> Any:
    """Return a task, a session or a report, or one field of it."""
    document = task_checking.show_task(folder, name)
    if part is not None and part not in document:
        raise NotInStore(f"'{name}' in {folder} has no key '{part}'")
    return document if part is None else document[part]


TASKS = Kind(
    entries="tasks",
    is_in=task_checking.has_tasks,
    listed=listed,
    shown=shown,
    check=task_checking.check_tasks,
    repair=task_checking.repair_tasks,
)
