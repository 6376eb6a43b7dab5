"""Telling the kernel to forget what changed behind its back.

Attributes are called back by a notice that takes no lock. Names and cached pages are not: for those
the kernel takes locks that a request may hold while it waits for us, and a daemon killed at that
moment would leave the mount hanging. Names in snapshots/ are not cached at all. In current/ a
thread of this process visits what a restore changed, as any program could:

* mkdir(2) of a name makes the kernel look it up again (LOOKUP_EXCL), whatever it had cached; the
  handler then refuses to make anything.
* lstat(2) fetches attributes anew after a notice: a program that appends through an open
  descriptor uses the size that the kernel knows.
* open(2) answered without FOPEN_KEEP_CACHE drops all pages of a file, mapped ones too.

The thread holds no file of this process (mounts/outside.py).
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pyfuse3

from statefs.mounts import call_outside


def forget_attributes(node: int) -> None:
    """Have the kernel ask for the attributes of a node anew; it may not know the node.

    Raises:
        OSError: the kernel did not take the notice.
    """
    with suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(node), attr_only=True)


def visit(current: Path, paths: Iterable[bytes], visitors: set[int]) -> None:
    """Have the kernel look at paths anew: names, attributes and content. Blocks.

    Args:
        current: the folder current/ of the mount.
        paths: relative to it; may lead to nothing.
        visitors: the threads whose calls are visits (`Operations.visitors`).

    Raises:
        OSError: the thread could not be made.
    """

    def look() -> None:
        number = threading.get_native_id()
        visitors.add(number)
        try:
            for path in sorted(paths):
                # What this user may not reach, no program of this user has cached.
                with suppress(OSError):
                    _look_at(os.path.join(os.fsencode(current), path) if path else current)
        finally:
            visitors.discard(number)

    call_outside(look)


def _look_at(path: bytes | Path) -> None:
    with suppress(FileExistsError):
        os.mkdir(path)
    if stat.S_ISREG(os.lstat(path).st_mode):
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
