"""The list of the sessions in one folder: `index.json`, made anew from bodies where it is late.

A body is written before the index that tells of it. So what the index does not know is a body that
is no older than it, one that it does not name, or one that is gone: these few are looked at when a
folder is opened, and none of the others is read. That is why the index of many sessions may be some
changes late.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from statefs.durable import write_file
from statefs.errors import NewerStore, StateDamaged
from statefs.state.documents import read_document
from statefs.state.identifiers import file_name_of, name_of_file
from statefs.state.session_documents import (
    INDEX_FORM,
    INDEX_VERSION,
    SESSION_FORM,
    Session,
    SessionEntry,
    entry_of,
)

INDEX: Final = "index.json"
CHANGES_PER_ENTRY: Final = 0.01
"""The file is written once for so many changes, and the next opening makes up for them: else ten
thousand saves would write ten thousand long lists."""
SUFFIX: Final = ".json"

_log = logging.getLogger(__name__)


class SessionListing:
    """The entries of one folder in memory, as the lines of the file.

    Args:
        folder: with the bodies and the index.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX
        self._lines: dict[str, bytes] = {}
        self._unwritten = 0
        known, age_ns = _known_entries(self._path)
        bodies = session_files(folder)
        for id_, path in bodies.items():
            entry = known.get(id_)
            if entry is None or path.stat().st_mtime_ns >= age_ns:
                entry = read_entry(path)
            if entry is not None:
                self._lines[id_] = msgspec.json.encode(entry)
        if {id_: msgspec.json.encode(entry) for id_, entry in known.items()} != self._lines:
            self._write()

    def entries(self) -> list[SessionEntry]:
        """Return the entries, the last saved first."""
        text = b"[" + b",".join(self._lines.values()) + b"]"
        return newest_first(msgspec.json.decode(text, type=list[SessionEntry]))

    def put(self, entry: SessionEntry) -> None:
        """Have the list show an entry, whose body is durable."""
        self._lines[entry.id] = msgspec.json.encode(entry)
        self._note_change()

    def remove(self, id_: str) -> None:
        """Take an entry out of the list, whose body is gone."""
        if self._lines.pop(id_, None) is not None:
            self._note_change()

    def settle(self) -> None:
        """Have the file say what the list says."""
        if self._unwritten:
            self._write()

    def _note_change(self) -> None:
        self._unwritten += 1
        if self._unwritten >= CHANGES_PER_ENTRY * len(self._lines):
            self._write()

    def _write(self) -> None:
        head = f'{{"version": {INDEX_VERSION}, "sessions": [\n'.encode()
        write_file(self._path, head + b",\n".join(self._lines.values()) + b"\n]}\n")
        self._unwritten = 0


def newest_first(entries: list[SessionEntry]) -> list[SessionEntry]:
    """Return entries in the order of a list, the last saved first."""
    return sorted(entries, key=lambda entry: (entry.updated_at, entry.id), reverse=True)


def session_files(folder: Path) -> dict[str, Path]:
    """Return the bodies in a folder by the id of their session."""
    found = {}
    for each in os.scandir(folder):
        id_ = None if each.name == INDEX else name_of_file(each.name, SUFFIX)
        if id_ is not None and each.is_file(follow_symlinks=False):
            found[id_] = folder / each.name
    return found


def read_session(path: Path) -> Session:
    """Return the session in a file.

    Raises:
        FileNotFoundError: there is none.
        StateDamaged: it is broken, or of another session than the file's name says.
        NewerStore: a newer program has written it.
    """
    session = read_document(path, SESSION_FORM)
    if file_name_of(session.id, SUFFIX, "session id") != path.name:
        raise StateDamaged(f"{path} holds another session, '{session.id}'")
    return session


def read_entry(path: Path) -> SessionEntry | None:
    """Return the entry of a body; None of one that is broken or too new, which is logged."""
    try:
        return entry_of(read_session(path))
    except (StateDamaged, NewerStore) as error:
        _log.warning("%s; it is not listed", error)
        return None


def _known_entries(path: Path) -> tuple[dict[str, SessionEntry], int]:
    """Return what the index says, and when it was written (since 1970); nothing of a broken one."""
    try:
        age_ns = path.stat().st_mtime_ns
        index = read_document(path, INDEX_FORM)
    except FileNotFoundError:
        return {}, 0
    except StateDamaged as error:
        _log.warning("%s; the index is made again from the sessions", error)
        return {}, 0
    return {entry.id: entry for entry in index.sessions}, age_ns
