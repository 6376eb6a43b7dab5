"""Folders of deploy states seen from outside: what is in them, who has them locked, what is broken.

Two kinds of files are looked after, those of `DeployState` and those of Terraform: each is a state
with lineage and serial, and a lock beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from statefs.clock import Clock, SystemClock
from statefs.errors import NewerStore, NotInStore, OperationLocked, StateDamaged
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
from statefs.state.copies import copies_of
from statefs.state.deploy_documents import (
    DEPLOY_FORM,
    PREFIX,
    DeployDocument,
    file_of_target,
    target_of_file,
)
from statefs.state.documents import Form, current_text, decoded, read_bytes
from statefs.state.identifiers import name_of_file
from statefs.state.json_store import AUDIT
from statefs.state.operation_lock import OperationLock, held_text
from statefs.state.state_file import StateFile, lock_path_of, state_of_lock, turn_in
from statefs.state.terraform_states import SUFFIX as TERRAFORM_SUFFIX
from statefs.state.terraform_states import TERRAFORM_FORM, TerraformState

State = DeployDocument | TerraformState

_HEAD_BYTES: Final = 4096


@dataclass(frozen=True)
class StateKind:
    """A kind of state, by its files.

    Args:
        form: of the files.
        name_of: what `list` and `show` call the state of a file name; None for any other file.
        part_of: a part of the JSON of a state, by its name; KeyError where there is none.
    """

    form: Form[Any]
    name_of: Callable[[str], str | None]
    part_of: Callable[[dict[str, Any], str], Any]

    def states_in(self, folder: Path) -> dict[str, Path]:
        """Return the files of states in a folder by name, in the order of the alphabet.

        One that is locked and was never written is among them, too: its file is not there.
        """
        paths = (state_of_lock(each) or each for each in folder.iterdir() if each.is_file())
        found = ((self.name_of(path.name), path) for path in paths)
        return dict(sorted((name, path) for name, path in found if name is not None))

    def state_file(self, path: Path, clock: Clock) -> StateFile:
        """Return a state, to be locked and unlocked."""
        return StateFile(path, self.form, clock=clock)


def _name_of_deploy(file_name: str) -> str | None:
    target = target_of_file(file_name)
    return None if target is None else f"{target.provider}.{target.locator}"


def _name_of_terraform(file_name: str) -> str | None:
    return name_of_file(file_name, TERRAFORM_SUFFIX)


DEPLOYS: Final = StateKind(
    DEPLOY_FORM, _name_of_deploy, lambda state, urn: state["primitives"][urn]
)
TERRAFORM: Final = StateKind(TERRAFORM_FORM, _name_of_terraform, lambda state, key: state[key])


class Entry(NamedTuple):
    """A state in a list.

    Args:
        name: of it, for `show`.
        project: None of Terraform's, and of a broken one; so are the three after it.
        lineage: of all its versions.
        serial: of this version.
        resources: it has, counted.
        bytes: of its file.
        changed_ns: when its file was last replaced, since 1970; None where there is no file yet.
        copies: kept in `backups/`.
        lock: that somebody has; None where nobody has, or its file is broken.
        damage: what is wrong with it; None for a sound one.
    """

    name: str
    project: str | None
    lineage: str | None
    serial: int | None
    resources: int | None
    bytes: int
    changed_ns: int | None
    copies: int
    lock: OperationLock | None
    damage: str | None


def is_deploys(folder: Path) -> bool:
    """Return whether a folder is one of `DeployState`: by the names of files, and what is in one.

    A document of a `JsonStore` may have such a name, too.
    """
    paths = DEPLOYS.states_in(folder).values()
    return any(_is_of_deploys(path) for path in paths)


def _is_of_deploys(path: Path) -> bool:
    if lock_path_of(path).exists():
        return True
    files = (each for each in (path, *copies_of(path)) if each.exists())
    return any(b'"lineage"' in read_bytes(each)[:_HEAD_BYTES] for each in files)


def is_terraform(folder: Path) -> bool:
    """Return whether there is a state of Terraform's."""
    return bool(TERRAFORM.states_in(folder))


def list_states(kind: StateKind, folder: Path) -> list[Entry]:
    """Return the states in a folder, broken ones too, in the order of the alphabet."""
    entries = (_entry(kind, name, path) for name, path in kind.states_in(folder).items())
    return [entry for entry in entries if entry is not None]


def _entry(kind: StateKind, name: str, path: Path) -> Entry | None:
    """Return what a list says of a state; None where its program has just deleted it."""
    state: State | None = None
    status, lock, damage = None, None, None
    try:
        status = path.stat()
        state = read_state(kind, path)
    except FileNotFoundError:
        pass  # it may be locked to be written
    except (StateDamaged, NewerStore) as error:
        damage = str(error)
    try:
        lock = kind.state_file(path, SystemClock()).holder()
    except (StateDamaged, NewerStore) as error:
        damage = damage or str(error)
    if status is None and lock is None and damage is None:
        return None
    return Entry(
        name,
        state.project if isinstance(state, DeployDocument) else None,
        None if state is None else state.lineage,
        None if state is None else state.serial,
        None if state is None else _resources_of(state),
        0 if status is None else status.st_size,
        None if status is None else status.st_mtime_ns,
        len(copies_of(path)),
        lock,
        damage,
    )


def _resources_of(state: State) -> int:
    return len(state.primitives if isinstance(state, DeployDocument) else state.resources)


def read_state(kind: StateKind, path: Path) -> State:
    """Return the state in a file.

    Raises:
        FileNotFoundError: there is none.
        StateDamaged: it is broken, or of another target than the file's name says.
        NewerStore: a newer program has written it.
    """
    text = current_text(read_bytes(path), path, kind.form).text
    state: State = decoded(text, path, kind.form.type)
    if isinstance(state, DeployDocument) and not _is_of(state, path):
        target = f"{state.target.provider}, {state.target.locator}"
        raise StateDamaged(f"{path} holds the state of another target, {target}")
    return state


def _is_of(state: DeployDocument, path: Path) -> bool:
    """Return whether a state belongs into a file, or is a copy of what was in it."""
    name = file_of_target(state.target)
    return path.name == name or path in copies_of(path.parent.parent / name)


def show_state(kind: StateKind, folder: Path, name: str, part: str | None) -> Any:
    """Return a state as JSON has it, or a part of it: a URN's resource, a field of Terraform's.

    Raises:
        NotInStore: there is no such state, or part of it.
        StateDamaged, NewerStore: it cannot be understood.
    """
    path = _path_of(kind, folder, name)
    try:
        read_state(kind, path)
        shown = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise NotInStore(f"the state '{name}' in {folder} has not been written yet") from None
    try:
        return shown if part is None else kind.part_of(shown, part)
    except KeyError:
        raise NotInStore(f"the state '{name}' in {folder} has no '{part}'") from None


def _path_of(kind: StateKind, folder: Path, name: str) -> Path:
    known = kind.states_in(folder)
    path = known.get(name) or known.get(name.removeprefix(PREFIX))
    if path is None:
        there = ", ".join(known) or "none"
        raise NotInStore(f"{folder} has no state '{name}'; there are: {there}")
    return path


def check_states(kind: StateKind, folder: Path) -> list[Problem]:
    """Return everything that is wrong in a folder of states; nothing is changed."""
    require_folder(folder)
    found = [*mode_problems(folder, FOLDER_MODE), *audit_problems(folder / AUDIT)]
    for path in kind.states_in(folder).values():
        try:
            found += mode_problems(path, FILE_MODE)
            read_state(kind, path)
        except FileNotFoundError:
            pass  # it was never written, or its program has just deleted it
        except NewerStore as error:
            found.append(Problem(path, str(error), lost=False))
        except StateDamaged as error:
            found.append(Problem(path, str(error), lost=True))
        found += _lock_problems(kind, path)
    return found


def _lock_problems(kind: StateKind, path: Path) -> list[Problem]:
    lock_path = lock_path_of(path)
    try:
        kind.state_file(path, SystemClock()).holder()
        return [*mode_problems(lock_path, FILE_MODE)]
    except FileNotFoundError:
        return []
    except (StateDamaged, NewerStore) as error:
        advice = "'statefs state unlock' takes the lock away"
        return [Problem(lock_path, f"{error}; {advice}", lost=False)]


def repair_states(kind: StateKind, folder: Path, clock: Clock | None = None) -> list[Repair]:
    """Put right what `check_states` finds: modes, and broken states, as those of documents.

    Raises:
        OperationLocked: somebody works on a state that is broken.
        StoreLocked: a program is writing in the folder.
    """
    require_folder(folder)
    clock = clock or SystemClock()
    with turn_in(folder):
        problems = check_states(kind, folder)
        for problem in problems:
            _require_unlocked(kind, problem, clock)
        if not problems:
            return []
        done = mended_audit(folder, clock)
        with AuditLog(folder / AUDIT, clock) as audit:
            read = partial(read_state, kind)
            return done + [repaired(each, audit, clock, read) for each in problems]


def _require_unlocked(kind: StateKind, problem: Problem, clock: Clock) -> None:
    if not problem.lost:
        return
    found = kind.state_file(problem.path, clock).living_holder()
    if found is not None:
        raise OperationLocked(f"{problem.path} is locked by {held_text(found)}", found)


def unlock_state(
    kind: StateKind, folder: Path, name: str, lock_id: str | None
) -> OperationLock | None:
    """Take the lock of a state away; see `StateFile.force_unlock`.

    Raises:
        NotInStore: there is no such state.
    """
    path = _path_of(kind, folder, name)
    return kind.state_file(path, SystemClock()).force_unlock(lock_id)
