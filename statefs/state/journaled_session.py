"""One session that is under way: events one by one, snapshots of its state, audited actions.

Owns what is in memory of it, and the order of the writes. What it is resumed from is in
`session_recovery`, what its revisions say in `session_manifest`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec

from statefs.clock import Clock, iso_time
from statefs.durable import write_file
from statefs.errors import NotInStore, UsageError
from statefs.state.audit import AuditLog, Unfinished
from statefs.state.documents import json_text, mismatch_text
from statefs.state.journal import Journal, Position
from statefs.state.json_store import DocumentType
from statefs.state.locks import ProcessLock
from statefs.state.secret_values import require_no_secret
from statefs.state.session_manifest import (
    MANIFEST,
    MANIFEST_VERSION,
    NO_SNAPSHOT,
    Closed,
    Created,
    Finished,
    Resumed,
    Revision,
    SlotFile,
    Snapshot,
    file_names,
    slot_file_name,
    slot_of_file,
)
from statefs.state.session_recovery import (
    ACTIONS,
    JOURNAL,
    STATE,
    Event,
    Recovery,
    SessionTypes,
    read_events,
)
from statefs.state.snapshots import mounted_folder

KEPT_SNAPSHOTS: Final = 2
"""Whose slots stay: the last one, and one to go back to if a file of it is damaged. In a mounted
state, where snapshots have the others, the last one alone."""

REVISIONS_MAX: Final = 10**9
"""The name of a slot leaves room for so many, though nobody will have them."""
_NEW: Final = Recovery(0, {}, [], [], [], [], 0)


class _Encoded(NamedTuple):
    """A value as its slot's file holds it."""

    form: Literal["json", "bytes"]
    data: bytes


class JournaledSession:
    """A session that this process has; made by `SessionStore.create` and `SessionStore.resume`.

    Threads share it. At the end of a `with` it is closed; where an exception ends that, nothing is
    written, and the session counts as one that ended uncleanly.

    Args:
        id_: of the session.
        place: its folder, whose lock is held, with all that belongs in it.
        types: of its events and slots.
        lock: let go of in the end.
        clock: for the times in it.
        recovery: what it is resumed from; None of one that is being created.
        snapshots: its last ones, the newest last.
    """

    def __init__(
        self,
        id_: str,
        place: Path,
        types: SessionTypes,
        lock: ProcessLock,
        clock: Clock,
        recovery: Recovery | None = None,
        snapshots: list[Snapshot] | None = None,
    ) -> None:
        self.id = id_
        self.folder = place
        self._types, self._lock, self._clock = types, lock, clock
        self._mutex = threading.RLock()
        self._is_open = True
        self._active: set[int] = set()
        self._mounted = mounted_folder(place)
        self._snapshots = snapshots or []
        self._last = self._snapshots[-1] if self._snapshots else NO_SNAPSHOT
        with ExitStack() as stack:
            self._manifest = stack.enter_context(Journal(place / MANIFEST))
            after = self._last.position()
            self._journal = stack.enter_context(Journal(place / JOURNAL, after))
            self._audit = stack.enter_context(AuditLog(place / ACTIONS, clock))
            self._open = stack.pop_all()
        cut_bytes = sum(each.cut_bytes for each in (self._manifest, self._journal, self._audit))
        self.recovery = (recovery or _NEW)._replace(cut_bytes=cut_bytes)
        self._unsettled = self.recovery.unfinished
        self._positions = {each.sequence: each.position() for each in self.recovery.events}
        self._positions[self._last.events] = after

    def begin(self, store: str) -> None:
        """Have the manifest say what this session is; it is there then. `SessionStore` calls it."""
        self._append(Created(MANIFEST_VERSION, store, self.id, self._now()))

    def go_on(self) -> None:
        """Have the manifest say who has the session now. `SessionStore` calls it."""
        self._append(Resumed(self._now(), os.getpid()))
        self._sweep()

    def append(self, event: Any) -> int:
        """Add an event and return its number; it is durable then.

        Raises:
            UsageError: JSON does not hold it, it is not of the store's type, or something in it
                looks like a secret; nothing is written then.
            OSError: the disk refused; the event is not there.
        """
        plain = self._plain(event, "the event", self._types.events)
        with self._mutex:
            self._require_open()
            number = self._journal.append({"at": self._now(), "event": plain})
            self._positions[number] = self._journal.position()
            return number

    def snapshot(
        self,
        slots: Mapping[str, Any] | None = None,
        *,
        drop: tuple[str, ...] = (),
        through: int | None = None,
        reason: str = "turn",
        label: str | None = None,
    ) -> int:
        """Write the state down, all of it or nothing, so that a resumption begins there.

        Args:
            slots: new values, as bytes or as what JSON holds; slots that are not named stay.
            drop: slots that are no more.
            through: the number of the last event that the state has in it; None is the last one.
            reason: for the manifest, such as `turn`.
            label: in a mounted state, of a snapshot of all of it that is taken as well; elsewhere
                there is nothing to take, and it is passed over.

        Returns:
            the number of the revision.

        Raises:
            UsageError: see `append`; or `through` lies before the last snapshot.
            NotInStore: a slot to be dropped is not there.
            SnapshotExists: another snapshot has that label.
            OSError: the disk refused; the session is as it was.
        """
        encoded = {name: self._encoded(name, value) for name, value in (slots or {}).items()}
        self._plain([reason, label], "the reason or label", list[str | None])
        if label is not None and ("/" in label or label in ("", ".", "..")):
            raise UsageError(f"no snapshot can have the label '{label}'")
        with self._mutex:
            self._require_open()
            position = self._position_of(through)
            number = self._manifest.position().sequence + 1
            written = self._written(encoded, drop, number)
            if self._mounted is None:
                label = None
            elif label is not None:
                self._mounted.take_snapshot(label)
            actions = self._audit.last_record()
            snapshot = Snapshot(self._now(), reason, *position, actions, written, label)
            self._append(snapshot)
            self._note(snapshot)
            return number

    def _position_of(self, through: int | None) -> Position:
        position = self._journal.position()
        if through is None or through == position.sequence:
            return position
        if through not in self._positions:
            raise UsageError(
                f"a snapshot can be through an event from {self._last.events} to "
                f"{position.sequence}, not {through}"
            )
        return self._positions[through]

    def _written(
        self, encoded: Mapping[str, _Encoded], drop: tuple[str, ...], number: int
    ) -> dict[str, SlotFile]:
        """Return all slots of a snapshot, whose files are durable."""
        known = dict(self._last.slots)
        for name in drop:
            if known.pop(name, None) is None:
                raise NotInStore(f"the session '{self.id}' has no slot '{name}'")
        for name, (form, data) in encoded.items():
            old = known.get(name)
            if old is not None and old.form == form and old.holds(data):
                continue
            known[name] = SlotFile(number, form, len(data), hashlib.sha256(data).hexdigest())
            write_file(self.folder / STATE / slot_file_name(name, known[name]), data)
        return known

    def _note(self, snapshot: Snapshot) -> None:
        """Have the session go on from a snapshot that counts now."""
        self._last = snapshot
        self._snapshots = [*self._snapshots, snapshot][-KEPT_SNAPSHOTS:]
        self._positions = {
            sequence: position
            for sequence, position in self._positions.items()
            if sequence > snapshot.events
        } | {snapshot.events: snapshot.position()}
        self._sweep()

    def _sweep(self) -> None:
        """Remove the files of slots that no snapshot needs that is kept."""
        kept = 1 if self._mounted is not None else KEPT_SNAPSHOTS
        needed = set[str]().union(*(file_names(each.slots) for each in self._snapshots[-kept:]))
        for each in os.scandir(self.folder / STATE):
            is_begun = each.name.startswith(".") and each.name.endswith(".new")
            if is_begun or (slot_of_file(each.name) is not None and each.name not in needed):
                os.unlink(each.path)

    @contextmanager
    def audit(self, what: str, **details: Any) -> Iterator[int]:
        """Do something between two records; the first is durable before it begins.

        Args:
            what: is done, in words that programs can compare, such as `send-mail`.
            details: by which it can be found out later whether it was done.

        Yields:
            the number of the action.

        Raises:
            UsageError: see `append`; or an action that is the same in word and details was cut
                short and is not settled. Nothing is begun then.
            OSError: see `AuditLog.action`.
        """
        plain = self._plain({"what": what, "details": details}, "the action", dict[str, Any])
        number = 0
        try:
            with ExitStack() as stack:
                with self._mutex:
                    self._require_open()
                    self._require_settled(plain)
                    action = self._audit.action(plain["what"], **plain["details"])
                    number = stack.enter_context(action)
                    self._active.add(number)
                yield number
        finally:
            self._active.discard(number)

    def _require_settled(self, action: dict[str, Any]) -> None:
        """Raise UsageError where the same action was cut short, and may have been done."""
        for each in self._unsettled:
            if (each.what, each.details) == (action["what"], action["details"]):
                raise UsageError(
                    f"the action '{each.what}' was begun before, and may have been done: "
                    f"look, and settle({each.number}, ...) it first"
                )

    def unfinished(self) -> list[Unfinished]:
        """Return the actions that a crash cut short, and that nobody has settled yet."""
        with self._mutex:
            self._require_open()
            return [each for each in self._audit.unfinished() if each.number not in self._active]

    def settle(self, number: int, outcome: str) -> None:
        """Write down what became of an action that a crash cut short; it is listed no more.

        Raises:
            UsageError: see `AuditLog.settle`; or the action is under way.
        """
        plain = self._plain(outcome, "the outcome", str)
        with self._mutex:
            self._require_open()
            if number in self._active:
                raise UsageError(f"the action {number} is under way")
            self._audit.settle(number, plain)
            self._unsettled = [each for each in self._unsettled if each.number != number]

    def events(self) -> Iterator[Event]:
        """Return all events there are, the oldest first, read from the disk one by one."""
        self._require_open()
        return read_events(self.folder, type_=self._types.events)

    def close(self) -> None:
        """Let go of the session, which can be resumed; nothing is owed to the disk."""
        self._end(Closed)

    def finish(self) -> None:
        """End the session for good; it can be read, and not be resumed.

        Raises:
            UsageError: actions that a crash cut short have not been settled.
        """
        open_ones = ", ".join(f"{each.number} ({each.what})" for each in self.unfinished())
        if open_ones:
            raise UsageError(f"the session '{self.id}' has actions to settle first: {open_ones}")
        self._end(Finished)

    def _end(self, kind: type[Closed | Finished]) -> None:
        with self._mutex:
            if self._is_open:
                try:
                    events, actions = self._journal.position().sequence, self._audit.last_record()
                    self._append(kind(self._now(), events, actions))
                finally:
                    self.let_go()

    def let_go(self) -> None:
        """Let go of the session as a crash does: the manifest does not say that it was closed."""
        with self._mutex:
            self._is_open = False
            self._open.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.let_go()

    def __repr__(self) -> str:
        """Return the folder; never a value."""
        return f"{type(self).__name__}({str(self.folder)!r})"

    def _append(self, revision: Revision) -> None:
        self._manifest.append(msgspec.to_builtins(revision))

    def _encoded(self, slot: str, value: Any) -> _Encoded:
        what = f"the slot '{slot}'"
        slot_file_name(slot, SlotFile(REVISIONS_MAX, "bytes", 0, ""))
        if isinstance(value, bytes):
            require_no_secret(value, what)
            return _Encoded("bytes", value)
        described = self._types.slots.get(slot, DocumentType(Any))
        plain = self._plain(value, what, described.values)
        document = {"version": described.version, "values": plain}
        return _Encoded("json", json_text(document, what).encode() + b"\n")

    def _plain(self, value: Any, what: str, type_: Any) -> Any:
        """Return a value as JSON has it, after a look at its type and for secrets."""
        plain = json.loads(json_text(value, what))
        require_no_secret(plain, what)
        try:
            msgspec.convert(plain, type_)
        except msgspec.ValidationError as error:
            problem = mismatch_text(error)
        else:
            return plain
        raise UsageError(f"{what} is not of the store's type: {problem}")

    def _now(self) -> str:
        return iso_time(self._clock.now_ns())

    def _require_open(self) -> None:
        if not self._is_open:
            raise UsageError(f"the session '{self.id}' has been closed")
