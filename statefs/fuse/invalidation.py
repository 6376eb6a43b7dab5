"""Telling the kernel to forget what changed behind its back.

Attributes are called back by a notice that takes no lock. Names and cached pages are not: for those
the kernel takes locks that a request may hold while it waits for us, and a daemon killed at that
moment would leave the mount hanging. Names in snapshots/ are not cached at all. In current/ a
process without any of our files visits what a restore changed (fuse/visitor.py), and of that only
what the kernel may know: the notice for attributes says whether it knows an inode.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyfuse3

from statefs.fuse import visitor
from statefs.snapshots.restore import Restored

_COMMAND: Final = (sys.executable, "-I", "-S", os.path.abspath(visitor.__file__))


def forget_attributes(node: int) -> bool:
    """Have the kernel ask for the attributes of a node anew.

    Returns:
        Whether the kernel knows the node: if not, it knows none of its names and pages either.

    Raises:
        OSError: the kernel did not take the notice.
    """
    try:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(node), attr_only=True)
    except FileNotFoundError:
        return False
    return True


class Refresh:
    """Has the kernel ask anew for what a restore changes; used by `with`.

    The visiting process starts at once, before the restore, to be there when it is needed.

    Args:
        current: the folder current/ of the mount.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(self, current: Path) -> None:
        self._visitor = subprocess.Popen(
            [*_COMMAND, current],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the process, which ends: it has done all, or was told nothing."""
        self._visitor.__exit__(kind, error, trace)

    def __call__(self, restored: Restored) -> None:
        """Have the kernel look at all that was restored. Blocks until it has.

        Raises:
            OSError: the kernel did not take a notice, or the process has been killed.
        """
        known = {ino for ino in restored.inodes if forget_attributes(ino)}
        visits = [(path, visitor.NAME) for folder, path in restored.names if folder in known]
        contents = restored.contents.items()
        visits += [(path, visitor.CONTENT) for ino, path in contents if ino in known]
        self._visitor.communicate(b"".join(kind + path + b"\0" for path, kind in sorted(visits)))
        if self._visitor.returncode:
            raise ChildProcessError(
                "it is restored, but who told the kernel has been killed: mount the state anew,"
                " or programs may see what they saw before"
            )
