"""Events in words, and as lines of the log."""

from __future__ import annotations

import logging

from statefs.telemetry.events import (
    AnyEvent,
    AutosaveTriggered,
    CorruptionDetected,
    DiskLow,
    HealthChanged,
    SaveError,
    StateLoaded,
    StateSaved,
    WorkerRestarted,
    name_of,
)
from statefs.telemetry.lines import EVENT_FIELD
from statefs.units import count_text, size_text

log = logging.getLogger(__name__)


def sentence(event: AnyEvent) -> str:
    """Return what has happened in one line for people."""
    match event:
        case StateSaved():
            size = f"{count_text(event.files)} files, {size_text(event.bytes)}"
            return f"saved {event.snapshot} ({event.reason}): {size}, in {event.seconds:.2f} s"
        case StateLoaded(snapshot=None):
            return "mounted and ready"
        case StateLoaded():
            paths = f"{count_text(event.changes)} paths changed"
            return f"{event.how} of {event.snapshot}: {paths}, in {event.seconds:.2f} s"
        case SaveError():
            return f"the save ({event.reason}) failed: {event.error}"
        case AutosaveTriggered():
            return "autosave begins"
        case DiskLow():
            return f"the disk of the store is low: {event.why}"
        case CorruptionDetected():
            return f"damage: {event.damage}"
        case WorkerRestarted():
            return f"worker {event.pid} (statefs {event.version}) serves, restart {event.restarts}"
        case HealthChanged():
            return f"{event.check} is {'well again' if event.ok else 'not well'}: {event.what}"


def level_of(event: AnyEvent) -> int:
    """Return how loud an event is: a warning wants somebody to look, an error to act.

    A save that failed is told to whoever asked for it; autosave says so itself.
    """
    if isinstance(event, CorruptionDetected):
        return logging.ERROR
    is_bad = isinstance(event, DiskLow) or (isinstance(event, HealthChanged) and not event.ok)
    return logging.WARNING if is_bad else logging.INFO


def log_event(event: AnyEvent) -> None:
    """Write an event into the log; a listener."""
    log.log(level_of(event), "%s", sentence(event), extra={EVENT_FIELD: event})


def event_names() -> tuple[str, ...]:
    """Return the names of all kinds of events."""
    return tuple(map(name_of, AnyEvent.__args__))
