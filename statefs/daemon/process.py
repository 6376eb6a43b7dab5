"""What makes a process fit to live long, for supervisor and worker alike."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from statefs.errors import MountEnded, typed
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


def ended_by(error: SystemExit | KeyboardInterrupt, state: Path) -> MountEnded:
    """Return what to tell of a mount that a signal has ended before it was usable.

    Args:
        error: what `_leave`, or Python for SIGINT, has raised.
        state: where it would have been mounted.
    """
    number = int(signal.SIGINT)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        number = error.code - 128
    return MountEnded(
        f"{signal.Signals(number).name} has ended the mount before {state} was usable; nothing of "
        f"it is left: '{typed('statefs', 'mount', state)}' begins anew"
    )


@contextlib.contextmanager
def mounting(state: Path) -> Iterator[None]:
    """Have SIGTERM end the `with` block as Ctrl-C does, and be told. Raises MountEnded."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except SystemExit as error:
        raise ended_by(error, state) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ended_later() -> Iterator[None]:
    """Have signals that end this process come behind the `with` block, which they would cut."""
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number)) for each in ENDING_SIGNALS
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came:
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal of a terminal or an init system cut short what is in the `with` block."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
