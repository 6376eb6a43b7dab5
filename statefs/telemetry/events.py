"""What can happen to a state, as frozen data, and the one place through which it is told.

Who listens (the log, the kept events, hooks, metrics) is decided elsewhere. A listener must not
wait and must not raise: telling happens in the midst of operations, from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from statefs.clock import Clock, iso_time


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that has happened.

    Args:
        time: when, ISO 8601 in UTC.
    """

    time: str


class StateSaved(Event, frozen=True, kw_only=True, tag="state:saved"):
    """A snapshot was taken.

    Args:
        snapshot: its name.
        reason: as in metadata.json.
        files: how many it holds.
        bytes: how much.
        seconds: how long the save took, applications included.
    """

    snapshot: str
    reason: str
    files: int
    bytes: int
    seconds: float


class StateLoaded(Event, frozen=True, kw_only=True, tag="state:loaded"):
    """Programs see another state than before: it was mounted, or a snapshot made current again.

    Args:
        how: "mount", "restore" or "undo".
        snapshot: what was made current again; None for a mount.
        changes: how many paths that changed.
        seconds: how long it took.
    """

    how: str
    snapshot: str | None = None
    changes: int = 0
    seconds: float = 0.0


class SaveError(Event, frozen=True, kw_only=True, tag="state:save-error"):
    """A save failed.

    Args:
        reason: why the snapshot was to be taken.
        error: one line.
    """

    reason: str
    error: str


class AutosaveTriggered(Event, frozen=True, kw_only=True, tag="autosave:triggered"):
    """There is something unsaved, and autosave begins to save it."""


class DiskLow(Event, frozen=True, kw_only=True, tag="disk:low"):
    """The disk of the store has less room than [health] allows.

    Args:
        free_bytes: what an ordinary user may still write.
        total_bytes: the size of the disk.
        why: which limit is passed.
    """

    free_bytes: int
    total_bytes: int
    why: str


class CorruptionDetected(Event, frozen=True, kw_only=True, tag="corruption:detected"):
    """Something is damaged; told once by each process that has the store.

    Args:
        found_by: "read", "scrub" or "verify".
        damage: what, in words.
    """

    found_by: str
    damage: str


class WorkerRestarted(Event, frozen=True, kw_only=True, tag="worker:restarted"):
    """Another worker serves the mount; told by the new one.

    Args:
        restarts: how many workers the mount has had before this one, those of upgrades included.
        pid: of the new one.
        version: of statefs, that it runs.
    """

    restarts: int
    pid: int
    version: str


class HealthChanged(Event, frozen=True, kw_only=True, tag="health:changed"):
    """A check of `statefs health` has another outcome than when it was last looked at.

    Args:
        check: its name.
        ok: whether all is well now.
        what: as `statefs health` says it.
    """

    check: str
    ok: bool
    what: str


AnyEvent = (
    StateSaved
    | StateLoaded
    | SaveError
    | AutosaveTriggered
    | DiskLow
    | CorruptionDetected
    | WorkerRestarted
    | HealthChanged
)
Listener = Callable[[AnyEvent], None]
E = TypeVar("E", bound=AnyEvent)


def name_of(kind: type[AnyEvent]) -> str:
    """Return what a kind of event is called in documents, settings and the log."""
    return str(kind.__struct_config__.tag)


class Events:
    """Tells those who listen what happens.

    Args:
        clock: says when.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Have `listener` be told of everything from now on, one event at a time."""
        self._listeners.append(listener)

    def tell(self, kind: Callable[..., AnyEvent], **what: Any) -> None:
        """Tell that something has happened now; from any thread."""
        event = kind(time=iso_time(self._clock.now_ns()), **what)
        with self._lock:
            for listener in self._listeners:
                listener(event)
