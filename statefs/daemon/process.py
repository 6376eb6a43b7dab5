"""What makes a process fit to live long, for supervisor and worker alike."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from typing import Final, NoReturn

from statefs.telemetry.lines import begin_log

ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SAVING_SIGNAL: Final = signal.SIGUSR1
"""Asks for a snapshot; ignored while nothing is mounted yet, or any more."""


def prepare_process() -> None:
    """Make this process fit to live long: no signal of a terminal, a log, enough descriptors."""
    begin_log()
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
