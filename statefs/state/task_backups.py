"""What `state.json` was before each of its overwrites: links beside it, or snapshots.

A file that is replaced by renaming is kept by a second name of it: no bytes are copied. In a
mounted state a snapshot of all of it takes some milliseconds and a place in every list of
snapshots, so that one is taken before the first overwrite of a process, and then at most one in
five minutes.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statefs.clock import Clock
from statefs.durable import write_file
from statefs.state.copies import KEPT_COPIES, stamp, stamped_files
from statefs.state.documents import read_bytes
from statefs.state.snapshots import MountedFolder

SNAPSHOT_SECONDS: Final = 300
"""Between two snapshots of one store: each task has a durable file of its own in the meantime."""

_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EXDEV, errno.EROFS}
)
"""What link(2) says where there are no second names, too many of one file, or none of a snapshot's
file in the present."""

_log = logging.getLogger(__name__)


class StateBackups:
    """The backups of one `state.json`; who calls `keep` has the store's lock.

    Args:
        path: of `state.json`.
        clock: for their names.
        mounted: where the folder lies in a mounted state; None elsewhere.
    """

    def __init__(self, path: Path, clock: Clock, mounted: MountedFolder | None) -> None:
        self._path = path
        self._clock = clock
        self._mounted = mounted
        self._snapshot_ns: int | None = None

    def keep(self) -> bool:
        """Keep what the file is now, and let go of all but the last ten.

        Returns:
            whether there was anything to keep.

        Raises:
            OSError: it is not kept; the file may not be overwritten then.
        """
        if not self._path.exists():
            return False
        if self._mounted is not None:
            self._snapshot(self._mounted)
            return True
        self._link()
        for old in self.files()[KEPT_COPIES:]:
            old.unlink(missing_ok=True)
        return True

    def files(self) -> list[Path]:
        """Return the backups that are files, the newest first."""
        return stamped_files(self._path.parent, f"{self._path.stem}.backup", self._path.suffix)

    def newest_first(self) -> Iterator[Path]:
        """Return what `state.json` was: files, and then the same file in snapshots."""
        yield from self.files()
        if self._mounted is not None:
            yield from self._mounted.past_of(self._path.name)

    def count(self) -> int:
        """Return how many backups there are: files, or snapshots that this store has taken."""
        return len(self.files()) if self._mounted is None else len(self._labels(self._mounted))

    def _link(self) -> None:
        time = stamp(self._clock)
        backup = self._path.with_name(f"{self._path.stem}.backup.{time}{self._path.suffix}")
        link_or_copy(self._path, backup)

    def _snapshot(self, mounted: MountedFolder) -> None:
        now_ns = self._clock.now_ns()
        if self._snapshot_ns is not None and now_ns - self._snapshot_ns < SNAPSHOT_SECONDS * 10**9:
            return
        mounted.take_snapshot(f"{_label_of(mounted)}{stamp(self._clock)}")
        self._snapshot_ns = now_ns
        for label in self._labels(mounted)[KEPT_COPIES:]:
            try:
                os.rmdir(mounted.mount_point / "snapshots" / label)
            except OSError as error:  # somebody has pinned it, or deletes it, too
                _log.info("the snapshot %s is not deleted: %s", label, error)

    def _labels(self, mounted: MountedFolder) -> list[str]:
        """Return the labels of this store's snapshots, the newest first."""
        known = re.compile(re.escape(_label_of(mounted)) + r"\d{8}T\d{6}\.\d{6}Z")
        names = os.listdir(mounted.mount_point / "snapshots")
        return sorted((name for name in names if known.fullmatch(name)), reverse=True)


def link_or_copy(path: Path, second: Path) -> None:
    """Give a file that will be replaced a second name; harmless where that is there already.

    Raises:
        OSError: the disk refused.
    """
    try:
        os.link(path, second, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_file(second, read_bytes(path))


def _label_of(mounted: MountedFolder) -> str:
    """Return how the labels begin: other stores in the same state have others."""
    return f"tasks-{zlib.crc32(str(mounted.place).encode()):08x}-"
