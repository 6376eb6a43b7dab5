"""The manifest of a journaled session: what the session is, and where it can be taken up again.

A journal (`statefs.state.journal`) whose records are revisions. Appending a snapshot's revision is
the one step that makes the snapshot count. No file name is taken from it: the names of slots'
files follow from the slot and the revision that wrote them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from statefs.errors import NewerStore, ResumeMismatch, StateDamaged, UsageError
from statefs.state.documents import converted
from statefs.state.identifiers import file_name_of, name_of_file
from statefs.state.journal import LOST, Position, read_journal

MANIFEST: Final = "manifest.json"
MANIFEST_VERSION: Final = 1

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Status = Literal["running", "unclean", "closed", "finished"]


class SlotFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file of a slot.

    Args:
        written: the revision that wrote it; the file is `state/SLOT.REVISION`.
        form: whether it is a document of JSON or the bytes as they were given.
        size: of the file, in bytes; `bytes` in the manifest.
        sha256: of the file, in hexadecimal.
    """

    written: Count
    form: Literal["json", "bytes"]
    size: Count = msgspec.field(name="bytes")
    sha256: str

    def holds(self, data: bytes) -> bool:
        """Return whether these are the bytes of the file."""
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256


class Created(msgspec.Struct, tag_field="event", tag="created", forbid_unknown_fields=True):
    """The first revision: the session's id, and the name of its store."""

    version: int
    store: str
    id: str
    at: str


class Resumed(msgspec.Struct, tag_field="event", tag="resumed", forbid_unknown_fields=True):
    """A process has taken the session up."""

    at: str
    pid: int


class Snapshot(msgspec.Struct, tag_field="event", tag="snapshot", forbid_unknown_fields=True):
    """The state as it was after some event.

    Args:
        at: ISO 8601 in UTC.
        reason: the program's word, such as `turn`.
        events: the number of the last event it has in it.
        end: where that event's line ends in the journal, in bytes.
        actions: the number of the audit log's last record then.
        slots: all of them, by name.
        label: of the snapshot of the mounted state that was taken with it.
    """

    at: str
    reason: str
    events: Count
    end: Count
    actions: Count
    slots: dict[str, SlotFile]
    label: str | None = None

    def position(self) -> Position:
        """Return where in the journal the events begin that come after it."""
        return Position(self.events, self.end)


class Closed(msgspec.Struct, tag_field="event", tag="closed", forbid_unknown_fields=True):
    """The process has let go of the session, which can be resumed.

    Args:
        at: ISO 8601 in UTC.
        events, actions: the numbers of the last record of the journal and of the audit log.
    """

    at: str
    events: Count
    actions: Count


class Finished(msgspec.Struct, tag_field="event", tag="finished", forbid_unknown_fields=True):
    """The session has come to its end; otherwise as `Closed`."""

    at: str
    events: Count
    actions: Count


Revision = Created | Resumed | Snapshot | Closed | Finished
NO_SNAPSHOT: Final = Snapshot("", "", 0, 0, 0, {})
"""What a session is resumed from that has none yet: all of its events."""


class Manifest(NamedTuple):
    """A manifest that was read.

    Args:
        created: its first revision.
        snapshots: by the number of their revision, the oldest first.
        last: the last revision, of whatever kind.
        number: of the last revision.
        lost: numbers of revisions that a repair could not save.
    """

    created: Created
    snapshots: dict[int, Snapshot]
    last: Revision
    number: int
    lost: list[int]

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot."""
        return next(reversed(self.snapshots.values()), NO_SNAPSHOT)

    def records(self) -> tuple[int, int]:
        """Return how many records the journal and the audit log have at least."""
        marks = [
            (each.events, each.actions)
            for each in (*self.snapshots.values(), self.last)
            if isinstance(each, Snapshot | Closed | Finished)
        ]
        return max((events for events, _ in marks), default=0), max(
            (actions for _, actions in marks), default=0
        )

    def status(self, is_running: bool) -> Status:
        """Return what has become of the session; `is_running` says whether a process has it."""
        if isinstance(self.last, Finished):
            return "finished"
        if isinstance(self.last, Closed):
            return "closed"
        return "running" if is_running else "unclean"


class _Head(msgspec.Struct):
    version: int


def read_manifest(place: Path, store: str | None = None) -> Manifest | None:
    """Return the manifest of a session; None of one that was never made to the end.

    Args:
        place: the session's folder.
        store: the name its store has to have; None takes any.

    Raises:
        StateDamaged: it is broken, or missing where there are events; with file and line.
        NewerStore: a newer program has written it.
        ResumeMismatch: the session is of another store, or another one.
    """
    path = place / MANIFEST
    created: Created | None = None
    last: Revision | None = None
    number = 0
    snapshots, lost = dict[int, Snapshot](), list[int]()
    try:
        for number, value, _ in read_journal(path):
            if number == 1:
                last = created = _first(value, path)
            elif value == LOST:
                lost.append(number)
            else:
                last = converted(value, Revision, path, number)
                _require_order(last, number, path)
            if isinstance(last, Snapshot) and number not in lost:
                snapshots[number] = last
    except FileNotFoundError:
        pass
    if created is None or last is None:
        if any((place / name).exists() and (place / name).stat().st_size for name in _CONTENT):
            raise StateDamaged(f"{path} is missing or empty, and there are events")
        return None
    _require_match(created, path, store)
    return Manifest(created, snapshots, last, number, lost)


_CONTENT: Final = ("journal.log", "audit/actions.log")


def _first(value: Any, path: Path) -> Created:
    if value == LOST:
        raise StateDamaged(f"{path}, line 1: it was lost, and says which session this is")
    head = converted(value, _Head, path, 1)
    if head.version > MANIFEST_VERSION:
        raise NewerStore(
            f"{path} has version {head.version} and this program knows {MANIFEST_VERSION}: "
            "use a newer one"
        )
    created: Created = converted(value, Created, path, 1)
    return created


def _require_order(revision: Revision, number: int, path: Path) -> None:
    """Raise StateDamaged where a revision cannot stand at its place."""
    if isinstance(revision, Created):
        raise StateDamaged(f"{path}, line {number}: the session is created once more")
    if not isinstance(revision, Snapshot):
        return
    for slot, file in revision.slots.items():
        if not 0 < file.written <= number:
            raise StateDamaged(f"{path}, line {number}: a slot of revision {file.written}")
        try:
            slot_file_name(slot, file)
        except UsageError as error:
            raise StateDamaged(f"{path}, line {number}: {error}") from None


def _require_match(created: Created, path: Path, store: str | None) -> None:
    if file_name_of(created.id, "", "session id") != path.parent.name:
        raise ResumeMismatch(f"{path} is of another session, '{created.id}'")
    if store is not None and created.store != store:
        raise ResumeMismatch(
            f"{path} is of the store '{created.store}' and this one is '{store}': "
            "only a program that opens it by that name can go on with the session"
        )


def slot_file_name(slot: str, file: SlotFile) -> str:
    """Return the name of a slot's file in `state/`.

    Raises:
        UsageError: nothing can be called so.
    """
    return file_name_of(slot, f".{file.written}", "slot")


def slot_of_file(file_name: str) -> str | None:
    """Return the slot whose file can have that name; None where none can."""
    head, dot, written = file_name.rpartition(".")
    is_number = written.isascii() and written.isdecimal() and written[:1] != "0"
    return name_of_file(head) if dot and is_number else None


def file_names(slots: Mapping[str, SlotFile]) -> set[str]:
    """Return the names of the files of slots."""
    return {slot_file_name(slot, file) for slot, file in slots.items()}
