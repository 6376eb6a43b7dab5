"""Saving by itself: every so often in a thread of its own, and when the process is told to end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Protocol, Self

from statefs.errors import UsageError


class Timer(Protocol):
    """What a thread waits with; tests have one that they drive."""

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until `stop` is called; return whether it was."""

    def stop(self) -> None:
        """End this and all later waiting."""


class SystemTimer:
    """Waits as long as it says."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until `stop` is called; return whether it was."""
        return self._stopped.wait(seconds)

    def stop(self) -> None:
        """End this and all later waiting."""
        self._stopped.set()


class Autosave:
    """A thread that saves every so often, until it is stopped.

    Args:
        seconds: between two saves.
        save: what is done; it tells its own errors and raises none.
        timer: to wait with.
    """

    def __init__(self, seconds: float, save: Callable[[], object], timer: Timer) -> None:
        self._seconds = seconds
        self._save = save
        self._timer = timer
        self._thread = threading.Thread(target=self._run, name="statefs-autosave", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._timer.wait(self._seconds):
            self._save()

    def stop(self) -> None:
        """Wait for the save under way, and end; whoever calls holds no lock that a save takes."""
        self._timer.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()


class InterruptibleLock:
    """A lock of threads, which a thread may take again, and which a signal handler can respect.

    A handler runs in the main thread in the midst of whatever that does. What it wants to do with
    data that the main thread is just changing has to wait until that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._pending: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        is_free, pending = self._depth == 0, None
        if is_free:
            self._owner = None
            pending, self._pending = self._pending, None
        self._lock.release()
        if pending is not None:
            pending()

    def when_free(self, action: Callable[[], object]) -> None:
        """Do something now; or, where this very thread has the lock, as soon as it lets go."""
        if self._owner == threading.get_ident():
            self._pending = action
        else:
            action()


class SaveOnSigterm:
    """Has SIGTERM save first, and then do what it did before.

    Args:
        lock: held by whoever changes what is saved.
        save: tells its own errors and raises none.

    Raises:
        UsageError: this is not the main thread, which alone can handle signals.
    """

    def __init__(self, lock: InterruptibleLock, save: Callable[[], object]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("only the main thread of a program can handle SIGTERM")
        self._lock = lock
        self._save = save
        self._pid = os.getpid()
        self._handler = self._handle  # one object, to be known again
        self._previous: Any = signal.signal(signal.SIGTERM, self._handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._pid == os.getpid():
            self._lock.when_free(partial(self._save_and_go_on, number, frame))
        else:  # a forked child: what it remembers is old, and not its own
            self._go_on(number, frame)

    def _save_and_go_on(self, number: int, frame: FrameType | None) -> None:
        self._save()
        self._go_on(number, frame)

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self._previous):
            self._previous(number, frame)
        elif self._previous != signal.SIG_IGN:
            # Ends the process as if nobody had handled it, so that its parent sees why.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def remove(self) -> None:
        """Put the handler back that was there before, unless somebody has set another one since."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is self._handler:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
