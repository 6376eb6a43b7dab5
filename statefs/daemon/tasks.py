"""What a mounted store does beside the requests: paying the disk, freeing, sealing, scrubbing.

Each task waits until it is wanted, or for a time, and then works in steps that let requests in
between. What the disk refuses is told in the log and tried again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import apsw
import trio

from statefs.errors import PosixError
from statefs.fuse.durability import Durability
from statefs.maintenance import merging
from statefs.maintenance.steps import Step, Steps, drive, give_way
from statefs.maintenance.store import Store

T = TypeVar("T")

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often what is owed to the disk is paid: the most that durability=fsync can lose."""
WAL_PAGES_MAX: Final = 1024
"""A log of 4 MiB is moved into meta.db; on a full disk the reserve must have room for that."""
WAL_PAGES_RESTART: Final = 8 * WAL_PAGES_MAX
"""A log of 32 MiB is started anew even if that holds commits up for a moment."""
FREEING_PAUSE_SECONDS: Final = 0.1
"""Between steps that free while an operation runs which somebody waits for: it has most turns."""
CHECKPOINT_PAUSE_SECONDS: Final = 0.1
"""Between checkpoints that did not make the log short, because commits went on meanwhile."""
SEALING_RETRY_SECONDS: Final = 10.0
"""Before sealing is tried again on a disk that had no room for the digests."""
UNSEALABLE_SECONDS: Final = 600.0
"""Before what could not be sealed is looked at again, where nothing is saved meanwhile."""
SCRUB_LOOK_SECONDS: Final = 60.0
"""How often it is looked whether a scrub is due; they are days apart."""
BACKUP_RETRY_SECONDS: Final = 600.0
"""Before a copy is tried again that the disk has refused."""

Alone = Callable[[Steps[Any]], Awaitable[Any]]
"""Runs an operation while no other one changes the list of snapshots."""


async def in_threads(steps: Steps[T]) -> T:
    """Run an operation, its blocking steps in threads (maintenance/steps.py)."""
    return await drive(steps, _in_thread)


async def _in_thread(step: Step) -> Any:
    if step is give_way:  # a thread would wait for those that hash, too
        return await trio.lowlevel.checkpoint()
    return await trio.to_thread.run_sync(step)


class Bell:
    """Tells one task that there is work; rung twice before it is heard, it is heard once."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Have the task look."""
        self._event.set()

    def silence(self) -> None:
        """Forget that it was rung."""
        self._event = trio.Event()

    async def heard(self, seconds: float = math.inf) -> bool:
        """Wait until it is rung, at most so long; return whether it was."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        is_rung = self._event.is_set()
        self.silence()
        return is_rung


class Tasks:
    """The tasks of one mounted store.

    Bells: `space` says that there may be something to free, `seals` that a snapshot may be without
    a digest, `scrubs` that somebody wants a scrub.

    Args:
        store: opened under its lock.
        durability: knows what is owed to the disk.
        alone: see `Alone`.
        is_busy: says whether an operation runs alone.
    """

    def __init__(
        self, store: Store, durability: Durability, alone: Alone, is_busy: Callable[[], bool]
    ) -> None:
        self._store = store
        self._durability = durability
        self._alone = alone
        self._is_busy = is_busy
        self.space = Bell()
        self.seals = Bell()
        self.scrubs = Bell()
        self._long_log = Bell()
        self._log_moved = Bell()
        store.database.on_commit = self._note_log_length

    def _note_log_length(self, pages: int) -> None:
        if pages >= WAL_PAGES_MAX:
            self._long_log.ring()

    async def run(self) -> None:
        """Do what there is to do, until cancelled."""
        async with trio.open_nursery() as nursery:
            for task in (
                (self._pay, "the disk refuses what the store owes it"),
                (self._collect, "space could not be given back"),
                (self._shorten_log, "the log could not be moved into the database", TICK_SECONDS),
                (self._seal, "sealing is tried again later", SEALING_RETRY_SECONDS),
                (self._scrub, "the scrub could not come to its end"),
                (self._back_up, "the database could not be copied", BACKUP_RETRY_SECONDS),
            ):
                nursery.start_soon(_repeat, *task)

    async def _pay(self) -> None:
        """Make all that was acknowledged durable about once a second, if something was."""
        await trio.sleep(TICK_SECONDS)
        await self._durability.sync_everything()
        table = self._store.volume.table
        table.forget_replaced()
        while self._store.freeing(table.reap_closed):
            await self._let_others_go_first()
        if self._store.owes_documents and self._store.reserve.is_held:
            await self._alone(self._documents())  # saves and deletes write the same file
        if not self._store.reserve.hold():
            await self.move_log()

    def _documents(self) -> Steps[None]:
        yield self._store.pay_documents

    async def _collect(self) -> None:
        """Free what nothing refers to, a step at a time."""
        await self.space.heard(TICK_SECONDS)
        collector = self._store.collector
        collector.try_again()
        while self._store.freeing(collector.delete_rows):
            await self._give_way()
        while candidates := collector.candidates():
            await trio.to_thread.run_sync(self._store.sync)
            if not collector.free(candidates):
                break
            await self._give_way()
        while collector.shrink():
            await self._give_way()
        await in_threads(merging.merge_all(self._store))

    async def _let_others_go_first(self) -> None:
        await trio.sleep(FREEING_PAUSE_SECONDS if self._is_busy() else 0)

    async def _give_way(self) -> None:
        """Let others go first, and a long log be started anew: nobody waits for what is in it then.

        What is committed beside the last checkpoint is moved by it while all commits wait.
        """
        await self._let_others_go_first()
        if self._store.database.wal_pages > WAL_PAGES_RESTART:
            self._long_log.ring()
            await self._log_moved.heard()

    async def _shorten_log(self) -> None:
        """Move the log into meta.db when it has become long."""
        await self._long_log.heard()
        try:
            await self.move_log()
        finally:
            self._log_moved.ring()
        if self._store.database.wal_pages >= WAL_PAGES_MAX:
            await trio.sleep(CHECKPOINT_PAUSE_SECONDS)

    async def move_log(self) -> None:
        """Move the log into meta.db, as far as readers let it."""
        database = self._store.database
        pages = database.wal_pages
        await trio.to_thread.run_sync(database.checkpoint, pages > WAL_PAGES_RESTART)
        log.debug("moved %d pages of the log into the database", pages)

    async def _seal(self) -> None:
        """Seal each snapshot that is complete, the oldest first, and wait for the next."""
        sealer = self._store.sealer
        while (snapshot := sealer.next()) is not None:
            digest = await in_threads(sealer.hash(snapshot))
            if digest is not None:
                with trio.CancelScope(shield=True):  # into all documents, or into none
                    await self._alone(sealer.finish(snapshot, digest))
        await self.seals.heard(UNSEALABLE_SECONDS)
        await in_threads(sealer.try_again())

    async def _back_up(self) -> None:
        """Copy the database when that is due."""
        await trio.sleep(self._store.backuper.look_seconds)
        if self._store.backuper.is_due():
            await in_threads(self._store.backuper.run())

    async def _scrub(self) -> None:
        """Read everything again when that is due or asked for."""
        scrubber = self._store.scrubber
        if await self.scrubs.heard(SCRUB_LOOK_SECONDS) or scrubber.is_due():
            try:
                await in_threads(scrubber.run())
            finally:
                self.scrubs.silence()  # who has asked meanwhile waits for this one


async def _repeat(
    task: Callable[[], Awaitable[None]], complaint: str, pause_seconds: float = 0.0
) -> None:
    """Do something again and again, until cancelled.

    Args:
        complaint: what the log says when the disk refuses.
        pause_seconds: after that.
    """
    while True:
        try:
            await task()
        except (OSError, PosixError, apsw.Error) as error:
            log.error("%s: %s", complaint, error)
            await trio.sleep(pause_seconds)
