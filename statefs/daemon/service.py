"""The engine as the daemon runs it: saves, deletes and background work beside the requests.

Everything that waits for the disk runs in threads; everything that touches the tree runs on the
loop's thread, between requests. A save ends the epoch in one critical section
(snapshots/catalog.py) and waits for the disk after it, so the mount goes on meanwhile.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import trio

from statefs.daemon.keeping import Keeper
from statefs.daemon.verifying import Verifier
from statefs.errors import NoSuchSnapshot, PosixError
from statefs.fuse.durability import Durability
from statefs.fuse.invalidation import forget_attributes, visit
from statefs.fuse.operations import Operations
from statefs.fuse.session_loop import held
from statefs.ids import CLONES_ROOT, SNAPSHOTS_DIR
from statefs.maintenance import cloning, merging, saving
from statefs.maintenance.commands import CHANGING, Call, Commands
from statefs.maintenance.steps import Steps, drive
from statefs.maintenance.store import Store
from statefs.mounts import (
    Writer,
    call_outside,
    find_mount,
    statefs_mounts,
    write_back,
    writers,
)
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.restore import Restored

T = TypeVar("T")

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often what is owed to the disk is paid: the most that durability=fsync can lose."""
WAL_PAGES_MAX: Final = 1024
"""A log of 4 MiB is moved into meta.db; on a full disk the reserve must have room for that."""
WAL_PAGES_RESTART: Final = 8 * WAL_PAGES_MAX
"""A log of 32 MiB is started anew even if that holds commits up for a moment."""
CHECKPOINT_PAUSE_SECONDS: Final = 0.1
"""Between checkpoints that did not make the log short, because commits went on meanwhile."""

SEALING_RETRY_SECONDS: Final = 10.0
"""Before sealing is tried again on a disk that had no room for the digests."""

SCRUB_LOOK_SECONDS: Final = 60.0
"""How often it is looked whether a scrub is due; they are days apart."""


class Service:
    """One mounted store.

    Args:
        store: opened under its lock.
        durability: the mount's mode: "close", "fsync" or "write".
    """

    def __init__(self, store: Store, durability: str) -> None:
        self._store = store
        self._durability = Durability(store.volume, durability, store.freeing)
        self._save_lock = trio.Lock()
        self._work = trio.Event()
        self._snapshots_changed = trio.Event()
        self._scrub_is_wanted = trio.Event()
        self._log_is_long = trio.Event()
        store.database.on_commit = self._note_log_length
        self.operations = Operations(
            store.volume, store.namespace, self._durability, self, store.layout.root
        )
        self._commands = Commands(store)
        self._keeper = Keeper(store, self._alone)
        self._verifier = Verifier(store, in_threads, self._alone)
        store.host = self

    # What operations need of the process that has the mount (maintenance.store.Host).

    is_mounted = True

    def mount_point(self) -> Path | None:
        """Return where the store is mounted; None when somebody has just unmounted it."""
        root = str(self._store.layout.root)
        return next((each.mount_point for each in statefs_mounts() if each.source == root), None)

    def write_back(self) -> None:
        """Have the kernel hand over dirty pages of shared memory maps, which it alone knows of."""
        mount_point = self.mount_point()
        if mount_point is not None:
            call_outside(partial(write_back, mount_point))

    def held(self) -> AbstractContextManager[None]:
        """Take no request of the kernel inside the `with` block."""
        return held()

    def writers(self) -> list[Writer]:
        """Return who has files open for writing, in containers, too."""
        mount_point = self.mount_point()
        mount = None if mount_point is None else find_mount(mount_point)
        return [] if mount is None else writers(mount.device)

    def refresh(self, restored: Restored) -> None:
        """Have the kernel ask anew for what a restore changed."""
        for ino in restored.inodes:
            forget_attributes(ino)
        mount_point = self.mount_point()
        if mount_point is not None:
            visit(mount_point / "current", restored.paths, self.operations.visitors)

    def list_changed(self) -> None:
        """Have the kernel ask anew how many folders snapshots/ and clones/ have."""
        try:
            for folder in (SNAPSHOTS_DIR, CLONES_ROOT):
                forget_attributes(folder)
        except OSError as error:
            log.warning("the kernel did not take a notice: %s", error)

    def space_changed(self) -> None:
        """Have space freed in the background."""
        self._work.set()

    def scrub_now(self) -> None:
        """Begin a scrub, unless one runs."""
        self._scrub_is_wanted.set()

    # Operations.

    async def handle(self, op: str, args: dict[str, Any], call: Call) -> Any:
        """Do one operation of the control socket.

        Raises:
            UsageError: an unknown operation or wrong arguments. StatefsError: as the operation.
        """
        steps = self._commands.start(op, args, call)
        try:
            return await (self._alone(steps) if op in CHANGING else in_threads(steps))
        except PosixError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from error

    async def _alone(self, steps: Steps[T]) -> T:
        """Run an operation while no other one changes the list of snapshots."""
        async with self._save_lock:
            result = await in_threads(steps)
        self._snapshots_changed.set()
        return result

    async def save_labelled(self, label: str) -> None:
        """Take a snapshot for mkdir(2) in snapshots/."""
        await self._alone(saving.save(self._store, "manual", "", {"name": label}))

    def require_space(self) -> None:
        """Refuse what takes space while a full disk has cost the reserve. Raises ENOSPC."""
        self._store.reserve.require()

    def freeing(self, deletion: Callable[[], Any]) -> Any:
        """Run a deletion, on a full disk with the room that is reserved for it."""
        return self._store.freeing(deletion)

    async def save_on_request(self) -> None:
        """Take a snapshot for SIGUSR1."""
        await self._keeper.save_on_request()

    async def delete_folder(self, name: str) -> None:
        """Delete a snapshot for rmdir(2) in snapshots/."""
        found = self._store.catalog.by_folder(name)
        if found is None:
            raise NoSuchSnapshot(f"no snapshot {name!r}")
        await self._alone(saving.delete(self._store, found[0]))

    async def clone(self, name: bytes) -> None:
        """Make a clone for mkdir(2) in clones/."""
        await self._alone(cloning.clone_by_name(self._store, name))

    async def delete_clone(self, name: bytes) -> None:
        """Delete a clone for rmdir(2) in clones/."""
        await self._alone(cloning.delete(self._store, name))

    async def run(self) -> None:
        """Pay what is owed to the disk, free space, move the log and seal, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pay)
            nursery.start_soon(self._collect)
            nursery.start_soon(self._keep_log_short)
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._verifier.run)
            nursery.start_soon(self._seal)
            nursery.start_soon(self._scrub)

    async def _pay(self) -> None:
        """Make all that was acknowledged durable about once a second, if something was."""
        while True:
            await trio.sleep(TICK_SECONDS)
            try:
                await self._durability.sync_everything()
                self._store.freeing(self._store.volume.table.reap_closed)
                if self._store.owes_index and self._store.reserve.is_held:
                    async with self._save_lock:  # saves and deletes write the same file
                        await trio.to_thread.run_sync(self._store.pay_index)
                if not self._store.reserve.hold():
                    await self._checkpoint()
            except (OSError, PosixError, apsw.Error) as error:
                log.error("the disk refuses what the store owes it: %s", error)
            self._work.set()

    async def _keep_log_short(self) -> None:
        """Move the log into meta.db whenever it has become long."""
        database = self._store.database
        while True:
            await self._log_is_long.wait()
            self._log_is_long = trio.Event()
            try:
                await self._checkpoint()
            except (PosixError, apsw.Error) as error:
                log.warning("the log could not be moved into the database: %s", error)
                await trio.sleep(TICK_SECONDS)
            if database.wal_pages >= WAL_PAGES_MAX:
                await trio.sleep(CHECKPOINT_PAUSE_SECONDS)

    def _note_log_length(self, pages: int) -> None:
        if pages >= WAL_PAGES_MAX:
            self._log_is_long.set()

    async def _checkpoint(self) -> None:
        database = self._store.database
        pages = database.wal_pages
        await trio.to_thread.run_sync(database.checkpoint, pages > WAL_PAGES_RESTART)
        log.debug("moved %d pages of the log into the database", pages)

    async def _collect(self) -> None:
        """Free what nothing refers to, a step at a time."""
        collector = self._store.collector
        while True:
            await self._work.wait()
            self._work = trio.Event()
            try:
                while self._store.freeing(collector.delete_rows):
                    await trio.sleep(0)
                while candidates := collector.candidates():
                    await trio.to_thread.run_sync(self._store.sync)
                    if not collector.free(candidates):
                        break
                    await trio.sleep(0)
                while collector.shrink():
                    await trio.sleep(0)
                await in_threads(merging.merge_all(self._store))
            except (OSError, PosixError, apsw.Error) as error:
                log.error("space could not be given back: %s", error)

    async def _seal(self) -> None:
        """Seal each snapshot that is complete, the oldest first."""
        sealer = self._store.sealer
        while True:
            try:
                while (snapshot := sealer.next()) is not None:
                    digest = await in_threads(sealer.hash(snapshot))
                    if digest is not None:
                        await self._finish_sealing(snapshot, digest)
            except (OSError, PosixError, apsw.Error) as error:
                log.warning("sealing is tried again later: %s", error)
                await trio.sleep(SEALING_RETRY_SECONDS)
                continue
            await self._snapshots_changed.wait()
            self._snapshots_changed = trio.Event()

    async def _scrub(self) -> None:
        """Read everything again when that is due or asked for."""
        scrubber = self._store.scrubber
        while True:
            with trio.move_on_after(SCRUB_LOOK_SECONDS):
                await self._scrub_is_wanted.wait()
            if not self._scrub_is_wanted.is_set() and not scrubber.is_due():
                continue
            try:
                await in_threads(scrubber.run())
            except (OSError, PosixError, apsw.Error) as error:
                scrubber.failures += 1
                log.error("the scrub could not come to its end: %s", error)
            self._scrub_is_wanted = trio.Event()

    async def _finish_sealing(self, snapshot: Snapshot, digest: str) -> None:
        """Write what was found into the documents, all of them even when the mount ends now."""
        with trio.CancelScope(shield=True):
            async with self._save_lock:
                await in_threads(self._store.sealer.finish(snapshot, digest))

    def close(self, *, clean: bool) -> None:
        """Save what autosave owes, if nothing went wrong, and close the store."""
        if clean:
            self._keeper.save_at_the_end()
        self._store.close(clean=clean)


async def in_threads(steps: Steps[T]) -> T:
    """Run an operation, its blocking steps in threads (maintenance/steps.py)."""
    return await drive(steps, trio.to_thread.run_sync)
