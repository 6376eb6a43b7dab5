"""Opening what a save has just taken, in the background: volumes whose `check` is on.

One snapshot at a time, and always the newest: where saves follow each other faster than their
databases can be read, those between are left out.
"""

from __future__ import annotations

import logging

import trio

from statefs.daemon.tasks import Alone, Bell, in_threads
from statefs.errors import InvalidConfig, StatefsError
from statefs.maintenance import checking
from statefs.maintenance.steps import Steps
from statefs.maintenance.store import Store
from statefs.snapshots.catalog import Snapshot

log = logging.getLogger(__name__)


class Checker:
    """Checks the new snapshots of one mounted store.

    Args:
        store: opened under its lock.
        alone: runs an operation while no other one changes the list of snapshots.
    """

    def __init__(self, store: Store, alone: Alone) -> None:
        self._store = store
        self._alone = alone
        self.news = Bell()
        self._is_wanted = True
        self._looked_at = store.catalog.newest_epoch

    async def run(self) -> None:
        """Check what is new, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_the_end)
            while True:
                await self.news.heard()
                newest = self._store.catalog.newest
                if newest is not None and newest.epoch > self._looked_at:
                    self._looked_at = newest.epoch
                    await self._check(newest)

    async def _note_the_end(self) -> None:
        """Have a check that runs in a thread give up when the mount ends."""
        try:
            await trio.sleep_forever()
        finally:
            self._is_wanted = False

    def _folders(self, snapshot: Snapshot) -> list[str]:
        try:
            volumes = self._store.settings.read().volumes
        except InvalidConfig:
            return []  # the next save says so
        known = {volume.path for volume in snapshot.volumes}
        return [each.folder for each in volumes if each.is_checked and each.folder in known]

    async def _check(self, snapshot: Snapshot) -> None:
        folders = self._folders(snapshot)
        if not folders:
            return
        listener = checking.Listener(lambda _: None, lambda: self._is_wanted)
        try:
            report = await in_threads(
                checking.check_folders(self._store, snapshot, listener, folders)
            )
            for volume in report.volumes:
                for note in volume.notes:
                    log.warning("volume %s of %s: %s", volume.name, snapshot.name, note)
            await self._alone(self._write_down(snapshot, report))
        except (StatefsError, OSError) as error:
            if self._store.catalog.by_view(snapshot.view) is not None:
                log.warning("%s could not be checked: %s", snapshot.name, error)

    def _write_down(self, snapshot: Snapshot, report: checking.Report) -> Steps[None]:
        present = self._store.catalog.by_view(snapshot.view)
        if present is not None:
            yield from checking.write_down(self._store, present, None, report.volumes)
