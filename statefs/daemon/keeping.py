"""What a mounted state does by itself with its snapshots: autosave, and retention after each save.

Settings are looked at once a second, at the price of one stat(2) while they stay the same. While
statefs.toml is wrong nothing is saved or pruned by itself, and the log says so once.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import apsw
import trio

from statefs.config import Config, Retention
from statefs.daemon.tasks import Alone
from statefs.errors import InvalidConfig, StatefsError
from statefs.maintenance import pruning, saving, steps
from statefs.maintenance.host import Unmounted
from statefs.maintenance.steps import Steps
from statefs.maintenance.store import Store
from statefs.maintenance.unsaved import Debounce, has_unsaved, touched_before
from statefs.snapshots.retention import is_empty
from statefs.telemetry.events import AutosaveTriggered

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often it is looked at whether there is something to do."""
TICK_SECONDS_LEAST: Final = 0.05
"""However short autosave_debounce is: a tick costs some microseconds."""
LOOKS_PER_PERIOD: Final = 4
"""How often in autosave_debounce it is looked whether there is a change to save."""
ROOM_SECONDS: Final = 10.0
"""How often room on the disk is looked at, where a limit is set; a failed prune waits as long."""
ROOM_SHARE: Final = 50
"""Adding up what a large store takes may be slow: the pause after it is so many times as long."""

REFUSALS: Final = (StatefsError, OSError, apsw.Error)
"""What a save or a prune may end with; the mount goes on."""


class Keeper:
    """Saves and prunes one mounted store by itself.

    Args:
        store: opened under its lock.
        alone: runs an operation while no other one changes the list of snapshots.
    """

    def __init__(self, store: Store, alone: Alone) -> None:
        self._store = store
        self._alone = alone
        self._debounce = Debounce()
        self._knows_the_past = False
        self._complaint = ""
        self._pruned_epoch = self._store.catalog.newest_epoch
        self._prune_is_tried_again = 0.0
        self._room_is_looked_at = 0.0

    async def run(self) -> None:
        """Save and prune when that is due, until cancelled."""
        period = 0.0
        while True:
            await trio.sleep(max(TICK_SECONDS_LEAST, min(TICK_SECONDS, period / LOOKS_PER_PERIOD)))
            config = self._settings()
            period = TICK_SECONDS * LOOKS_PER_PERIOD
            if config is not None:
                period = config.autosave_debounce_seconds
                await self._autosave(config)
                await self._prune(config.retention)

    def _settings(self) -> Config | None:
        try:
            config = self._store.settings.read()
        except InvalidConfig as error:
            if str(error) != self._complaint:
                log.error("no autosave and no pruning until this is put right: %s", error)
            self._complaint = str(error)
            return None
        self._complaint = ""
        return config

    async def _autosave(self, config: Config) -> None:
        if not config.autosave:
            return
        store = self._store
        if not self._knows_the_past:
            self._knows_the_past = True
            epoch = store.volume.table.epoch
            touched = await trio.to_thread.run_sync(touched_before, store)
            if store.volume.table.epoch == epoch:
                store.volume.table.touched |= touched
        now, table = trio.current_time(), store.volume.table
        period = config.autosave_debounce_seconds
        if not self._debounce.is_due(now, table.epoch, bool(table.touched), period):
            return
        self._debounce.put_off(now)
        if has_unsaved(store):
            touched = set(table.touched)
            store.events.tell(AutosaveTriggered)
            if not await self._try("autosave", saving.save(store, "autosave", "", {})):
                table.touched |= touched  # a save that fails late has begun a new epoch

    async def _prune(self, policy: Retention) -> None:
        newest, now = self._store.catalog.newest_epoch, trio.current_time()
        is_limited = bool(policy.min_free_bytes or policy.max_store_bytes)
        is_new = newest != self._pruned_epoch and now >= self._prune_is_tried_again
        is_time_to_look = is_limited and now >= self._room_is_looked_at
        if is_empty(policy) or not (is_new or is_time_to_look):
            return
        if is_limited and self._store.collector.is_busy:
            return  # what is being freed would be counted as taken
        if await self._try("pruning", self._pruning()):
            self._pruned_epoch = newest
        else:
            self._prune_is_tried_again = now + ROOM_SECONDS
        pause = max(ROOM_SECONDS, ROOM_SHARE * (trio.current_time() - now))
        self._room_is_looked_at = trio.current_time() + pause

    def _pruning(self) -> Steps[None]:
        plan = yield from pruning.prune(self._store, dry_run=False, with_sizes=False)
        for snapshot, decision in zip(plan.snapshots, plan.decisions, strict=True):
            if not decision.keep:
                log.info("pruned %s: %s", snapshot.name, "; ".join(decision.reasons))
        if plan.shortages and not plan.removed:
            log.info("nothing is left to prune, but %s", plan.shortages[0][1])

    async def _try(self, what: str, operation: Steps[Any]) -> bool:
        """Run an operation; return whether it succeeded."""
        try:
            await self._alone(operation)
        except InvalidConfig:
            return False  # it has become wrong just now: the next look at it tells
        except REFUSALS as error:
            log.error("%s failed: %s", what, error)
            return False
        return True

    async def save_on_request(self) -> None:
        """Take a snapshot because a signal asks for it, whether or not anything has changed."""
        if not await self._try("the save that SIGUSR1 asked for", self._requested()):
            self._settings()  # that they are wrong is told at once, if nobody has told it

    def _requested(self) -> Steps[None]:
        snapshot = yield from saving.save(self._store, "autosave", "SIGUSR1", {})
        log.info("saved %s for SIGUSR1", snapshot.name)

    def save_at_the_end(self) -> None:
        """After the mount has ended in the ordinary way: save what is unsaved, with autosave on."""
        config = self._settings()
        if config is None or not config.autosave:
            return
        store = self._store
        store.host = Unmounted()
        try:
            if not self._knows_the_past:
                store.volume.table.touched |= touched_before(store)
            if has_unsaved(store):
                steps.run(saving.save(store, "shutdown", "", {}))
                if not is_empty(config.retention):
                    steps.run(self._pruning())
        except REFUSALS as error:
            log.error("the save at the end failed: %s", error)
