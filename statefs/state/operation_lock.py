"""Who works on a state: a lock with holder, operation and time, which lasts as long as the work.

It is a document beside the state, so that a restart of whoever keeps it changes nothing. One that a
process of this machine has taken is that process's as long as it lives; one that came from
elsewhere lasts until it is given back, or taken away by force.
"""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from pathlib import Path
from typing import Final

import msgspec
import psutil

from statefs.clock import Clock, iso_time
from statefs.durable import open_plain
from statefs.state.documents import Form
from statefs.state.locks import Holder, is_running, try_lock

LOCK_VERSION: Final = 1


class LockProcess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process that has a lock.

    Args:
        host: it runs on.
        pid: of it.
        start_time: of it, in seconds since 1970; tells it from a later one of that pid.
    """

    host: str
    pid: int
    start_time: float


class OperationLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A lock, as its file has it.

    Args:
        version: of the file.
        id: without which nobody gives it back.
        operation: that it is for, such as `apply`.
        holder: who has it, as `user@host`.
        created_at: when it was taken, in ISO 8601.
        info: whatever else the holder says.
        software: version of the holder's program, where it says so.
        path: of what is locked, where the holder says so.
        process: of this machine; None where the holder is elsewhere, or unknown.
    """

    version: int = LOCK_VERSION
    id: str
    operation: str
    holder: str
    created_at: str
    info: str = ""
    software: str = ""
    path: str = ""
    process: LockProcess | None = None


LOCK_FORM: Final = Form(OperationLock, LOCK_VERSION)


def lock_of_this_process(operation: str, info: str, clock: Clock) -> OperationLock:
    """Return a new lock for an operation of this process."""
    host = socket.gethostname()
    process = LockProcess(host, os.getpid(), psutil.Process().create_time())
    return OperationLock(
        id=str(uuid.uuid4()),
        operation=operation,
        holder=f"{_user()}@{host}",
        created_at=iso_time(clock.now_ns()),
        info=info,
        process=process,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        return str(os.getuid())


def hold(path: Path) -> int:
    """Return the file of a lock, just written by this process, open and locked with flock(2)."""
    fd = open_plain(path, os.O_RDWR)
    if not try_lock(fd):
        os.close(fd)
        raise AssertionError(f"{path} is new, and locked by another process")
    return fd


def is_left_behind(lock: OperationLock, path: Path) -> bool:
    """Return whether the process that has taken a lock has ended without giving it back.

    Only where that is certain: it ran on this machine, no descendant of it has the file locked, and
    no process of its pid and start time lives.
    """
    process = lock.process
    if process is None or process.host != socket.gethostname():
        return False
    fd = open_plain(path, os.O_RDWR)
    try:
        return try_lock(fd) and not is_running(Holder(process.pid, process.start_time))
    finally:
        os.close(fd)


def held_text(lock: OperationLock) -> str:
    """Return who has a lock, for a message."""
    what = f" ({lock.info})" if lock.info else ""
    return f"{lock.holder} for '{lock.operation}'{what} since {lock.created_at}, lock {lock.id}"
