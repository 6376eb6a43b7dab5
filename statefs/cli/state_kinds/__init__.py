"""The registry of the kinds of stores that `statefs state` looks after, one module for each.

A folder may be one of several kinds at once: settings beside sessions. Loaded when a subcommand
runs, as it loads `statefs.state`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from statefs.cli.state_kinds.deploys import DEPLOYS, TERRAFORM
from statefs.cli.state_kinds.documents import DOCUMENTS
from statefs.cli.state_kinds.journals import JOURNALS
from statefs.cli.state_kinds.kind import Kind
from statefs.cli.state_kinds.sessions import SESSIONS
from statefs.cli.state_kinds.tasks import TASKS
from statefs.errors import NotInStore
from statefs.state.audit import Unfinished
from statefs.state.checking import Problem, require_folder
from statefs.state.operation_lock import OperationLock

KINDS: Final = (DEPLOYS, TERRAFORM, DOCUMENTS, SESSIONS, JOURNALS, TASKS)
"""In the order in which they are listed, and asked for a name."""


def kinds_in(folder: Path) -> list[Kind]:
    """Return what a folder is; one of documents, which may be empty, where nothing else fits.

    Raises:
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    return [kind for kind in KINDS if kind.is_in(folder)] or [DOCUMENTS]


def shown(folder: Path, name: str, part: str | None) -> Any:
    """Return what the first kind that has something of that name shows.

    Raises:
        NotInStore: none has; the message has what each of them says.
    """
    said = []
    for kind in kinds_in(folder):
        try:
            return kind.shown(folder, name, part)
        except NotInStore as error:
            said.append(str(error))
    raise NotInStore("; ".join(said))


def unlocked(folder: Path, name: str, lock_id: str | None) -> OperationLock | None:
    """Take a lock away and return it, of the first kind that has an entry of that name.

    Raises:
        NotInStore: none has; the message has what each of them says.
        OperationLocked: the lock has another id.
    """
    said = []
    for kind in kinds_in(folder):
        if kind.unlock is None:
            continue
        try:
            return kind.unlock(folder, name, lock_id)
        except NotInStore as error:
            said.append(str(error))
    raise NotInStore("; ".join(said) or f"{folder} has no states with locks of their own")


def problems_in(folder: Path) -> list[Problem]:
    """Return what is wrong in a folder, each problem once."""
    return list(dict.fromkeys(each for kind in kinds_in(folder) for each in kind.check(folder)))


def unfinished_actions(folder: Path) -> list[Unfinished]:
    """Return the actions that have no end, each once."""
    found = [each for kind in kinds_in(folder) for each in kind.unfinished(folder)]
    return list({(each.path, each.number): each for each in found}.values())
