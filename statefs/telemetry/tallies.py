"""What the process that has a store has done with it: how often, how long, how often in vain."""

from __future__ import annotations

from typing import Final

from statefs.telemetry.events import AnyEvent, SaveError, StateLoaded, StateSaved, name_of
from statefs.telemetry.requests import Timings

NS: Final = 1_000_000_000
SAVE: Final = "save"
RESTORE: Final = "restore"
SEAL: Final = "seal"


class Tallies:
    """Counts of one store; as a listener it counts events."""

    def __init__(self) -> None:
        self.events: dict[str, int] = {}
        self.durations = {name: Timings() for name in (SAVE, RESTORE, SEAL)}
        self.failures: dict[str, int] = dict.fromkeys(self.durations, 0)
        self.saved_bytes = 0

    def note(self, event: AnyEvent) -> None:
        """Count an event; a listener."""
        name = name_of(type(event))
        self.events[name] = self.events.get(name, 0) + 1
        if isinstance(event, StateSaved):
            self.took(SAVE, event.seconds)
            self.saved_bytes += event.bytes
        elif isinstance(event, StateLoaded) and event.snapshot is not None:
            self.took(RESTORE, event.seconds)
        elif isinstance(event, SaveError):
            self.failed(SAVE)

    def took(self, what: str, seconds: float) -> None:
        """Count something that was done."""
        self.durations[what].took(int(seconds * NS))

    def failed(self, what: str) -> None:
        """Count something that could not be done."""
        self.failures[what] += 1
