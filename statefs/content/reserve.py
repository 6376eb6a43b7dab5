"""Room kept for deleting: on a full disk even a deletion must write before it can free anything.

A file of some megabytes is held in the store. When a deletion finds the disk full the file is
given up, which makes room for the deletion; from then on nothing that takes space is accepted
until the file could be made again.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from statefs.content.objects import DISK_BLOCK_BYTES
from statefs.durable import is_on_read_only, open_plain, remove_now
from statefs.errors import PosixError

RESERVE_BYTES: Final = 8 << 20
"""Room to move a log of the usual length (4 MiB) into meta.db, and for some hundred deletions."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk and a full quota answer."""


class Reserve:
    """The reserve file of a store.

    Args:
        path: where the file lies; on a read-only filesystem nothing is held.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_held = False
        if not is_on_read_only(path.parent):
            self.hold()

    def hold(self) -> bool:
        """Take the room if it is not held and the disk has it; return whether it is held."""
        if not self.is_held:
            try:
                if not self._is_taken():
                    self._take()
                self.is_held = True
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.give_up()  # a part of the room is of no use to anyone
        return self.is_held

    def _is_taken(self) -> bool:
        """Whether the file has its room from before; asking for it again may be refused."""
        try:
            return self._path.lstat().st_blocks * DISK_BLOCK_BYTES >= RESERVE_BYTES
        except FileNotFoundError:
            return False

    def _take(self) -> None:
        fd = open_plain(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        finally:
            os.close(fd)

    def give_up(self) -> None:
        """Let go of the room, for a deletion."""
        self.is_held = False
        remove_now(self._path)

    def lend(self) -> None:
        """Let go of the room for what may free more than it takes, where the disk has little else.

        It is taken again when somebody next asks for space.
        """
        disk = os.statvfs(self._path.parent)
        if self.is_held and disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
            self.give_up()

    def require(self) -> None:
        """Refuse what takes space while the room has been given up and is still missing.

        Raises:
            PosixError: ENOSPC.
        """
        if not (self.is_held or self.hold()):
            raise PosixError(errno.ENOSPC)
