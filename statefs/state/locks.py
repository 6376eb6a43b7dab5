"""One process at a time in a store: flock(2), and who has it.

The kernel lets go of the lock when its process ends, however it ends. The record in the file says
who holds it: for the message, and against a filesystem that does not carry locks between machines
or containers. Who only reads needs no lock: files of a store are replaced whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import Final, NamedTuple, Self

import psutil

from statefs.durable import open_plain
from statefs.errors import StoreLocked

START_SECONDS: Final = 2.0
"""Two readings of one process's start differ by less: the boot time they count from is rounded."""
POLL_SECONDS: Final = 0.005
"""Between two looks at a lock that somebody has for the moment of a write."""
_RECORD_BYTES_MAX: Final = 4096

_log = logging.getLogger(__name__)


class Holder(NamedTuple):
    """Who has, or had, a store open.

    Args:
        pid: of the process.
        start_time: of the process, in seconds since 1970; tells it from a later one of that pid.
    """

    pid: int
    start_time: float


class ProcessLock:
    """The right to write to one store, from acquire() to release() or the end of the process.

    Args:
        path: of the lock file; its folder is what the messages call the store.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._pid = 0

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock, waiting at most so long; what a process that is gone has left is taken.

        Raises:
            StoreLocked: a living process has it; the message names it.
            OSError: the lock file cannot be written.
        """
        give_up = time.monotonic() + wait_seconds
        while True:
            try:
                return self._acquire_now()
            except StoreLocked:
                if time.monotonic() >= give_up:
                    raise
            time.sleep(POLL_SECONDS)

    def _acquire_now(self) -> None:
        fd = open_plain(self._path, os.O_RDWR | os.O_CREAT)
        try:
            holder = _read_holder(fd)
            if not try_lock(fd):
                raise StoreLocked(_locked_text(self._path.parent, holder))
            holder = _read_holder(fd)
            if holder is not None and holder.pid != os.getpid():
                if is_running(holder):
                    raise StoreLocked(_locked_text(self._path.parent, holder))
                _log.warning(
                    "%s: the lock of process %d, which has ended, is taken over",
                    self._path.parent,
                    holder.pid,
                )
            _write_holder(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._pid = fd, os.getpid()

    def release(self) -> None:
        """Let go of the lock; harmless when it is not held, and in a forked child."""
        if self._fd is None:
            return
        if self._pid == os.getpid():
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # for a forked child that has a copy, too
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder_of(path: Path) -> Holder | None:
    """Return who has the lock of that path now; None if nobody has."""
    try:
        fd = open_plain(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        holder = _read_holder(fd)
    finally:
        os.close(fd)
    return holder if holder is not None and is_running(holder) else None


def is_running(holder: Holder) -> bool:
    """Return whether that process lives; another one that has got its pid is not it.

    Nor does one that has ended and that its parent has not looked at yet, or never will.
    """
    try:
        process = psutil.Process(holder.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        start_time = process.create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # of another user, and hidden: it may be the one
        return True
    return bool(abs(start_time - holder.start_time) < START_SECONDS)


def try_lock(fd: int) -> bool:
    """Return whether the open file is locked for this descriptor now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def _read_holder(fd: int) -> Holder | None:
    """Return what the lock file says; None where it says nothing that can be understood."""
    try:
        record = json.loads(os.pread(fd, _RECORD_BYTES_MAX, 0))
        return Holder(int(record["pid"]), float(record["start_time"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write_holder(fd: int) -> None:
    record = {"pid": os.getpid(), "start_time": psutil.Process().create_time()}
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(record).encode() + b"\n", 0)


def _locked_text(store: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"{store} is in use by another process: try again when it has ended"
    if holder.pid == os.getpid():
        return f"{store} is open in this process (pid {holder.pid}) already: use that one"
    if not is_running(holder):
        return (
            f"{store} is in use by a process that pid {holder.pid}, which has ended, has started: "
            "try again when that has ended, too"
        )
    return f"{store} is in use by pid {holder.pid}: try again when it has ended"
