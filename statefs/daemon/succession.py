"""How a supervisor becomes the version that is installed, as the same process with the same mount.

It leaves a document in memory, and executes its program anew, which goes on from there. Everything
that counts is a descriptor, and descriptors stay. The document may be read by any later version:
what is added to it has a default.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from statefs.daemon.child import Child
from statefs.daemon.process import ENDING_SIGNALS, SAVING_SIGNAL
from statefs.daemon.spawning import REHEARSE, RESUME
from statefs.telemetry.lines import TEXT

log = logging.getLogger(__name__)

REHEARSAL_SECONDS: Final = 10.0
"""Longer than a supervisor takes to be loaded; the worker serves on meanwhile."""


class Succession(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor knows of its mount and of the worker that serves it.

    Args:
        state: the mount point.
        store: that is mounted there.
        options: of the mount, as text.
        since: when the mount became usable, ISO 8601.
        restarts: workers that were followed by another.
        oom_score_adj: what workers are to have (proc(5)).
        init_request: the kernel's FUSE_INIT.
        init_reply: what it was told.
        lock_fd: the store's lock.
        page_fd: changes under way (statefs/volume/underway.py).
        fuse_fd: the connection to the kernel.
        worker_pid: of the worker, a child of this process.
        worker_fd: the channel to it.
        version: of the worker.
        basis: see `Loaded`.
        dead: earlier workers that are not reaped yet.
        log_format: how the log is written.
        manager: the address of the service manager, if there is one.
        watchdog_seconds: within which it expects a sign of life.
    """

    state: str
    store: str
    options: str
    since: str
    restarts: int
    oom_score_adj: int
    init_request: bytes
    init_reply: bytes
    lock_fd: int
    page_fd: int
    fuse_fd: int
    worker_pid: int
    worker_fd: int
    version: str
    basis: str
    dead: tuple[int, ...] = ()
    log_format: str = TEXT
    manager: str | None = None
    watchdog_seconds: float | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the program is to find open."""
        return self.lock_fd, self.page_fd, self.fuse_fd, self.worker_fd


def succeed(left: Succession) -> None:
    """Execute this process's program as it is installed now; return only if that cannot be done.

    Signals wait meanwhile, until the new program listens to them (`read_succession`).
    """
    with _inheriting(left) as document:
        signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING_SIGNALS, SAVING_SIGNAL))
        command = _command(RESUME, document)
        try:
            os.execv(command[0], command)
        except OSError as error:
            log.error("the supervisor stays as it is: %s", error)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*ENDING_SIGNALS, SAVING_SIGNAL))


def rehearse(left: Succession) -> str:
    """Return why the version that is installed could not go on with a mount, "" where it could.

    A process of it does all that `succeed` would have it do first, and ends.
    """
    with _inheriting(left) as document:
        command = _command(REHEARSE, document)
        try:
            child = Child(os.posix_spawn(command[0], command, os.environ))
        except OSError as error:
            return f"no supervisor could be started: {error.strerror}"
    if not child.is_reaped(REHEARSAL_SECONDS):
        child.signal(signal.SIGKILL)
        child.is_reaped(REHEARSAL_SECONDS)
        return f"a supervisor was not loaded within {REHEARSAL_SECONDS:.0f} s"
    return "" if child.has_succeeded else f"a supervisor ended{child.ending()}"


def _command(what: str, document: int) -> list[str]:
    return [sys.executable, "-P", "-m", "statefs.daemon", what, str(document)]


@contextmanager
def _inheriting(left: Succession) -> Iterator[int]:
    """Have another program find a mount's descriptors, and the document, whose one this gives."""
    document = os.memfd_create("statefs-succession")
    try:
        os.write(document, msgspec.json.encode(left))
        kept = (document, *left.descriptors)
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        yield document
        for descriptor in kept:
            os.set_inheritable(descriptor, False)
    finally:
        os.close(document)


def read_succession(document: int) -> Succession:
    """Return what `succeed` has left, and close its descriptor."""
    left = msgspec.json.decode(os.pread(document, 1 << 20, 0), type=Succession)
    os.close(document)
    for descriptor in left.descriptors:
        os.set_inheritable(descriptor, False)
    return left
