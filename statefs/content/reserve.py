"""Room kept for deleting: on a full disk even a deletion must write before it can free anything.

A file of some megabytes is held in the store. When a deletion finds the disk full the file is
given up, which makes room for the deletion; from then on nothing that takes space is accepted
until the file could be made again.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from statefs.errors import PosixError

RESERVE_BYTES: Final = 4 << 20
"""Room for some hundred deletions: each writes a few pages of 4 KiB into the log."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk and a full quota answer."""


class Reserve:
    """The reserve file of a store.

    Args:
        path: where the file lies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_held = False
        self.hold()

    def hold(self) -> bool:
        """Take the room if it is not held and the disk has it; return whether it is held."""
        if not self.is_held:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
                self.is_held = True
            except OSError:
                os.ftruncate(fd, 0)  # a part of the room is of no use to anyone
            finally:
                os.close(fd)
        return self.is_held

    def give_up(self) -> None:
        """Let go of the room, for a deletion."""
        with suppress(FileNotFoundError):
            os.truncate(self._path, 0)
        self.is_held = False

    def require(self) -> None:
        """Refuse what takes space while the room has been given up and is still missing.

        Raises:
            PosixError: ENOSPC.
        """
        if not (self.is_held or self.hold()):
            raise PosixError(errno.ENOSPC)
