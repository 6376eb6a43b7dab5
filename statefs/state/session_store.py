"""Sessions of an agent runtime that come back after a kill at any moment.

Each session is a folder with a manifest, a journal of events, the state at its last snapshots, and
a log of audited actions; docs/state-stores.md describes them. One process has a session at a time;
several have different ones of one store.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from statefs.clock import Clock, SystemClock
from statefs.durable import make_folder, sync_folder
from statefs.errors import NewerStore, ResumeMismatch, StateDamaged, UsageError
from statefs.state.identifiers import checked_id, file_name_of, name_of_file
from statefs.state.journaled_session import KEPT_SNAPSHOTS, JournaledSession
from statefs.state.json_store import LOCK, DocumentType, made_folder
from statefs.state.locks import ProcessLock, holder_of
from statefs.state.session_manifest import read_manifest
from statefs.state.session_recovery import (
    AUDIT_FOLDER,
    JOURNAL,
    STATE,
    SessionTypes,
    actions_of,
    read_events,
    recovered,
    require_all,
    require_session,
)

SESSIONS: Final = "sessions"
REMOVED: Final = ".removed"
"""Where in `sessions/` a session lies while it is being removed."""


class SessionState(NamedTuple):
    """What is known of a session without taking it up.

    Args:
        id: of the session.
        store: the name of its store; empty where it cannot be read.
        status: `running` (a process has it), `unclean` (its process has ended and did not say so),
            `closed`, `finished`, or `damaged`.
        created_at, changed_at: ISO 8601 in UTC; empty where they cannot be read.
        snapshots: how many were taken.
        events: the number of the last one.
        unfinished: how many actions have no end.
        damage: what keeps it from being resumed; None of a sound one. Slots are not looked at.
    """

    id: str
    store: str
    status: str
    created_at: str
    changed_at: str
    snapshots: int
    events: int
    unfinished: int
    damage: str | None


class SessionStore:
    """Journaled sessions in a folder; threads share one object.

    Args:
        folder: made, with mode 0700, where there is none; it may have other stores in it.
        name: of the store, such as that of the program. The manifests have it, and a store of
            another name does not resume their sessions.
        events: a msgspec type that every event has to be of.
        slots: types of slots that are to hold something particular.
        clock: for the times in sessions.

    Raises:
        UsageError: the name is empty or no text.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        *,
        events: Any = Any,
        slots: Mapping[str, DocumentType] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.name = checked_id(name, "name of the store")
        self._types = SessionTypes(events, dict(slots or {}))
        self._clock = clock or SystemClock()
        made_folder(self.folder / SESSIONS)

    def create(self, session_id: str | None = None) -> JournaledSession:
        """Make a session, which this process has then; it is durable.

        Args:
            session_id: names it; None gives it an id.

        Raises:
            UsageError: the id is taken or cannot name a session.
            StoreLocked: another process is making it.
        """
        id_ = uuid.uuid4().hex if session_id is None else session_id
        place = self._place(id_)
        if place.is_symlink():
            raise UsageError(f"{place} is a link, which is not followed")
        made_folder(place)

        def begun(lock: ProcessLock) -> JournaledSession:
            if read_manifest(place) is not None:
                raise UsageError(f"there is a session '{id_}' already")
            for name in (STATE, AUDIT_FOLDER):
                make_folder(place / name)
            session = JournaledSession(id_, place, self._types, lock, self._clock)
            for folder in (place / AUDIT_FOLDER, place, place.parent):
                sync_folder(folder)  # what one that was killed has left may not be durable
            session.begin(self.name)
            return session

        return self._locked(place, begun)

    def resume(self, session_id: str, *, despite_loss: bool = False) -> JournaledSession:
        """Take a session up where it was; its `recovery` has the last snapshot and what came after.

        Nothing is changed before all of that has been read and found whole.

        Args:
            session_id: of the session.
            despite_loss: whether events may be missing that a repair could not save.

        Raises:
            NotInStore: there is no such session.
            UsageError: it has been finished.
            StoreLocked: another process has it.
            ResumeMismatch: it was made by a store of another name.
            StateDamaged, NewerStore: something in it cannot be understood; the message names file
                and line.
        """
        place = self._place(session_id)
        require_session(place, self.name)

        def taken_up(lock: ProcessLock) -> JournaledSession:
            manifest = require_session(place, self.name)
            if manifest.status(is_running=False) == "finished":
                raise UsageError(f"the session '{session_id}' has been finished: create another")
            recovery = recovered(place, manifest, self._types)
            if recovery.lost and not despite_loss:
                raise StateDamaged(
                    f"{place / JOURNAL}, line {recovery.lost[0]}: the event is lost, and no "
                    "snapshot has it: 'despite_loss' goes on without it"
                )
            session = JournaledSession(
                session_id,
                place,
                self._types,
                lock,
                self._clock,
                recovery,
                list(manifest.snapshots.values())[-KEPT_SNAPSHOTS:],
            )
            session.go_on()
            return session

        return self._locked(place, taken_up)

    def sessions(self) -> list[SessionState]:
        """Return the sessions of this store, in the order of their last changes, the newest first.

        Damaged ones are among them, and those whose store nobody can tell.
        """
        found = states_of(self.folder)
        return [each for each in found if each.store in (self.name, "")]

    def unclean(self) -> list[SessionState]:
        """Return the sessions whose process has ended without closing them, and the damaged."""
        return [each for each in self.sessions() if each.status in ("unclean", "damaged")]

    def remove(self, session_id: str) -> None:
        """Remove a session and all that is in its folder. Nothing else ever does.

        Raises:
            NotInStore: there is no such session.
            StoreLocked: a process has it.
            ResumeMismatch: it was made by a store of another name.
        """
        place = self._place(session_id)
        try:
            require_session(place, self.name)
        except (StateDamaged, NewerStore):
            pass  # what cannot be read can be removed all the same
        with ProcessLock(place / LOCK):
            gone = place.with_name(f".{place.name}{REMOVED}")
            if gone.exists():
                shutil.rmtree(gone)
            os.rename(place, gone)
            sync_folder(place.parent)
            shutil.rmtree(gone)

    def _place(self, session_id: str) -> Path:
        return place_of(self.folder, session_id)

    def _locked(
        self, place: Path, opened: Callable[[ProcessLock], JournaledSession]
    ) -> JournaledSession:
        """Return a session, which has its lock from now on."""
        with ExitStack() as stack:
            lock = stack.enter_context(ProcessLock(place / LOCK))
            session = opened(lock)
            stack.pop_all()
            return session


def place_of(folder: Path, session_id: str) -> Path:
    """Return where a session lies in the folder of a store. Raises UsageError."""
    return folder / SESSIONS / file_name_of(session_id, "", "session id")


def session_places(folder: Path) -> list[Path]:
    """Return the folders of the sessions in a store, in the order of the alphabet.

    Those that were never made to the end are among them.
    """
    try:
        found = list(os.scandir(folder / SESSIONS))
    except FileNotFoundError:
        return []
    return sorted(
        Path(each.path)
        for each in found
        if name_of_file(each.name) is not None and each.is_dir(follow_symlinks=False)
    )


def states_of(folder: Path) -> list[SessionState]:
    """Return all sessions of all stores in a folder, the last changed first."""
    found = (state_of(place) for place in session_places(folder))
    sessions = [each for each in found if each is not None]
    return sorted(sessions, key=lambda each: (each.changed_at, each.id), reverse=True)


def state_of(place: Path) -> SessionState | None:
    """Return what is known of a session; None of one that was never made to the end."""
    id_ = name_of_file(place.name) or place.name
    state = SessionState(id_, "", "damaged", "", "", 0, 0, 0, None)
    try:
        manifest = read_manifest(place)
        if manifest is None:
            return None
        snapshot = manifest.snapshot()
        state = state._replace(
            store=manifest.created.store,
            created_at=manifest.created.at,
            changed_at=manifest.last.at,
            snapshots=len(manifest.snapshots),
            events=snapshot.events,
        )
        lost = list[int]()
        for event in read_events(place, snapshot.position(), lost=lost):
            changed_at = max(state.changed_at, event.at)
            state = state._replace(events=event.sequence, changed_at=changed_at)
        require_all(place, manifest, [state.events, *lost])
        unfinished = sum(each.outcome is None for each in actions_of(place))
    except (StateDamaged, NewerStore, ResumeMismatch) as error:
        return state._replace(damage=str(error))
    status = manifest.status(holder_of(place / LOCK) is not None)
    return state._replace(status=status, unfinished=unfinished)
