"""What was done to a store, and by whom: written down before it is done.

A record of an action is durable before the action begins; a second one says how it ended. One
without a second was cut short by a crash. Records hold no values of the store, and of an error only
its type: a message could quote a secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from statefs.clock import Clock, SystemClock, iso_time
from statefs.errors import UsageError
from statefs.state.documents import converted
from statefs.state.journal import LOST, Journal, read_journal

BEGUN: Final = "begun"
DONE: Final = "done"
FAILED: Final = "failed"
SETTLED: Final = "settled"

LOST_ACTION: Final = "lost"
"""What a record was about that a repair could not save, which may have begun an action."""


class Begun(msgspec.Struct, tag_field="event", tag=BEGUN, forbid_unknown_fields=True):
    """The record of an action that is about to be done."""

    at: str
    what: str
    pid: int
    details: dict[str, Any]


class Done(msgspec.Struct, tag_field="event", tag=DONE, forbid_unknown_fields=True):
    """The record of an action's end; `of` is the number of the first one."""

    at: str
    of: int


class Failed(msgspec.Struct, tag_field="event", tag=FAILED, forbid_unknown_fields=True):
    """The record of an end by an error, of which it has the type."""

    at: str
    of: int
    error: str


class Settled(msgspec.Struct, tag_field="event", tag=SETTLED, forbid_unknown_fields=True):
    """The record of what somebody has found out about an action that had been cut short."""

    at: str
    of: int
    outcome: str


class Unfinished(NamedTuple):
    """An action that was begun, and of which no record says that it has ended.

    Args:
        path: of the audit log.
        number: of the record, and of its line.
        at: when it was begun, ISO 8601 in UTC.
        what: it was to do.
        pid: of the process that began it; it may be at it still.
        details: as they were given.
    """

    path: Path
    number: int
    at: str
    what: str
    pid: int
    details: dict[str, Any]

    def text(self) -> str:
        """Return one line about it, for people."""
        return (
            f"{self.path}, line {self.number}: '{self.what}' was begun at {self.at} "
            f"by pid {self.pid} and has no end"
        )


class Action(NamedTuple):
    """An action in an audit log.

    Args:
        begun: its first record.
        outcome: `done`, `failed`, or what somebody has settled; None of one without an end.
        end: the number of the record of its end; 0 where there is none.
    """

    begun: Unfinished
    outcome: str | None
    end: int


def read_actions(path: Path) -> list[Action]:
    """Return the actions in an audit log, the oldest first; nothing is changed, no lock needed.

    Args:
        path: of the log; there may be none.

    Raises:
        StateDamaged: a record is broken; the message names file and line.
    """
    found: dict[int, Action] = {}
    try:
        for number, value, _ in read_journal(path):
            if value == LOST:
                begun = Unfinished(path, number, "", LOST_ACTION, 0, {})
                found[number] = Action(begun, None, 0)
                continue
            record = converted(value, Begun | Done | Failed | Settled, path, number)
            if isinstance(record, Begun):
                begun = Unfinished(path, number, record.at, record.what, record.pid, record.details)
                found[number] = Action(begun, None, 0)
            elif record.of in found:
                found[record.of] = Action(found[record.of].begun, _outcome(record), number)
    except FileNotFoundError:
        return []
    return list(found.values())


def _outcome(record: Done | Failed | Settled) -> str:
    if isinstance(record, Settled):
        return record.outcome
    return DONE if isinstance(record, Done) else FAILED


def unfinished_actions(path: Path) -> list[Unfinished]:
    """Return the actions in an audit log that have no end; otherwise as `read_actions`."""
    return [each.begun for each in read_actions(path) if each.outcome is None]


class AuditLog:
    """The list of actions on one store; whoever opens it has the store's lock.

    Args:
        path: of its journal.
        clock: for the times in it.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._journal = Journal(path)
        self._clock = clock or SystemClock()

    @property
    def cut_bytes(self) -> int:
        """Of a record that was never finished, and that was cut off at opening."""
        return self._journal.cut_bytes

    def last_record(self) -> int:
        """Return the number of the last record; 0 where there is none."""
        return self._journal.position().sequence

    @contextmanager
    def action(self, what: str, **details: Any) -> Iterator[int]:
        """Do something between two records; yields the number of the first one.

        Args:
            what: is done, in words that programs can compare, such as `rotate-key`.
            details: what JSON holds, and no secret.

        Raises:
            OSError: it could not be written down, and was not begun; or, it was done, its end was
                not written down.
        """
        begun = {"event": BEGUN, "what": what, "pid": os.getpid(), "details": details}
        number = self._append(begun)
        try:
            yield number
        except BaseException as error:
            try:
                self._append({"event": FAILED, "of": number, "error": type(error).__name__})
            except OSError as unwritten:
                error.add_note(f"the audit log could not be written either: {unwritten}")
            raise
        self._append({"event": DONE, "of": number})

    def _append(self, record: dict[str, Any]) -> int:
        return self._journal.append({"at": iso_time(self._clock.now_ns()), **record})

    def settle(self, number: int, outcome: str) -> None:
        """Write down what became of an action that has no end.

        Args:
            number: of its first record.
            outcome: in words that programs can compare, such as `done`.

        Raises:
            UsageError: no action of that number is without an end.
            OSError: it could not be written down.
        """
        if number not in (each.number for each in self.unfinished()):
            raise UsageError(f"{self._journal.path} has no action {number} without an end")
        self._append({"event": SETTLED, "of": number, "outcome": outcome})

    def unfinished(self) -> list[Unfinished]:
        """Return what was begun and has no end, the oldest first."""
        return unfinished_actions(self._journal.path)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
