"""System calls on a mount by the very process that serves it, so that a kill of it hangs nobody.

A call on the mount waits for an answer of this process. Killed meanwhile, the process cannot end
before the call does, its descriptors stay open, /dev/fuse among them, and as long as that is open
the kernel waits for the answer: programs that use the mount hang for ever. So such calls are made
in a thread with a descriptor table of its own that has none of the process's files in it. When the
process is killed its table goes with its other threads, the connection ends, and the call with it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, Final, TypeVar

T = TypeVar("T")

CLONE_FILES: Final = 0x400
"""The flag of unshare(2) for the table of open descriptors."""
_FIRST_FD: Final = 3
_LAST_FD: Final = 1 << 20
"""Above every descriptor: the kernel's own limit for a process (fs.nr_open)."""
_libc = ctypes.CDLL(None, use_errno=True)


def call_outside(function: Callable[[], T], keep: Collection[int] = ()) -> T:
    """Call a function in a thread that holds none of this process's files; return its result.

    Blocks until it has returned. What the function opens it must close; descriptors of other
    threads do not exist for it, but for standard input, output, error and `keep`.

    Args:
        function: takes care of its own descriptors.
        keep: descriptors that it may use all the same; not /dev/fuse.

    Raises:
        OSError: the kernel refused the thread. Exception: what the function raises.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            _leave_descriptors(keep)
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="statefs-outside", daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result


def _leave_descriptors(keep: Collection[int]) -> None:
    """Give this thread a table of its own, with nothing in it that the process has opened."""
    if _libc.unshare(CLONE_FILES) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    bounds = [_FIRST_FD - 1, *sorted(fd for fd in keep if fd >= _FIRST_FD), _LAST_FD]
    for before, after in pairwise(bounds):
        os.closerange(before + 1, after)
