"""Starting a worker. Loads next to nothing: the first one is started before all else."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Final

from statefs.daemon.init_system import PERIOD_VARIABLE, PROCESS_VARIABLE, SOCKET_VARIABLE

Spawn = Callable[[socket.socket], int]
"""Starts a worker that is given its end of the channel; returns its pid."""
Started = tuple[int, socket.socket]
"""A worker's pid, and the supervisor's end of the channel to it."""

RESUME: Final = "--resume"
"""To the supervisor's program in place of a mount; a descriptor follows (succession.py)."""
REHEARSE: Final = "--rehearse"
"""The same, only to see whether that could be done."""
TRIAL_SECONDS: Final = 1.0
"""A worker of another version that has served for so long stays."""
READY_VARIABLE: Final = "STATEFS_READY_FD"
"""Names, in the daemon's environment, the descriptor that it tells of its readiness."""
LEASH_VARIABLE: Final = "STATEFS_LEASH_FD"
"""Names, in the daemon's environment, the descriptor of a pipe at whose end it unmounts."""
_WORKER: Final = ("-P", "-m", "statefs.daemon.worker")
"""`-P`: the working directory, which may be anybody's, stays out of the import path."""
_SUPERVISORS: Final = (
    READY_VARIABLE,
    LEASH_VARIABLE,
    SOCKET_VARIABLE,
    PERIOD_VARIABLE,
    PROCESS_VARIABLE,
)
"""What is said to the supervisor alone (background.py, init_system.py)."""


def spawn_worker(end: socket.socket) -> int:
    """Start a worker in a session of its own, which no terminal sends signals to."""
    environment = {name: word for name, word in os.environ.items() if name not in _SUPERVISORS}
    for name in _SUPERVISORS[:2]:  # descriptors that this process has yet to take
        if os.environ.get(name, "").isdecimal():
            os.set_inheritable(int(os.environ[name]), False)
    end.set_inheritable(True)
    command = [sys.executable, *_WORKER, str(end.fileno())]
    return os.posix_spawn(command[0], command, environment, setsid=True)


def start(spawn: Spawn = spawn_worker) -> Started:
    """Start a worker.

    Raises:
        OSError: there is no room for another process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            return spawn(theirs), ours
        except BaseException:
            ours.close()
            raise
