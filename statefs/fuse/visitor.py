"""The program of a process that has the kernel look at paths anew; imports nothing of statefs.

It does what any program could do, and so the kernel corrects itself:

* link(2) to a name looks the name up again (LOOKUP_EXCL), whatever was cached, and drops what is
  wrong. What is to be linked is a folder: the kernel refuses that by itself, so nothing is made.
* open(2) of a file asks for attributes that have been called back, before anything else: a program
  that appends through an open descriptor uses the size that the kernel knows. Answered without
  FOPEN_KEEP_CACHE, which the daemon does for `OPEN_FLAGS`, it drops all pages, mapped ones too.

Visits end when they have all been made, also when the process that asked for them has been killed:
its successor answers. Without one the connection ends, and so does each call.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

NAME: Final = b"n"
"""Before a path: the name may lead to something else, or to nothing."""
CONTENT: Final = b"c"
"""Before a path: the file may have other attributes and bytes."""
OPEN_FLAGS: Final = os.O_RDONLY | os.O_APPEND
"""Appending where one may not write means nothing: only visits open files so."""


def main() -> None:
    """Visit all paths that standard input names, each with what is wanted and a zero byte.

    The first argument is the folder that they are relative to, which is that of the mount.
    """
    current = os.fsencode(sys.argv[1])
    for visit in sys.stdin.buffer.read().split(b"\0")[:-1]:
        wanted, path = visit[:1], os.path.join(current, visit[1:])
        # What this user may not reach, no program of this user has cached.
        with suppress(OSError):
            if wanted == NAME:
                os.link(current, path)
            else:
                os.close(_opened(path))


def _opened(path: bytes) -> int:
    flags = OPEN_FLAGS | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NONBLOCK)  # it may have become a fifo
    except BlockingIOError:
        return os.open(path, flags)  # a program gives up its lease first


if __name__ == "__main__":
    main()
