"""A list of work that goes on where it was stopped, whatever stopped it.

python work_list.py FOLDER                  show the tasks
python work_list.py FOLDER "count moths"    add a task
python work_list.py FOLDER --work           do what is not done
"""

from __future__ import annotations

import sys
import uuid

from statefs.errors import StatefsError
from statefs.state import StatePersistence, Task, WorkSession

STEPS = 3


def work(store: StatePersistence) -> None:
    """Do each task that is pending, or that was under way when the last run ended."""
    session = WorkSession(id=uuid.uuid4().hex)
    store.save_session(session)
    log = ""
    for task in store.load_tasks():
        if task.status not in ("pending", "running"):
            continue
        task.status = "running"
        store.save_task(task)
        for step in range(task.data.get("step", 0), STEPS):
            task.data["step"] = step + 1
            store.update_task(task)  # written by autosave: losing a step costs little
        task.status, task.result = "completed", f"{task.title}: done in {STEPS} steps"
        store.update_task(task)  # another status: written at once
        log += f"{task.id}: {task.result}\n"
    store.save_session_log(session.id, log)
    session.status = "done"
    store.save_session(session)


def main(folder: str, what: str | None = None) -> None:
    """Add a task or work, and show all tasks."""
    with StatePersistence(folder) as store:
        store.save_on_sigterm()
        if what == "--work":
            work(store)
        elif what is not None:
            store.save_task(Task(id=uuid.uuid4().hex, title=what))
        for loss in store.recovery.losses:
            sys.stderr.write(f"{loss.message}\n")
        for task in store.state().tasks:
            sys.stdout.write(f"{task.status}: {task.title}\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StatefsError as error:
        sys.exit(f"work_list: {error}")
