"""Journaled sessions put right from outside."""

from __future__ import annotations

import shutil
from pathlib import Path

from statefs.clock import Clock, SystemClock
from statefs.state.audit import AuditLog
from statefs.state.checking import Problem, Repair, repaired, require_folder
from statefs.state.documents import read_bytes
from statefs.state.json_store import AUDIT, LOCK
from statefs.state.locks import ProcessLock
from statefs.state.session_store import REMOVED, session_places
from statefs.state.session_store_checking import check_folder, check_session, check_store


def repair_store(folder: Path, clock: Clock | None = None) -> list[Repair]:
    """Put right what `check_store` finds.

    Raises:
        StoreLocked: a program has the folder open, or a session that is to be repaired.
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    clock = clock or SystemClock()
    with ProcessLock(folder / LOCK):
        if not check_store(folder):
            return []
        with AuditLog(folder / AUDIT, clock) as audit:
            done = [_put_right(each, audit, clock) for each in check_folder(folder)]
            for place in session_places(folder):
                if not check_session(place):
                    continue
                with ProcessLock(place / LOCK):
                    done += [_put_right(each, audit, clock) for each in check_session(place)]
            return done


def _put_right(problem: Problem, audit: AuditLog, clock: Clock) -> Repair:
    path = problem.path
    if not path.name.endswith(REMOVED):
        return repaired(problem, audit, clock, read_bytes)
    with audit.action("repair", path=path.name, problem=problem.message):
        shutil.rmtree(path)
    return Repair(path, f"{path}: removed, as it was to be")
