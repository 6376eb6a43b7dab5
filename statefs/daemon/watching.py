"""Looking at the health of a mounted state by itself, and telling when something is not well."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

import trio

from statefs.config import Health
from statefs.errors import InvalidConfig
from statefs.maintenance.store import Store
from statefs.telemetry.events import DiskLow, HealthChanged
from statefs.telemetry.health import DISK, Check, checks
from statefs.telemetry.kept_trend import write_trend
from statefs.telemetry.lines import choose_format

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often it is looked whether it is time to look: settings may change."""


class Watcher:
    """Looks at one mounted store.

    Args:
        store: opened under its lock.
        of_mount: what only the process that serves the mount knows, of the status.
    """

    def __init__(self, store: Store, of_mount: Callable[[], dict[str, Any]]) -> None:
        self._store = store
        self._of_mount = of_mount
        self._unwell: set[str] = set()

    async def run(self) -> None:
        """Look whenever it is time, until cancelled."""
        due = 0.0
        while True:
            limits = self._limits()
            now = trio.current_time()
            if now >= due:
                due = now + limits.interval_seconds
                if self.look(time.time(), limits):
                    await self._keep_trend()
            await trio.sleep(min(TICK_SECONDS, limits.interval_seconds))

    def _limits(self) -> Health:
        try:
            config = self._store.settings.read()
        except InvalidConfig:
            return Health()  # the keeper complains
        choose_format(config.log_format)
        return config.health

    def look(self, now_seconds: float, limits: Health) -> bool:
        """Look once, and tell of what has become well or has ceased to be.

        Args:
            now_seconds: since 1970.

        Returns:
            Whether there is a new sample of the disk's trend.
        """
        disk = os.statvfs(self._store.layout.root)
        is_new = self._store.trend.add(now_seconds, disk.f_bavail * disk.f_frsize)
        status = self._store.status() | self._of_mount()
        for check in checks(status, limits):
            if check.ok == (check.check in self._unwell):
                self._tell(check, status)
        return is_new

    async def _keep_trend(self) -> None:
        """Write the trend down for the next process, in a thread."""
        layout, samples = self._store.layout, self._store.trend.samples
        disk = os.statvfs(layout.root)
        size = disk.f_blocks * disk.f_frsize
        try:
            await trio.to_thread.run_sync(write_trend, layout.trend_json, size, samples)
        except OSError as error:
            log.info("the trend of the disk is not kept: %s", error)

    def _tell(self, check: Check, status: dict[str, Any]) -> None:
        events = self._store.events
        if check.ok:
            self._unwell.discard(check.check)
        else:
            self._unwell.add(check.check)
        if check.check == DISK and not check.ok:
            events.tell(
                DiskLow, free_bytes=status["free_bytes"], total_bytes=status["disk_bytes"],
                why=check.what,
            )  # fmt: skip
        else:
            events.tell(HealthChanged, check=check.check, ok=check.ok, what=check.what)
