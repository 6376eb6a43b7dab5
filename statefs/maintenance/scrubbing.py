"""Scrubbing: reading everything again in the background, slowly, to find damage early.

What the last scrub that came to its end found is kept in `scrub.json` of the store. One that is
interrupted, by the end of the mount, begins anew when it is due.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from statefs.clock import iso_time
from statefs.config import Config
from statefs.content.blocks import READ_BYTES
from statefs.durable import write_file
from statefs.errors import InvalidConfig, StatefsError
from statefs.maintenance.hashing import READ_BYTES_PER_STEP
from statefs.maintenance.rereading import Rereading
from statefs.maintenance.steps import Steps
from statefs.maintenance.verify import Problem
from statefs.snapshots.documents import decode, encode

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

log = logging.getLogger(__name__)

STEPS_A_SECOND: Final = 4
"""A step reads what the rate allows for so long, and at least a block."""
PAUSE_SECONDS_MAX: Final = 0.2
"""A pause is cut into such parts: an unmount waits for one at most."""
POLL_SECONDS: Final = 0.1
NS: Final = 1_000_000_000


class ScrubReport(msgspec.Struct, frozen=True, kw_only=True):
    """scrub.json: when the last scrub began and ended, what it read and what it found."""

    started: str
    ended: str
    ended_ns: int
    bytes: int
    files: int
    unsealed: list[str]
    problems: list[Problem]


class Scrubber:
    """Scrubs one store.

    `last` is the report of the last scrub that came to its end, `progress` says how far the one is
    that runs, `runs` counts those of this process that came to their end, `failures` the others.

    Args:
        store: open.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.runs = 0
        self.failures = 0
        self.progress: dict[str, Any] = {}
        self.last = self._read_report()

    def _read_report(self) -> ScrubReport | None:
        path = self._store.layout.scrub_json
        try:
            return decode(path.read_bytes(), ScrubReport)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, and is made anew by the next scrub: %s", path, error)
            return None

    def document(self) -> dict[str, Any]:
        """Return what is known: whether one runs, and what the last one found."""
        last = None if self.last is None else msgspec.to_builtins(self.last)
        if last is not None:
            del last["ended_ns"]
        return {"running": bool(self.progress), "last": last}

    @property
    def damaged(self) -> int | None:
        """How many files and folders the last scrub found damaged; None before the first."""
        return None if self.last is None else len(self.last.problems)

    def is_due(self) -> bool:
        """Whether one should begin by itself."""
        interval_seconds = self._config().scrub.interval_seconds
        since_ns = self.last.ended_ns if self.last is not None else self._store.created_ns
        now_ns = self._store.clock.now_ns()
        return interval_seconds > 0 and now_ns - since_ns >= interval_seconds * NS

    def _config(self) -> Config:
        """Return the settings; the defaults while they are wrong, which others complain of."""
        try:
            return self._store.settings.read()
        except InvalidConfig:
            return Config()

    def run(self, call: Call | None = None) -> Steps[ScrubReport | None]:
        """Read everything, no faster than the settings allow.

        Returns:
            What was found; None when nobody waits for it any more.
        """
        try:
            return (yield from self._scrub(call))
        except Exception:
            self.failures += 1
            raise
        finally:
            self.progress = {}

    def _scrub(self, call: Call | None) -> Steps[ScrubReport | None]:
        store, started_ns = self._store, self._store.clock.now_ns()
        reading = Rereading(store)
        while not reading.is_done:
            rate = self._config().scrub.rate_bytes_per_second
            limit = max(READ_BYTES, min(READ_BYTES_PER_STEP, rate // STEPS_A_SECOND))
            before, began = reading.bytes_done, time.monotonic()
            yield partial(reading.step, limit)
            self.progress = reading.progress("scrubbing")
            due = began + (reading.bytes_done - before) / rate
            while (pause := due - time.monotonic()) > 0:
                yield partial(time.sleep, min(pause, PAUSE_SECONDS_MAX))
                if call is not None and not call.is_wanted:
                    return None
            if call is not None:
                call.report(self.progress)
        unsealed = [each.name for each in store.catalog.snapshots if each.state_digest is None]
        ended_ns = store.clock.now_ns()
        report = ScrubReport(
            started=iso_time(started_ns), ended=iso_time(ended_ns), ended_ns=ended_ns,
            bytes=reading.bytes_done, files=reading.files, unsealed=unsealed,
            problems=reading.problems,
        )  # fmt: skip
        store.tell_damages("scrub", (problem.message for problem in report.problems))
        yield lambda: write_file(store.layout.scrub_json, encode(report))
        self.last = report
        self.runs += 1
        return report


def scrub(store: Store, call: Call, *, start: bool) -> Steps[dict[str, Any]]:
    """Have a scrub run now and wait for its end, or tell what is known of the last one.

    In a daemon it goes on when nobody waits for it any more.

    Raises:
        StatefsError: the scrub could not come to its end; the log says why.
    """
    scrubber = store.scrubber
    if not start:
        return scrubber.document()
    if not store.host.is_mounted:
        yield from scrubber.run(call)
        return scrubber.document()
    wanted = scrubber.runs + 1
    failures = scrubber.failures
    store.host.scrub_now()
    while scrubber.runs < wanted and call.is_wanted:
        if scrubber.failures > failures:
            raise StatefsError(f"the scrub could not come to its end: see {store.layout.log}")
        call.report(scrubber.progress)
        yield partial(time.sleep, POLL_SECONDS)
    return scrubber.document()
