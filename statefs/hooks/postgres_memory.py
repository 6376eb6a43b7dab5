"""The System V segment that a PostgreSQL server leaves behind when it dies of what is damaged.

It is 56 bytes, lies in no folder, and stays until the machine is started anew. Which one it is the
server's lock file says, as whose maker that must still be.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final, NamedTuple

from statefs.durable import open_plain

LOCK_FILE: Final = "postmaster.pid"
SEGMENTS: Final = Path("/proc/sysvipc/shm")
"""Source: sysvipc(7); the columns are key, shmid, perms, size, cpid, lpid, nattch, uid."""
_LINE: Final = 6
"""Of the lock file, from 0: key and number of the segment. Source: miscadmin.h of PostgreSQL."""
_LOCK_FILE_BYTES_MAX: Final = 4096
_IPC_RMID: Final = 0
_libc = ctypes.CDLL(None, use_errno=True)


class Segment(NamedTuple):
    """A shared memory segment.

    Args:
        number: by which it is removed.
        maker: the process that made it.
        users: processes that have it attached.
        uid: of its owner.
    """

    number: int
    maker: int
    users: int
    uid: int


def segments() -> list[Segment]:
    """Return the System V shared memory segments that there are, none where there is no such."""
    try:
        lines = SEGMENTS.read_text().splitlines()[1:]
    except FileNotFoundError:
        return []
    rows = ([int(word) for word in line.split()[:8]] for line in lines)
    return [Segment(row[1], row[4], row[6], row[7]) for row in rows]


def remove_left_segment(data: Path, uid: int) -> None:
    """Remove the segment of a server that has not ended in order; harmless where there is none.

    Args:
        data: its data folder, a copy that no other server has.
        uid: whom it ran as.

    Raises:
        OSError: the lock file cannot be read, or the system refused.
    """
    try:
        with open(open_plain(data / LOCK_FILE, os.O_RDONLY), "rb") as file:
            lines = file.read(_LOCK_FILE_BYTES_MAX).decode("ascii", "replace").splitlines()
    except FileNotFoundError:
        return  # it has ended in order
    try:
        maker, number = abs(int(lines[0])), int(lines[_LINE].split()[1])  # alone it writes -pid
    except (IndexError, ValueError):
        return  # it died before it had one
    if Segment(number, maker, 0, uid) in segments() and _libc.shmctl(number, _IPC_RMID, None):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"segment {number}")
