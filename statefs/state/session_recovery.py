"""What a journaled session is resumed from: the last snapshot's slots, and the events after it.

Reads alone, so that damage is told before anything is changed. Where things lie in the folder of a
session is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from statefs.errors import NotInStore, StateDamaged
from statefs.state.audit import Action, Unfinished, read_actions
from statefs.state.documents import Form, converted, current_text, decoded, read_bytes
from statefs.state.journal import LOST, START, Position, read_journal
from statefs.state.json_store import DocumentType, Envelope
from statefs.state.session_manifest import (
    Manifest,
    SlotFile,
    read_manifest,
    slot_file_name,
)

JOURNAL: Final = "journal.log"
STATE: Final = "state"
AUDIT_FOLDER: Final = "audit"
ACTIONS: Final = "audit/actions.log"
ANY_SLOT: Final = DocumentType(Any)


@dataclass(frozen=True)
class SessionTypes:
    """What the sessions of a store may hold.

    Args:
        events: a msgspec type for each event, best a union of tagged Structs.
        slots: of JSON slots that are to hold something particular, with their migrations.
        others: the form of the other slots.
    """

    events: Any = Any
    slots: Mapping[str, DocumentType] = field(default_factory=dict)
    others: Form[Any] = field(default_factory=DocumentType(Any).form)

    def form_of(self, slot: str) -> Form[Any]:
        """Return what the file of a JSON slot looks like."""
        described = self.slots.get(slot)
        return self.others if described is None else described.form()


ANY_TYPES: Final = SessionTypes(others=Form(Envelope[Any], version=None))
"""For who looks at sessions without being the program that made them."""


class Event(NamedTuple):
    """An event of a session.

    Args:
        sequence: its number, from 1.
        at: when it was appended, ISO 8601 in UTC.
        value: of the store's type for events; else as JSON has it.
        end: where its line ends in the journal, in bytes.
    """

    sequence: int
    at: str
    value: Any
    end: int

    def position(self) -> Position:
        """Return the place behind it."""
        return Position(self.sequence, self.end)


class Recovery(NamedTuple):
    """What is known of a session when it is resumed.

    Args:
        revision: of the snapshot; 0 where there is none.
        slots: of the snapshot, by name.
        events: that came after it, in order; to be applied to the slots.
        unfinished: actions that were begun and of which nobody has said how they ended.
        actions: all that were not at their end when the snapshot was taken, those among them. One
            that is `done` is not to be done again, even where no event tells of it.
        lost: numbers of events after the snapshot that a repair could not save.
        cut_bytes: of records that were never finished, and that are cut off.
    """

    revision: int
    slots: dict[str, Any]
    events: list[Event]
    unfinished: list[Unfinished]
    actions: list[Action]
    lost: list[int]
    cut_bytes: int


class _EventRecord(msgspec.Struct, forbid_unknown_fields=True):
    """The value of a record in the journal."""

    at: str
    event: Any


def require_session(place: Path, store: str | None = None) -> Manifest:
    """Return the manifest of a session that is there.

    Args:
        place: the session's folder.
        store: the name its store has to have; None takes any.

    Raises:
        NotInStore: there is none, or it was never made to the end.
        StateDamaged, NewerStore, ResumeMismatch: see `read_manifest`.
    """
    if not place.is_dir() or place.is_symlink():
        raise NotInStore(f"{place.parent.parent} has no session '{place.name}'")
    manifest = read_manifest(place, store)
    if manifest is None:
        raise NotInStore(f"the session '{place.name}' was never made to the end: create it again")
    for path in (place / STATE, place / AUDIT_FOLDER):
        if path.is_symlink() or not path.is_dir():
            raise StateDamaged(f"{path} is no folder")
    return manifest


def recovered(place: Path, manifest: Manifest, types: SessionTypes) -> Recovery:
    """Return what a session is resumed from, all of it checked.

    Raises:
        StateDamaged: something of it is broken or missing; the message names file and line.
        NewerStore: a newer program has written a slot.
    """
    snapshot = manifest.snapshot()
    slots = {
        slot: slot_value(place, slot, file, types.form_of(slot))
        for slot, file in snapshot.slots.items()
    }
    lost: list[int] = []
    events = list(read_events(place, snapshot.position(), types.events, lost))
    actions = actions_of(place)
    require_all(place, manifest, [snapshot.events, *lost, *(each.sequence for each in events)])
    revision = next(reversed(manifest.snapshots), 0)
    unfinished = [each.begun for each in actions if each.outcome is None]
    recent = [each for each in actions if each.outcome is None or each.end > snapshot.actions]
    return Recovery(revision, slots, events, unfinished, recent, lost, 0)


def require_all(place: Path, manifest: Manifest, events: Iterable[int]) -> None:
    """Refuse a session from whose journals records have gone that the manifest knows of.

    Args:
        place: the session's folder.
        manifest: of the session.
        events: the numbers of the events that are there, the last one among them.

    Raises:
        StateDamaged: the message names file and line.
    """
    known = manifest.records()
    path = place / ACTIONS
    actions = (record.sequence for record in read_journal(path)) if path.exists() else iter(())
    for name, found, expected in (
        (JOURNAL, max(events), known[0]),
        (ACTIONS, max(actions, default=0), known[1]),
    ):
        if found < expected:
            raise StateDamaged(f"{place / name}, line {found + 1}: it was there, and is missing")


def actions_of(place: Path) -> list[Action]:
    """Return the audited actions of a session, the oldest first.

    Raises:
        StateDamaged: the log is broken or missing; the message names file and line.
    """
    path = place / ACTIONS
    if not path.exists():
        raise StateDamaged(f"{path} is missing")
    return read_actions(path)


def read_events(
    place: Path, after: Position = START, type_: Any = Any, lost: list[int] | None = None
) -> Iterator[Event]:
    """Return the events of a session after a place, the oldest first.

    Args:
        place: the session's folder.
        after: in the journal.
        type_: of the events.
        lost: takes the numbers of those that a repair could not save.

    Raises:
        StateDamaged: a record is broken or not of that type; the message names file and line.
    """
    path = place / JOURNAL
    try:
        for number, value, end in read_journal(path, after):
            if value == LOST:
                if lost is not None:
                    lost.append(number)
                continue
            record: _EventRecord = converted(value, _EventRecord, path, number)
            event = converted(record.event, type_, path, number)
            yield Event(number, record.at, event, end)
    except FileNotFoundError:
        raise StateDamaged(f"{path} is missing") from None


def slot_value(place: Path, slot: str, file: SlotFile, form: Form[Any]) -> Any:
    """Return what a slot holds: bytes, or a value of its form, brought up to date in memory.

    Raises:
        StateDamaged, NewerStore: see `recovered`.
    """
    path = place / STATE / slot_file_name(slot, file)
    data = read_slot_file(path, file)
    if file.form == "bytes":
        return data
    return decoded(current_text(data, path, form).text, path, form.type).values


def read_slot_file(path: Path, file: SlotFile) -> bytes:
    """Return the bytes of a slot's file.

    Raises:
        StateDamaged: it is missing, or not what the manifest says.
    """
    try:
        data = read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise StateDamaged(f"{path} is missing") from None
    if not file.holds(data):
        raise StateDamaged(f"{path}: it is not what the manifest's line {file.written} says")
    return data
