"""What a service manager such as systemd is told: that the mount is usable, and that we live.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
PERIOD_VARIABLE: Final = "WATCHDOG_USEC"
PROCESS_VARIABLE: Final = "WATCHDOG_PID"


class InitSystem:
    """The service manager that has started this process, if one wants to hear of it.

    Args:
        address: of its socket, a path or a name after "@"; None where there is no such manager.
        watchdog_seconds: it expects a sign of life within that; None where it does not.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self.address = address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls) -> InitSystem:
        """Take what the manager has said in the environment, so that no child takes it, too."""
        address = os.environ.pop(SOCKET_VARIABLE, None)
        period_us = os.environ.pop(PERIOD_VARIABLE, "")
        process = os.environ.pop(PROCESS_VARIABLE, str(os.getpid()))
        is_watched = period_us.isdecimal() and process == str(os.getpid())
        return cls(address, int(period_us) / 1e6 if is_watched else None)

    @property
    def period_seconds(self) -> float | None:
        """How often `alive` is to be called: twice in the time that is allowed."""
        return None if self.watchdog_seconds is None else self.watchdog_seconds / 2

    def ready(self, status: str) -> None:
        """Say that the mount is usable, and in words for people what is served."""
        self._say(f"READY=1\nSTATUS={status}")

    def wait(self, seconds: float) -> None:
        """Say that the start goes on: it may take so long from now."""
        self._say(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def alive(self) -> None:
        """Give a sign of life, where one is expected."""
        if self.watchdog_seconds is not None:
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with (
            contextlib.suppress(OSError),  # a manager that is gone needs not know
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.sendto(text.encode(), address)
