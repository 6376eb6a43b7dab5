"""The engine as the daemon runs it: saves, deletes and background work beside the requests.

Everything that waits for the disk runs in threads; everything that touches the tree runs on the
loop's thread, between requests. A save ends the epoch in one critical section
(snapshots/catalog.py) and waits for the disk after it, so the mount goes on meanwhile.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import apsw
import trio

from statefs.errors import NoSuchSnapshot, PosixError, UsageError
from statefs.fuse.durability import Durability
from statefs.fuse.invalidation import forget_attributes
from statefs.fuse.operations import Operations
from statefs.ids import SNAPSHOTS_DIR
from statefs.maintenance.store import Store, document_of
from statefs.mounts import statefs_mounts, write_back
from statefs.snapshots.catalog import Snapshot

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
"""How often what is owed to the disk is paid: the most that durability=fsync can lose."""
WAL_PAGES_MAX: Final = 1024
"""A log of 4 MiB is moved into meta.db; on a full disk the reserve must have room for that."""
WAL_PAGES_RESTART: Final = 8 * WAL_PAGES_MAX
"""A log of 32 MiB is started anew even if that holds commits up for a moment."""
CHECKPOINT_PAUSE_SECONDS: Final = 0.1
"""Between checkpoints that did not make the log short, because commits went on meanwhile."""
WRITE_BACK_SECONDS: Final = 30.0
"""How long a save waits for the kernel to hand over dirty pages of shared memory maps."""


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
        self._log_is_long = trio.Event()
        store.database.on_commit = self._note_log_length
        self.operations = Operations(
            store.volume, store.namespace, self._durability, self, store.layout.root
        )
        self._commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "save": self._command_save,
            "list": self._command_list,
            "show": self._command_show,
            "delete": self._command_delete,
            "status": self._command_status,
            "verify": self._command_verify,
        }

    async def handle(self, op: str, args: dict[str, Any]) -> Any:
        """Do one operation of the control socket.

        Raises:
            UsageError: an unknown operation or wrong arguments. StatefsError: as the operation.
        """
        command = self._commands.get(op)
        if command is None:
            raise UsageError(f"unknown operation {op!r}: this daemon is of another version")
        try:
            return await command(**args)
        except PosixError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from error

    async def _command_save(self, message: str, reason: str, labels: dict[str, str]) -> Any:
        return document_of(await self.save(reason, message, labels))

    async def _command_list(self) -> Any:
        return {"snapshots": self._store.list_snapshots()}

    async def _command_show(self, snapshot: str) -> Any:
        return self._store.show(snapshot)

    async def _command_delete(self, snapshot: str) -> Any:
        return document_of(await self.delete(self._store.catalog.choose(snapshot)))

    async def _command_status(self) -> Any:
        return self._store.status()

    async def _command_verify(self) -> Any:
        self._store.volume.data.settle(self._store.volume.table.stale_nodes())
        return await trio.to_thread.run_sync(self._store.verify_files)

    async def save(self, reason: str, message: str, labels: dict[str, str]) -> Snapshot:
        """Take a snapshot of everything that was written before the call.

        Raises:
            UsageError, SnapshotExists: see `Catalog.check_request`. OSError: the disk refused.
        """
        store = self._store
        async with self._save_lock:
            store.catalog.check_request(reason, message, labels)
            store.reserve.require()
            await self._write_back()
            pending = store.catalog.begin(reason, message, labels)
            try:
                await trio.to_thread.run_sync(store.sync)
                await trio.to_thread.run_sync(store.write_document, pending)
                snapshot = store.catalog.complete(pending)
            except BaseException:
                store.abandon(pending)
                raise
            await trio.to_thread.run_sync(store.database.sync)
            await self._publish()
            return snapshot

    async def _write_back(self) -> None:
        """Have the kernel hand over dirty pages of shared memory maps, which it alone knows of."""
        root = str(self._store.layout.root)
        for mount in statefs_mounts():
            if mount.source == root:
                with trio.move_on_after(WRITE_BACK_SECONDS) as scope:
                    await trio.to_thread.run_sync(
                        write_back, mount.mount_point, abandon_on_cancel=True
                    )
                if scope.cancelled_caught:
                    log.warning("the kernel did not write memory maps back in time")
                return

    async def _publish(self) -> None:
        """Write index.json and have the kernel forget the old one."""
        data = self._store.namespace.index_bytes()
        await trio.to_thread.run_sync(self._store.write_index, data)
        try:
            await trio.to_thread.run_sync(forget_attributes, SNAPSHOTS_DIR)
        except OSError as error:
            log.warning("the kernel did not take a notice: %s", error)

    async def save_labelled(self, label: str) -> None:
        """Take a snapshot for mkdir(2) in snapshots/."""
        await self.save("manual", "", {"name": label})

    async def delete(self, snapshot: Snapshot) -> Snapshot:
        """Delete a snapshot: gone at once, its space given back in the background."""
        async with self._save_lock:
            if self._store.catalog.by_view(snapshot.view) is None:
                raise NoSuchSnapshot(f"the snapshot {snapshot.name} has just been deleted")
            self._store.freeing(lambda: self._store.catalog.begin_delete(snapshot.epoch))
            await trio.to_thread.run_sync(self._store.database.sync)
            self._store.document_path(snapshot).unlink(missing_ok=True)
            await self._publish()
        self._work.set()
        return snapshot

    def require_space(self) -> None:
        """Refuse what takes space while a full disk has cost the reserve. Raises ENOSPC."""
        self._store.reserve.require()

    def freeing(self, deletion: Callable[[], Any]) -> Any:
        """Run a deletion, on a full disk with the room that is reserved for it."""
        return self._store.freeing(deletion)

    async def delete_folder(self, name: str) -> None:
        """Delete a snapshot for rmdir(2) in snapshots/."""
        found = self._store.catalog.by_folder(name)
        if found is None:
            raise NoSuchSnapshot(f"no snapshot {name!r}")
        await self.delete(found[0])

    async def run(self) -> None:
        """Pay what is owed to the disk, free space and move the log, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pay)
            nursery.start_soon(self._collect)
            nursery.start_soon(self._keep_log_short)

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
            except (OSError, PosixError, apsw.Error) as error:
                log.error("space could not be given back: %s", error)

    def close(self, *, clean: bool) -> None:
        """Close the store."""
        self._store.close(clean=clean)
