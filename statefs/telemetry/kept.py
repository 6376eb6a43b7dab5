"""The newest events of a store, kept in its file `events.jsonl`: one line of JSON for each.

Each has a number, one more than that of the event before, also across processes, so that who
follows them misses none when a worker is followed by another. Lines are written without waiting
for the disk: a loss of power may cost the last ones.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

from statefs.durable import open_plain
from statefs.telemetry.events import AnyEvent

log = logging.getLogger(__name__)

KEPT_EVENTS: Final = 1000
"""An autosave each half minute tells of two events: the last four hours of that."""
LINES_MAX: Final = 2 * KEPT_EVENTS
"""A file of more lines is written anew, with the newest ones."""

Document = dict[str, Any]


class KeptEvents:
    """The kept events of one store; its one listener that writes.

    Args:
        path: of the file, which is made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._events: deque[Document] | None = None
        self._lines = 0
        self._is_written = True

    def _known(self) -> deque[Document]:
        if self._events is None:
            self._events = deque(maxlen=KEPT_EVENTS)
            data = self._read()
            self._is_written = not data or data.endswith(b"\n")
            for line in data.splitlines():
                self._lines += 1
                try:
                    document = msgspec.json.decode(line, type=Document)
                except (ValueError, RecursionError):
                    continue  # the power failed in its midst, or it is damaged
                if isinstance(document.get("number"), int):
                    self._events.append(document)
        return self._events

    def _read(self) -> bytes:
        try:
            fd = open_plain(self._path, os.O_RDONLY)
        except OSError:  # not made yet, or nothing that statefs has made
            return b""
        with open(fd, "rb") as file:
            return file.read()

    @property
    def newest(self) -> int:
        """The number of the newest event, 0 before the first."""
        with self._lock:
            events = self._known()
            return int(events[-1]["number"]) if events else 0

    def after(self, number: int) -> list[Document]:
        """Return the kept events with greater numbers, oldest first."""
        with self._lock:
            return [event for event in self._known() if event["number"] > number]

    def keep(self, event: AnyEvent) -> None:
        """Add an event; a listener. Where the disk refuses, it is known to this process alone."""
        with self._lock:
            events = self._known()
            number = events[-1]["number"] + 1 if events else 1
            events.append({"number": number, **msgspec.to_builtins(event)})
            try:
                self._write(events)
                self._is_written = True
            except OSError as error:
                if self._is_written:
                    log.info("events are not kept in %s: %s", self._path, error)
                self._is_written = False

    def _write(self, events: deque[Document]) -> None:
        if self._lines >= LINES_MAX or not self._is_written:
            temporary = self._path.with_name(f".{self._path.name}.new")
            _put(temporary, b"".join(map(_line, events)), os.O_TRUNC)
            os.rename(temporary, self._path)
            self._lines = len(events)
        else:
            _put(self._path, _line(events[-1]), os.O_APPEND)
            self._lines += 1


def _line(document: Document) -> bytes:
    return msgspec.json.encode(document) + b"\n"


def _put(path: Path, data: bytes, flag: int) -> None:
    fd = open_plain(path, os.O_WRONLY | os.O_CREAT | flag)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
