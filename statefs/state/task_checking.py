"""A folder of tasks seen from outside: what is in it, what is broken, and putting it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from statefs.clock import Clock, SystemClock
from statefs.errors import NewerStore, NotInStore, StateDamaged
from statefs.state.audit import AuditLog
from statefs.state.checking import (
    FILE_MODE,
    FOLDER_MODE,
    Problem,
    Repair,
    audit_problems,
    mended_audit,
    mode_problems,
    repaired,
    require_folder,
)
from statefs.state.documents import read_document
from statefs.state.identifiers import name_of_file
from statefs.state.json_store import AUDIT, LOCK
from statefs.state.locks import ProcessLock
from statefs.state.snapshots import mounted_folder
from statefs.state.task_backups import StateBackups
from statefs.state.task_documents import REPORT_FORM
from statefs.state.task_events import TaskEvents
from statefs.state.task_files import SUFFIX, TaskFiles
from statefs.state.task_recovery import Recovered, read_beside_a_writer, recovered, set_aside
from statefs.state.task_saving import TaskSaving


def has_tasks(folder: Path) -> bool:
    """Return whether a folder is one of a `StatePersistence`, tasks or `state.json` lost or not."""
    files = TaskFiles(folder)
    is_one = files.logs.is_dir() and files.reports.is_dir()
    return is_one and (files.tasks.is_dir() or files.state.exists())


def list_tasks(folder: Path) -> Recovered:
    """Return what a folder says; nothing is changed.

    Raises:
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    files, clock = TaskFiles(folder), SystemClock()
    return read_beside_a_writer(files, StateBackups(files.state, clock, mounted_folder(folder)))


def show_task(folder: Path, name: str) -> dict[str, Any]:
    """Return a task, else a session, else a report, as JSON has it.

    Args:
        folder: of the store.
        name: its id.

    Raises:
        NotInStore: there is no such folder, and nothing of that name.
        StateDamaged: the report is broken.
    """
    found = list_tasks(folder)
    document: Any = found.tasks.get(name) or found.sessions.get(name)
    if document is None:
        path = TaskFiles(folder).report(name)
        try:
            document = read_document(path, REPORT_FORM)
        except FileNotFoundError:
            raise NotInStore(
                f"{folder} has no task, session or report '{name}'; "
                "'statefs state list' shows what it has"
            ) from None
    shown: dict[str, Any] = msgspec.to_builtins(document)
    return shown


def check_tasks(folder: Path) -> list[Problem]:
    """Return everything that is wrong in a folder of tasks; nothing is changed."""
    losses = list_tasks(folder).losses
    files = TaskFiles(folder)
    found = [Problem(loss.path, loss.message, lost=True) for loss in losses]
    found += audit_problems(folder / AUDIT)
    for place in (folder, files.tasks, files.logs, files.reports):
        if place.exists():
            found += mode_problems(place, FOLDER_MODE)
    backups = StateBackups(files.state, SystemClock(), None).files()
    known = {problem.path for problem in found}
    for path in (files.state, *files.task_files().values(), *files.log_files()):
        found += _problems_of(path, Path.lstat)
    for path in backups:
        found += [each for each in _problems_of(path, files.read_state) if path not in known]
    for path in files.report_files():
        found += _problems_of(path, partial(read_document, form=REPORT_FORM), lost=True)
    return found + [
        Problem(path, f"{path}: no task is called so", lost=False)
        for path in sorted(files.tasks.glob(f"*{SUFFIX}"))
        if name_of_file(path.name, SUFFIX) is None and not path.name.startswith(".")
    ]


def _problems_of(
    path: Path, read: Callable[[Path], object], lost: bool = False
) -> Iterator[Problem]:
    try:
        yield from mode_problems(path, FILE_MODE)
        read(path)
    except FileNotFoundError:
        return  # its program has just removed it
    except NewerStore as error:
        yield Problem(path, str(error), lost=False)
    except StateDamaged as error:
        yield Problem(path, str(error), lost)


def repair_tasks(folder: Path, clock: Clock | None = None) -> list[Repair]:
    """Put right what `check_tasks` finds, as opening the store does: in the same order.

    Raises:
        StoreLocked: a program has the folder open.
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    clock = clock or SystemClock()
    with ProcessLock(folder / LOCK):
        problems = check_tasks(folder)
        if not problems:
            return []
        done = mended_audit(folder, clock)
        with AuditLog(folder / AUDIT, clock) as audit:
            done += _recovered(folder, audit, clock)
            read = partial(read_document, form=REPORT_FORM)
            known = {repair.path for repair in done}
            rest = [problem for problem in problems if problem.path not in known]
            return done + [repaired(problem, audit, clock, read) for problem in rest]


def _recovered(folder: Path, audit: AuditLog, clock: Clock) -> list[Repair]:
    """Have `state.json` and the tasks' files say what can be known of them."""
    files = TaskFiles(folder)
    backups = StateBackups(files.state, clock, mounted_folder(folder))
    found = recovered(files, backups)
    if not found.losses:
        return []
    with audit.action("repair", problems=[loss.message for loss in found.losses]):
        files.make_folders()
        saving = TaskSaving(files, found.version, backups, clock, TaskEvents(clock))
        saving.adopt(found)
        asides = dict(set_aside(found, files, clock))
        saving.save_all()
    restored = {files.task(task_id) for task_id in found.unsaved}
    if found.source == "backup":
        restored.add(files.state)
    return [
        Repair(
            path,
            f"{message}; moved to {asides[path].name}" if path in asides else message,
            asides.get(path),
            found.path if path in restored else None,
        )
        for path, message in found.losses
    ]
