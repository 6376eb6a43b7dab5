"""A worker as the supervisor sees it: a process with a channel to it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from statefs.control.messages import raised_error
from statefs.daemon.handover import Channel, Failed, Loaded, Message, Working
from statefs.errors import StatefsError

M = TypeVar("M", bound=Message)

log = logging.getLogger(__name__)

END_SECONDS: Final = 10.0
"""How long a worker that has nothing left to do may take to end before it is killed."""
REAP_SECONDS: Final = 0.05
"""How long a dead worker is waited for: one that waits for its own mount goes only later."""


class Child:
    """A process that this one has started.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def is_reaped(self, seconds: float = 0.0) -> bool:
        """Return whether the process is gone, waiting for it so long at most."""
        give_up = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= give_up:
                return False
            else:
                time.sleep(0.001)
        return True

    @property
    def has_succeeded(self) -> bool:
        """Whether the process is known to have ended with exit code 0."""
        return self._code == 0

    def ending(self) -> str:
        """Return how the process has ended, in words for a log."""
        if not self.is_reaped(REAP_SECONDS):
            return ""
        assert self._code is not None
        if self._code < 0:
            return f" (killed by {signal.Signals(-self._code).name})"
        return f" (exit code {self._code})"


class Worker(Child):
    """A process that serves the mount, from the side of the supervisor.

    Args:
        pid: of the process, a child of this one.
        end: of the channel to it.
    """

    def __init__(self, pid: int, end: socket.socket) -> None:
        super().__init__(pid)
        self.channel = Channel(end)
        self.ready_at: float | None = None
        self.has_ended = False
        self.loaded: Loaded | None = None

    def expect(self, kind: type[M], on_working: Callable[[Working], None]) -> M:
        """Return the next message, which is of a kind; blocks.

        Args:
            on_working: told how far it is, where that takes long.

        Raises:
            StatefsError: the worker has failed or died instead.
        """
        received = self.receive()
        while received is not None and isinstance(received[0], Loaded | Working):
            if isinstance(received[0], Working):
                on_working(received[0])
            received = self.receive()
        if received is None:
            raise StatefsError(
                f"the worker ended before the mount was usable{self.ending()}: see the end of the "
                "store's statefs.log, and mount again"
            )
        message, _ = received
        if isinstance(message, Failed):
            raise raised_error(message.error)
        assert isinstance(message, kind), message
        return message

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return what it says next (`Channel.receive`), and keep in `loaded` what it is.

        None also where it says what this version does not understand: then it cannot serve.
        """
        try:
            received = self.channel.receive()
        except msgspec.MsgspecError as error:
            log.error("worker %d says what this version does not understand: %s", self.pid, error)
            return None
        if received is not None and isinstance(received[0], Loaded):
            self.loaded = received[0]
        return received

    def has_something_to_say(self) -> bool:
        """Return whether there is a message to receive, or the process has gone."""
        return bool(select.select([self.channel], [], [], 0)[0])

    def end(self) -> None:
        """End the process if it still runs, kindly at first."""
        self.channel.close()
        if not self.is_reaped(END_SECONDS):
            self.signal(signal.SIGKILL)
            self.is_reaped(END_SECONDS)
