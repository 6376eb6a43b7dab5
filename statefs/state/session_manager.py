"""Sessions of agents and chats: made, saved, listed and loaded, in scopes.

A session is one file that is replaced whole; the list of a scope is another one. Owns what is in
memory; the files' content is in `session_documents`, the list in `session_index`.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from statefs.clock import Clock, SystemClock, iso_time
from statefs.durable import sync_folder, write_file
from statefs.errors import NotInStore, UsageError
from statefs.state.documents import encoded, read_document
from statefs.state.identifiers import checked_id, file_name_of
from statefs.state.json_store import LOCK, made_folder
from statefs.state.locks import ProcessLock
from statefs.state.session_documents import (
    INDEX_FORM,
    Session,
    SessionEntry,
    entry_of,
)
from statefs.state.session_index import INDEX, SUFFIX, SessionListing, newest_first, read_session

SESSIONS: Final = "sessions"


@dataclass(frozen=True)
class Scope:
    """Whose sessions they are.

    Args:
        kind: the sessions of everybody, of one assistant or of one project.
        id: of the assistant or the project; empty for `global`.
    """

    kind: Literal["global", "assistant", "project"] = "global"
    id: str = ""

    def place(self) -> Path:
        """Return the folder, relative to the manager's.

        Raises:
            UsageError: the id cannot name one, or is missing, or is one too many.
        """
        if self.kind == "global":
            if self.id:
                raise UsageError("the global scope has no id")
            return Path(self.kind, SESSIONS)
        return Path(self.kind, file_name_of(self.id, "", f"{self.kind} id"), SESSIONS)


GLOBAL: Final = Scope()


class SessionManager:
    """The sessions of one scope at a time; threads share one object.

    A session that was got is the caller's to change and save; it is in memory once.

    Args:
        folder: of all scopes; made, with mode 0700, where there is none.
        scope: to begin with.
        read_only: change nothing and take no lock.
        clock: for the times in sessions.

    Raises:
        StoreLocked: another process has the folder open to write.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        scope: Scope = GLOBAL,
        *,
        read_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._clock = clock or SystemClock()
        self._mutex = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self._saved: dict[str, bytes] = {}
        self._lock: ProcessLock | None = None
        self._is_open = True
        if not read_only:
            made_folder(self.folder)
            self._lock = ProcessLock(self.folder / LOCK)
            self._lock.acquire()
        try:
            self._enter(scope)
        except BaseException:
            self._release()
            raise

    def create(self, agent_id: str, title: str = "", session_id: str | None = None) -> Session:
        """Make a session; it is durable then.

        Raises:
            UsageError: the id is taken or cannot name a session.
        """
        checked_id(agent_id, "agent id")
        with self._mutex:
            self._require_writable()
            id_ = uuid.uuid4().hex if session_id is None else session_id
            if self._path(id_).exists():
                raise UsageError(f"there is a session '{id_}' already")
            now = self._now()
            session = Session(
                id=id_, agent_id=agent_id, title=title, started_at=now, updated_at=now
            )
            self.save(session)
            return session

    def get(self, session_id: str) -> Session:
        """Return a session, from memory where it was got before.

        Raises:
            NotInStore: there is none of that id in this scope.
            StateDamaged, NewerStore: its file cannot be understood; the message names it.
        """
        with self._mutex:
            self._require_open()
            return self._sessions.get(session_id) or self.load(session_id)

    def load(self, session_id: str) -> Session:
        """Read a session from its file, whatever of it is in memory.

        Raises:
            NotInStore, StateDamaged, NewerStore: see `get`.
        """
        with self._mutex:
            self._require_open()
            try:
                session = read_session(self._path(session_id))
            except FileNotFoundError:
                raise NotInStore(f"there is no session '{session_id}' in {self._place}") from None
            self._sessions[session_id] = session
            self._saved[session_id] = _digest(session)
            return session

    def list(self) -> list[SessionEntry]:
        """Return the sessions of this scope, the last saved first; one file is read for it.

        In a process that only reads, one change in a hundred of a long list may not be there yet.
        """
        with self._mutex:
            self._require_open()
            if self._listing is not None:
                return self._listing.entries()
        try:
            return newest_first(read_document(self._place / INDEX, INDEX_FORM).sessions)
        except FileNotFoundError:
            return []

    def save(self, session: Session) -> None:
        """Write a session; it is durable then, and its `updated_at` is now.

        Raises:
            UsageError: it has a value of a wrong type; nothing is written then.
            OSError: the disk refused; its file is as it was.
        """
        with self._mutex:
            listing = self._require_writable()
            path = self._path(session.id)
            session.updated_at = self._now()
            data = encoded(session, f"the session '{session.id}'")
            write_file(path, msgspec.json.format(data) + b"\n")
            self._sessions[session.id] = session
            self._saved[session.id] = _digest(session)
            listing.put(entry_of(session))

    def delete(self, session_id: str) -> None:
        """Delete a session.

        Raises:
            NotInStore: there is none of that id in this scope.
        """
        with self._mutex:
            listing = self._require_writable()
            try:
                self._path(session_id).unlink()
            except FileNotFoundError:
                raise NotInStore(f"there is no session '{session_id}' in {self._place}") from None
            sync_folder(self._place)
            self._sessions.pop(session_id, None)
            listing.remove(session_id)

    def switch(self, scope: Scope) -> None:
        """Save what has changed of this scope's sessions, and go over to another scope."""
        with self._mutex:
            self._require_open()
            scope.place()
            self._settle()
            self._enter(scope)

    def save_changed(self) -> None:
        """Save the sessions that differ from what was last saved or loaded."""
        with self._mutex:
            self._require_writable()
            failures: list[Exception] = []
            for session in list(self._sessions.values()):
                try:
                    if _digest(session) != self._saved[session.id]:
                        self.save(session)
                except (
                    OSError,
                    UsageError,
                    TypeError,
                ) as error:  # the others are saved all the same
                    failures.append(error)
            if failures:
                raise failures[0]

    def close(self) -> None:
        """Save what has changed and let go of the folder."""
        with self._mutex:
            try:
                if self._is_open:
                    self._settle()
            finally:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self, scope: Scope) -> None:
        place = self.folder / scope.place()
        listing = None
        if self._lock is not None:
            made_folder(place)
            listing = SessionListing(place)
        self.scope, self._place, self._listing = scope, place, listing
        self._sessions, self._saved = {}, {}

    def _settle(self) -> None:
        if self._listing is not None:
            self.save_changed()
            self._listing.settle()

    def _release(self) -> None:
        self._is_open = False
        if self._lock is not None:
            self._lock.release()

    def _path(self, session_id: str) -> Path:
        path = self._place / file_name_of(session_id, SUFFIX, "session id")
        if path.name == INDEX:
            raise UsageError("no session can be called 'index': the list is")
        return path

    def _now(self) -> str:
        return iso_time(self._clock.now_ns())

    def _require_open(self) -> None:
        if not self._is_open:
            raise UsageError(f"the sessions in {self.folder} have been closed")

    def _require_writable(self) -> SessionListing:
        self._require_open()
        if self._listing is None:
            raise UsageError(f"the sessions in {self.folder} were opened to be read only")
        return self._listing


def _digest(session: Session) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(session)).digest()
