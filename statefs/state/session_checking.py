"""A folder of sessions seen from outside: what is in it, what is broken, and putting it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from statefs.clock import Clock, SystemClock
from statefs.durable import sync_folder
from statefs.errors import NewerStore, NotInStore, StateDamaged, UsageError
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
from statefs.state.session_documents import INDEX_FORM, SessionEntry
from statefs.state.session_index import INDEX, SessionListing, read_session, session_files
from statefs.state.session_manager import GLOBAL, SESSIONS, Scope, SessionManager


class ListedSession(NamedTuple):
    """A session in a list of all scopes."""

    scope: Scope
    entry: SessionEntry


def scopes_of(folder: Path) -> list[Scope]:
    """Return the scopes that a folder has; none where it is no folder of sessions."""
    found = [GLOBAL] if (folder / GLOBAL.place()).is_dir() else []
    for kind in ("assistant", "project"):
        for path in sorted(folder.glob(f"{kind}/*/{SESSIONS}")):
            id_ = name_of_file(path.parent.name)
            if id_ is not None:
                found.append(Scope(kind, id_))
    return found


def list_sessions(folder: Path) -> list[ListedSession]:
    """Return the sessions of all scopes, in each the last saved first.

    Raises:
        StateDamaged: an index is broken; a check and a repair deal with it.
    """
    found = []
    for scope in scopes_of(folder):
        with SessionManager(folder, scope, read_only=True) as sessions:
            found += [ListedSession(scope, entry) for entry in sessions.list()]
    return found


def show_session(folder: Path, name: str) -> dict[str, Any]:
    """Return a session as JSON has it.

    Args:
        folder: of all scopes.
        name: its id, or `SCOPE/ID` where several scopes have one, as in `project/shop/ID`.

    Raises:
        NotInStore: there is none.
        UsageError: several scopes have one.
        StateDamaged: it is broken.
    """
    found = {
        f"{label_of(scope)}/{id_}": path
        for scope in scopes_of(folder)
        for id_, path in session_files(folder / scope.place()).items()
        if name in (id_, f"{label_of(scope)}/{id_}")
    }
    if not found:
        raise NotInStore(
            f"{folder} has no session '{name}'; 'statefs state list' shows what it has"
        )
    if len(found) > 1:
        raise UsageError(f"several scopes have a session '{name}': {', '.join(found)}")
    [path] = found.values()
    document: dict[str, Any] = msgspec.to_builtins(read_session(path))
    return document


def label_of(scope: Scope) -> str:
    """Return a scope as people type it."""
    return f"{scope.kind}/{scope.id}".rstrip("/")


def check_sessions(folder: Path) -> list[Problem]:
    """Return everything that is wrong in a folder of sessions; nothing is changed."""
    require_folder(folder)
    found = [*mode_problems(folder, FOLDER_MODE), *audit_problems(folder / AUDIT)]
    for scope in scopes_of(folder):
        place = folder / scope.place()
        found += mode_problems(place, FOLDER_MODE)
        for path in session_files(place).values():
            found += _problems_of(path, read_session, lost=True)
        if (place / INDEX).exists():
            found += _problems_of(
                place / INDEX, partial(read_document, form=INDEX_FORM), lost=False
            )
    return found


def _problems_of(path: Path, read: Callable[[Path], object], lost: bool) -> Iterator[Problem]:
    try:
        yield from mode_problems(path, FILE_MODE)
        read(path)
    except FileNotFoundError:
        return  # its program has just removed it
    except NewerStore as error:
        yield Problem(path, str(error), lost=False)
    except StateDamaged as error:
        yield Problem(path, str(error), lost)


def repair_sessions(folder: Path, clock: Clock | None = None) -> list[Repair]:
    """Put right what `check_sessions` finds: modes, broken sessions, lists.

    A broken session is moved aside; in a mounted state the snapshots that have it are named.

    Raises:
        StoreLocked: a program has the folder open.
    """
    require_folder(folder)
    clock = clock or SystemClock()
    with ProcessLock(folder / LOCK):
        if not check_sessions(folder):
            return []
        done = mended_audit(folder, clock)
        with AuditLog(folder / AUDIT, clock) as audit:
            done += [_repaired(problem, audit, clock) for problem in check_sessions(folder)]
        for scope in scopes_of(folder):
            SessionListing(folder / scope.place())
        return done


def _repaired(problem: Problem, audit: AuditLog, clock: Clock) -> Repair:
    path = problem.path
    is_damaged_index = path.name == INDEX and not list(mode_problems(path, FILE_MODE))
    if not is_damaged_index:
        return repaired(problem, audit, clock, read_session)
    with audit.action("repair", path=path.name, problem=problem.message):
        path.unlink()
        sync_folder(path.parent)
    return Repair(path, f"{path}: made again from the sessions")
