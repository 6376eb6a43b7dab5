"""What makes a process fit to live long, for supervisor and worker alike."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final, NoReturn

from statefs.units import printable

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SAVING_SIGNAL: Final = signal.SIGUSR1
"""Asks for a snapshot; ignored while nothing is mounted yet, or any more."""


class _Lines(logging.Formatter):
    """Writes a message, which may tell names that anybody gave a file, as one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line; a traceback comes below it."""
        record.message = printable(record.message)
        return super().formatMessage(record)


def prepare_process() -> None:
    """Make this process fit to live long: no signal of a terminal, a log, enough descriptors."""
    lines = logging.StreamHandler(sys.stderr)
    form = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
    logging.Formatter.converter = time.gmtime
    lines.setFormatter(_Lines(form, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(SAVING_SIGNAL, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave(number: int, _frame: object) -> NoReturn:
    """End on a signal that comes while the mount is not served, past every clean-up there is."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal of a terminal or an init system cut short what is in the `with` block."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
