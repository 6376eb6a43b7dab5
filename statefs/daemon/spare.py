"""The worker that is kept ready for the next death, and the one that an upgrade brings.

Loading a worker's code takes most of the time that programs would wait for it. So once a mount has
been there for a while its supervisor has another worker loaded. An upgrade loads one of the version
that is installed now, and only when that is ready to begin is the old one killed.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from statefs.control.messages import error_body
from statefs.daemon.child import Worker
from statefs.daemon.handover import Loaded, Refused
from statefs.daemon.spawning import Spawn, start
from statefs.errors import StatefsError

log = logging.getLogger(__name__)

SPARE_SECONDS: Final = 5.0
"""A mount that has been there for so long is worth a process that waits (about 40 MB)."""
RETRY_SECONDS: Final = 60.0
"""Before another one when the last has died while it waited."""
LOADING_SECONDS: Final = 60.0
"""How long a worker of a new version may take to be loaded."""


class Spare:
    """At most one worker that waits, and one of the old version while another takes over.

    `worker` is the one, `fallback` the other; `due` says when `attend` has something to do,
    `is_upgrade` that the one who serves is killed in favour of `worker`.

    Args:
        spawn: starts a worker.
        refusal: says why the supervisor, with a worker that serves, could not become the version
            that is installed; "" where it could.
    """

    def __init__(self, spawn: Spawn, refusal: Callable[[Worker], str] = lambda _: "") -> None:
        self._spawn = spawn
        self._refusal = refusal
        self.fallback: Worker | None = None
        self._is_wanted_by: Worker | None = None
        self.worker: Worker | None = None
        self.due: float | None = None
        self.is_upgrade = False

    def attend(self, serving: Worker) -> None:
        """Start a worker if it is time, and hear what the one that waits has to say.

        Args:
            serving: who is asked by programs meanwhile.
        """
        if self.worker is not None and self.worker.has_something_to_say():
            self._hear(serving)
        if self.due is None or time.monotonic() < self.due:
            return
        self.due = None
        if self._is_wanted_by is serving:
            self._give_up(serving, f"a new worker was not loaded within {LOADING_SECONDS:.0f} s")
        elif self.worker is None and self.fallback is None:
            self._start(serving)

    def _hear(self, serving: Worker) -> None:
        assert self.worker is not None
        if self.worker.receive() is None:
            how = self.worker.ending()
            log.error("the worker that was kept ready ended%s", how)
            self._give_up(serving, f"a worker of the version that is installed ended{how}")
        elif self._is_wanted_by is serving and self.worker.loaded and serving.loaded:
            self._prefer(self.worker.loaded, serving, serving.loaded)

    def _prefer(self, new: Loaded, serving: Worker, old: Loaded) -> None:
        """Have a worker of another version serve, if it can go on with this mount."""
        if new.basis != old.basis:
            self._give_up(
                serving,
                f"statefs {new.version} ({new.basis}) cannot go on with a mount of {old.version} "
                f"({old.basis}): unmount and mount again",
            )
            return
        if why := self._refusal(serving):
            self._give_up(serving, f"of statefs {new.version}, which is installed, {why}")
            return
        log.info("statefs %s is loaded and takes over", new.version)
        self.is_upgrade, self.due = True, None
        serving.signal(signal.SIGKILL)

    def upgrade(self, serving: Worker) -> None:
        """Have a worker of the version that is installed now follow the one that serves.

        One that waits is of the version that serves, most times: its code is in memory, whatever is
        installed now, and it is kept until the new one has proved itself.
        """
        if self.worker is not None and self.worker.loaded and self.worker.loaded == serving.loaded:
            self.drop_fallback()
            self.fallback = self._take_waiting()
        self.drop()
        self._is_wanted_by = serving
        self.due = time.monotonic() + LOADING_SECONDS
        self._start(serving)

    def _start(self, serving: Worker) -> None:
        try:
            self.worker = Worker(*start(self._spawn))
        except OSError as error:
            log.error("no worker could be started: %s", error)
            self._give_up(serving, f"no worker could be started: {error.strerror}")

    def _give_up(self, serving: Worker, why: str) -> None:
        """Let go of the worker that waits, for a while; whoever wants an upgrade is told why."""
        wanted_by = self._is_wanted_by
        self.drop()
        self.worker, self.fallback = self.fallback, None
        self.due = time.monotonic() + RETRY_SECONDS
        if wanted_by is serving:
            self.refuse(serving, why)

    def refuse(self, serving: Worker, why: str) -> None:
        """Tell the worker that wants an upgrade why there is none."""
        log.error("the upgrade is given up: %s", why)
        with suppress(BrokenPipeError):  # it is dead, and followed as after any death
            serving.channel.send(Refused(error_body(StatefsError(why))))

    def take(self) -> Worker | None:
        """Return the worker that waits, who is to serve now, or else the old one; None if none."""
        worker = self._take_waiting()
        if worker is None and self.fallback is not None:
            worker, self.fallback = self.fallback, None
            log.error("what is installed cannot serve: the old version goes on")
        return worker

    def _take_waiting(self) -> Worker | None:
        worker, self.worker, self.due = self.worker, None, None
        self._is_wanted_by, self.is_upgrade = None, False
        return worker

    def drop_fallback(self) -> None:
        """End the worker of the old version: it is not needed."""
        worker, self.fallback = self.fallback, None
        if worker is not None:
            self.due = time.monotonic() + SPARE_SECONDS
            _end(worker)

    def drop(self) -> None:
        """End the worker that waits, at once: it has nothing to lose."""
        if (worker := self._take_waiting()) is not None:
            _end(worker)


def _end(worker: Worker) -> None:
    worker.signal(signal.SIGKILL)
    worker.end()
