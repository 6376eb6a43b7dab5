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
from typing import Any, Final, Self

from statefs.clock import Clock, SystemClock, iso_time
from statefs.state.journal import Journal, Record

BEGUN: Final = "begun"
DONE: Final = "done"
FAILED: Final = "failed"


class AuditLog:
    """The list of actions on one store; whoever opens it has the store's lock.

    Args:
        path: of its journal.
        clock: for the times in it.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._journal = Journal(path)
        self._clock = clock or SystemClock()

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

    def unfinished(self) -> list[Record]:
        """Return what was begun and has no end, the oldest first."""
        open_ones: dict[int, Record] = {}
        for record in self._journal.records():
            if record.value["event"] == BEGUN:
                open_ones[record.sequence] = record
            else:
                open_ones.pop(record.value["of"], None)
        return list(open_ones.values())

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
