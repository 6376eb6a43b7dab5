"""Journaled sessions put right from outside, so that they can be resumed with all that is left.

Broken journals are made again with every whole record. A slot that is damaged comes back from a
snapshot of the mounted state, byte for byte; or the session goes back to an older snapshot whose
slots are whole, from which its events lead on. Whatever was broken stays beside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from statefs.clock import Clock, SystemClock, iso_time
from statefs.durable import sync_folder, write_file
from statefs.errors import NewerStore, NotInStore, ResumeMismatch, StateDamaged
from statefs.state.audit import AuditLog
from statefs.state.checking import (
    Problem,
    Repair,
    mended_audit,
    older_versions,
    repair_of,
    repaired,
    require_folder,
)
from statefs.state.copies import place_aside
from statefs.state.documents import read_bytes
from statefs.state.journal import START, Journal, Position, read_journal
from statefs.state.journal_repair import is_broken, salvage_journal
from statefs.state.json_store import AUDIT, LOCK
from statefs.state.locks import ProcessLock
from statefs.state.session_manifest import (
    MANIFEST,
    Manifest,
    SlotFile,
    Snapshot,
    slot_file_name,
)
from statefs.state.session_recovery import (
    ACTIONS,
    JOURNAL,
    STATE,
    read_slot_file,
    require_session,
)
from statefs.state.session_store import REMOVED, session_places
from statefs.state.session_store_checking import check_folder, check_session, check_store

REASON: Final = "repair"
"""Of the snapshot that a repair adds to a manifest."""


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
        done = mended_audit(folder, clock)
        with AuditLog(folder / AUDIT, clock) as audit:
            done += [_put_right(each, audit, clock) for each in check_folder(folder)]
            for place in session_places(folder):
                if check_session(place):
                    with ProcessLock(place / LOCK):
                        done += _SessionRepair(place, audit, clock).all()
            return done


def _put_right(problem: Problem, audit: AuditLog, clock: Clock) -> Repair:
    path = problem.path
    if not path.name.endswith(REMOVED):
        return repaired(problem, audit, clock, read_bytes)
    with audit.action("repair", path=path.name, problem=problem.message):
        shutil.rmtree(path)
    return Repair(path, f"{path}: removed, as it was to be")


class _SessionRepair(NamedTuple):
    """The repair of one session, whose lock is held."""

    place: Path
    audit: AuditLog
    clock: Clock

    def all(self) -> list[Repair]:
        """Put right what can be, and name the rest."""
        done = [*self._journal(MANIFEST)]
        with suppress(StateDamaged, NewerStore, NotInStore, ResumeMismatch):  # named below
            manifest = require_session(self.place)
            events, actions = manifest.records()
            is_missing = not (self.place / ACTIONS).exists()  # there may have been some
            done += self._journal(ACTIONS, max(actions, int(is_missing)))
            done += self._journal(JOURNAL, events)
            done += self._state(manifest)
        return done + [self._rest(each) for each in check_session(self.place)]

    def _rest(self, problem: Problem) -> Repair:
        if problem.lost:
            return Repair(problem.path, f"{problem.message}: left as it is", lost=True)
        return _put_right(problem, self.audit, self.clock)

    def _journal(self, name: str, at_least: int = 0) -> Iterator[Repair]:
        """Make a journal again that is broken, or has fewer records than it had."""
        path = self.place / name
        if not path.parent.is_symlink() and is_broken(path, at_least):
            with self.audit.action("repair", path=str(path)):
                done = salvage_journal(path, self.clock, older_versions(path), at_least)
            yield repair_of(done)

    def _state(self, manifest: Manifest) -> Iterator[Repair]:
        """Have the manifest end with a snapshot that is whole, at its place in the journal."""
        last = manifest.snapshot()
        if not manifest.snapshots:
            return
        for slot, file in self._broken_slots(last):
            yield from self._restored(slot, file)
        whole = self._newest_whole(manifest)
        if whole is None:
            return  # which slots are broken is named in the end
        for slot, file in self._broken_slots(last):
            path = self._path(slot, file)
            aside = self._put_aside(path)
            if aside is not None:
                source = self._path(slot, whole.slots.get(slot, file))
                yield Repair(path, f"{path}: moved to {aside.name}", aside, source)
        position = _position_of(self.place / JOURNAL, whole.events)
        if whole is last and position == last.position():
            return
        with self.audit.action("repair", path=str(self.place / MANIFEST)):
            anew = msgspec.structs.replace(
                whole,
                at=iso_time(self.clock.now_ns()),
                reason=REASON,
                end=position.end,
                label=None,
            )
            with Journal(self.place / MANIFEST) as journal:
                number = journal.append(msgspec.to_builtins(anew))
        said = "" if whole is last else f", from the one of {whole.at}, with all events after it"
        yield Repair(self.place, f"{self.place}: resumed from revision {number}{said}")

    def _broken_slots(self, snapshot: Snapshot) -> Iterator[tuple[str, SlotFile]]:
        for slot, file in snapshot.slots.items():
            try:
                read_slot_file(self._path(slot, file), file)
            except StateDamaged:
                yield slot, file

    def _newest_whole(self, manifest: Manifest) -> Snapshot | None:
        found = (each for each in reversed(manifest.snapshots.values()) if self._is_whole(each))
        return next(found, None)

    def _is_whole(self, snapshot: Snapshot) -> bool:
        """Return whether all slots of a snapshot are there, if need be from the mounted state."""
        for slot, file in self._broken_slots(snapshot):
            list(self._restored(slot, file))
        return next(self._broken_slots(snapshot), None) is None

    def _restored(self, slot: str, file: SlotFile) -> Iterator[Repair]:
        """Bring the file of a slot back from a snapshot of the mounted state that has it."""
        path = self._path(slot, file)
        for version in older_versions(path):
            data = read_bytes(version)
            if file.holds(data):
                with self.audit.action("repair", path=str(path)):
                    aside = self._put_aside(path)
                    write_file(path, data)
                yield Repair(path, f"{path}: brought back from {version}", aside, version)
                return

    def _put_aside(self, path: Path) -> Path | None:
        if not path.is_file() or path.is_symlink():
            return None
        aside = place_aside(path, self.clock)
        write_file(aside, read_bytes(path))
        os.unlink(path)
        sync_folder(path.parent)
        return aside

    def _path(self, slot: str, file: SlotFile) -> Path:
        return self.place / STATE / slot_file_name(slot, file)


def _position_of(path: Path, events: int) -> Position:
    """Return the place in a journal behind the record of that number."""
    return next(
        (
            Position(record.sequence, record.end)
            for record in read_journal(path)
            if record.sequence == events
        ),
        START,
    )
