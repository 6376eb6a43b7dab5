"""A folder of journaled sessions seen from outside: what is in it, and what is broken.

Works on the sessions of any store, without knowing the types of its events and slots.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from statefs.errors import (
    NewerStore,
    NotInStore,
    ResumeMismatch,
    StateDamaged,
    StatefsError,
    UsageError,
)
from statefs.state.audit import Unfinished
from statefs.state.checking import (
    FILE_MODE,
    FOLDER_MODE,
    Problem,
    mode_problems,
    require_folder,
)
from statefs.state.json_store import LOCK
from statefs.state.locks import holder_of
from statefs.state.session_manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
    slot_file_name,
    slot_of_file,
)
from statefs.state.session_recovery import (
    ACTIONS,
    ANY_TYPES,
    AUDIT_FOLDER,
    JOURNAL,
    STATE,
    actions_of,
    read_events,
    recovered,
    require_all,
    require_session,
    slot_value,
)
from statefs.state.session_store import REMOVED, SESSIONS, place_of, session_places

_UNREADABLE = (StateDamaged, NewerStore, NotInStore, ResumeMismatch)


class ShownEvent(NamedTuple):
    """An event that a resumption would replay."""

    sequence: int
    at: str
    event: Any


def show_session(folder: Path, name: str, slot: str | None = None) -> Any:
    """Return what a session would be resumed from, as JSON holds it; or the value of one slot.

    Args:
        folder: of a store.
        name: the session's id, or `sessions/ID`.
        slot: one of the last snapshot; its bytes come as base64.

    Raises:
        NotInStore: there is no such session, or slot.
        StateDamaged, NewerStore, ResumeMismatch: it cannot be resumed; file and line are named.
    """
    try:
        place = place_of(folder, name.removeprefix(f"{SESSIONS}/"))
    except UsageError as error:
        raise NotInStore(str(error)) from None
    while True:
        manifest = require_session(place)
        try:
            return _shown(place, manifest, slot)
        except StateDamaged:
            # Its process may have taken a snapshot meanwhile, and removed the files of older ones.
            if require_session(place).number == manifest.number:
                raise


def _shown(place: Path, manifest: Manifest, slot: str | None) -> Any:
    snapshot = manifest.snapshot()
    slots = snapshot.slots
    if slot is not None:
        if slot not in slots:
            raise NotInStore(f"the session '{manifest.created.id}' has no slot '{slot}'")
        return _shown_value(slot_value(place, slot, slots[slot], ANY_TYPES.form_of(slot)))
    found = recovered(place, manifest, ANY_TYPES)
    return {
        "id": manifest.created.id,
        "store": manifest.created.store,
        "status": manifest.status(holder_of(place / LOCK) is not None),
        "created_at": manifest.created.at,
        "changed_at": found.events[-1].at if found.events else manifest.last.at,
        "snapshot": {
            "revision": found.revision,
            "reason": snapshot.reason,
            "label": snapshot.label,
            "events": snapshot.events,
        },
        "slots": {name: _shown_value(value) for name, value in found.slots.items()},
        "events": [ShownEvent(*each[:3])._asdict() for each in found.events],
        "lost": found.lost,
        "unfinished": [{**each._asdict(), "path": str(each.path)} for each in found.unfinished],
    }


def _shown_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value


def unfinished_in_sessions(folder: Path) -> list[Unfinished]:
    """Return the actions of all sessions that have no end; none of a log that is broken."""
    found = []
    for place in session_places(folder):
        try:
            require_session(place)
            found += [each.begun for each in actions_of(place) if each.outcome is None]
        except _UNREADABLE:
            continue  # a check has named it
    return found


def check_store(folder: Path) -> list[Problem]:
    """Return everything that is wrong in a folder of journaled sessions; nothing is changed."""
    found = check_folder(folder)
    for place in session_places(folder):
        found += check_session(place)
    return found


def check_folder(folder: Path) -> list[Problem]:
    """Return what is wrong around the sessions.

    Raises:
        NotInStore: there is no such folder.
    """
    require_folder(folder)
    found = [*mode_problems(folder, FOLDER_MODE), *mode_problems(folder / SESSIONS, FOLDER_MODE)]
    places = session_places(folder)
    for each in sorted((folder / SESSIONS).iterdir()):
        if each.name.endswith(REMOVED):
            found.append(Problem(each, f"{each}: the removal of it was cut short", lost=False))
        elif each not in places:
            found.append(Problem(each, f"{each}: no session is called so", lost=False))
    return found


def check_session(place: Path) -> list[Problem]:
    """Return what is wrong in the folder of a session."""
    found = list(_mode_problems(place))
    try:
        manifest = read_manifest(place)
        if manifest is None:
            return found  # never made to the end
        require_session(place)
    except _UNREADABLE as error:
        return [*found, _problem(place / MANIFEST, error)]
    for path, read in ((place / JOURNAL, _read_journal), (place / ACTIONS, actions_of)):
        try:
            read(place)
        except StateDamaged as error:
            found.append(_problem(path, error))
    return [*found, *_state_problems(place, manifest)]


def _problem(path: Path, error: StatefsError) -> Problem:
    return Problem(path, str(error), lost=isinstance(error, StateDamaged))


def _read_journal(place: Path) -> None:
    """Read all events, and those after the last snapshot from its position."""
    manifest = require_session(place)
    for _ in read_events(place):
        pass
    recent = read_events(place, manifest.snapshot().position(), lost=(lost := list[int]()))
    found = [each.sequence for each in recent]
    require_all(place, manifest, [manifest.snapshot().events, *lost, *found])


def _mode_problems(place: Path) -> Iterator[Problem]:
    for path in (place, place / STATE, place / AUDIT_FOLDER):
        if path.is_dir() and not path.is_symlink():
            yield from mode_problems(path, FOLDER_MODE)
            for each in sorted(os.scandir(path), key=lambda entry: entry.name):
                if each.is_file(follow_symlinks=False):
                    yield from _file_mode_problems(Path(each.path))


def _file_mode_problems(path: Path) -> Iterator[Problem]:
    try:
        yield from mode_problems(path, FILE_MODE)
    except FileNotFoundError:
        return  # its program has just removed it


def _state_problems(place: Path, manifest: Manifest) -> list[Problem]:
    """Return what is wrong with the slots; anew where a program has just taken a snapshot."""
    found = []
    for slot, file in manifest.snapshot().slots.items():
        try:
            slot_value(place, slot, file, ANY_TYPES.form_of(slot))
        except StateDamaged as error:
            found.append(_problem(place / STATE / slot_file_name(slot, file), error))
    newer = read_manifest(place)
    if found and newer is not None and newer.number != manifest.number:
        return _state_problems(place, newer)
    for each in sorted(os.listdir(place / STATE)):
        is_begun = each.startswith(".") and each.endswith(".new")
        if slot_of_file(each) is None and not is_begun and ".broken-" not in each:
            path = place / STATE / each
            found.append(Problem(path, f"{path}: no slot has such a file", lost=False))
    return found
