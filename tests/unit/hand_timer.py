"""A timer of autosave that a test drives: time passes when it says so, and no test waits for it."""

from __future__ import annotations

import threading


class HandTimer:
    """Waits until the test says that the time has passed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._is_stopped = False
        self._waiting = threading.Semaphore(0)
        self._passed = threading.Semaphore(0)

    def wait(self, seconds: float) -> bool:
        """Wait for the test."""
        self.seconds.append(seconds)
        self._waiting.release()
        self._passed.acquire()
        return self._is_stopped

    def stop(self) -> None:
        """End the thread that waits."""
        self._is_stopped = True
        self._passed.release()

    def elapse(self) -> None:
        """Let the time pass, and return when the thread has done its work and waits again."""
        self._waiting.acquire()
        self._passed.release()
        self._waiting.acquire()
        self._waiting.release()
