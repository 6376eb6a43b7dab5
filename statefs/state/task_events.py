"""What task persistence tells those who listen, as frozen data."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from statefs.clock import Clock, iso_time

_log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that has happened.

    Args:
        time: when, ISO 8601 in UTC.
    """

    time: str


class TasksSaved(Event, frozen=True, kw_only=True, tag="state:saved"):
    """Everything is on the disk.

    Args:
        tasks: how many there are.
        seconds: the save took.
    """

    tasks: int
    seconds: float


class TasksLoaded(Event, frozen=True, kw_only=True, tag="state:loaded"):
    """The state was read.

    Args:
        source: what it was read from, as in `Recovered`.
        tasks: how many there are.
        losses: a line for each thing that could not be read as it was.
        seconds: it took.
    """

    source: str
    tasks: int
    losses: tuple[str, ...]
    seconds: float


class TasksSaveFailed(Event, frozen=True, kw_only=True, tag="state:save-error"):
    """A save failed; what it was to save is in memory, and autosave tries again.

    Args:
        error: one line.
    """

    error: str


class AutosaveBegun(Event, frozen=True, kw_only=True, tag="autosave:triggered"):
    """Something is unsaved, and autosave begins to save it."""


class AlertsChanged(Event, frozen=True, kw_only=True, tag="state:alerts"):
    """The alerts are others than when autosave last looked.

    Args:
        alerts: a line for each that there is now.
    """

    alerts: tuple[str, ...]


TaskEvent = TasksSaved | TasksLoaded | TasksSaveFailed | AutosaveBegun | AlertsChanged
TaskListener = Callable[[TaskEvent], None]


class TaskEvents:
    """Tells listeners, one event at a time, in the thread in which it happens.

    A listener that raises is logged, and harms neither the save nor the other listeners.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: list[TaskListener] = []
        self._mutex = threading.RLock()

    def listen(self, listener: TaskListener) -> None:
        """Have a listener be told of everything from now on."""
        with self._mutex:
            self._listeners.append(listener)

    def tell(self, kind: Callable[..., TaskEvent], **what: Any) -> None:
        """Tell that something has happened now."""
        event = kind(time=iso_time(self._clock.now_ns()), **what)
        with self._mutex:
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception:
                    _log.exception("a listener failed at %s", type(event).__name__)
