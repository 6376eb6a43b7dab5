"""`python -m statefs.daemon.worker FD`: serves a mount that its supervisor holds.

Gets everything over the channel FD: the store's lock, the connection to the kernel, and when it
follows a worker that died, what that one left. See statefs/daemon/handover.py.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from statefs import __version__
from statefs.control.messages import error_body
from statefs.daemon import lifecycle
from statefs.daemon.handover import Begin, Channel, Ended, Failed, Loaded
from statefs.daemon.process import prepare_process
from statefs.daemon.service import Service as _Service  # noqa: F401 - loaded while nobody waits
from statefs.errors import StatefsError, unforeseen
from statefs.fuse.handshake import WANTED
from statefs.metadata.schema import FORMAT_VERSION

log = logging.getLogger(__name__)

OOM_FILE: Final = Path("/proc/self/oom_score_adj")
SWITCH_SECONDS: Final = 0.0002
"""A thread that computes in Python lets the mount's loop in after this; Python's own 5 ms would
be added to every request (measured with a busy thread beside: 5.3 ms; at 0.1 ms: 0.25 ms)."""


def main(end: socket.socket) -> int:
    """Serve until the mount ends; return the exit code."""
    prepare_process()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setswitchinterval(SWITCH_SECONDS)
    os.chdir("/")
    channel = Channel(end)
    with suppress(BrokenPipeError):  # then it is seen below
        channel.send(Loaded(__version__, _basis()))
    received = channel.receive()
    if received is None:
        return 0  # there is nothing to be mounted after all
    begin, descriptors = received
    assert isinstance(begin, Begin)
    OOM_FILE.write_text(str(begin.oom_score_adj))
    # The lock is this process's, too, for as long as it lives: nobody may open the store beside it.
    _, page = descriptors
    try:
        lifecycle.serve_for(channel, begin, page)
    except StatefsError as error:
        _tell(channel, error)
        return error.exit_code
    except Exception as error:
        _tell(channel, unforeseen(error))
        raise
    with suppress(BrokenPipeError):  # the supervisor has gone before
        channel.send(Ended())
    return 0


def _basis() -> str:
    """Return the store's format, what is asked of the kernel, and the libfuse that is loaded."""
    maps = Path("/proc/self/maps").read_text()
    libfuse = sorted(set(re.findall(r"/(libfuse3\.so\S*)$", maps, re.MULTILINE)))
    return f"format {FORMAT_VERSION}, kernel flags {WANTED:#x}, {' '.join(libfuse)}"


def _tell(channel: Channel, error: StatefsError) -> None:
    try:
        channel.send(Failed(error_body(error)))
    except OSError:
        log.error("%s", error)  # the supervisor has gone before


if __name__ == "__main__":
    code = main(socket.socket(fileno=int(sys.argv[1])))
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be done: whoever waits need not wait for Python's clean-up
