"""The engine as the daemon runs it: operations, and what they need of the mount.

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
from typing import Any, TypeVar

import trio

from statefs import __version__
from statefs.content.checks import DamagedBytes
from statefs.control.kinds import CHANGING
from statefs.daemon.checking import Checker
from statefs.daemon.keeping import Keeper
from statefs.daemon.publishing import Publisher
from statefs.daemon.tasks import Tasks, in_threads
from statefs.daemon.watching import Watcher
from statefs.errors import InvalidConfig, NoSuchSnapshot, PosixError
from statefs.fuse.durability import Durability
from statefs.fuse.invalidation import Refresh, forget_attributes
from statefs.fuse.operations import Operations
from statefs.fuse.resent import Resent
from statefs.fuse.session_loop import held
from statefs.hooks.events import EventCommands
from statefs.ids import CLONES_ROOT, SNAPSHOTS_DIR
from statefs.maintenance import cloning, saving
from statefs.maintenance.commands import Call, Commands
from statefs.maintenance.steps import Steps
from statefs.maintenance.store import Store
from statefs.mounts import (
    Writer,
    call_outside,
    find_mount,
    statefs_mounts,
    threads_of,
    write_back,
    writers,
)
from statefs.snapshots.naming import CURRENT
from statefs.snapshots.restore import Refreshing, refreshing_nothing
from statefs.telemetry.events import StateLoaded, WorkerRestarted
from statefs.telemetry.lines import TEXT, choose_format
from statefs.telemetry.logged import log_event

T = TypeVar("T")

log = logging.getLogger(__name__)


class Service:
    """One mounted store.

    Args:
        store: opened under its lock.
        durability: the mount's mode: "close", "fsync" or "write".
    """

    def __init__(self, store: Store, durability: str) -> None:
        self._store = store
        store.events.listen(log_event)
        self._hooks = EventCommands(store.layout.root, store.settings.read)
        store.events.listen(self._hooks.note)
        self._durability = Durability(store.volume, durability, store.freeing)
        self._save_lock = trio.Lock()
        self.operations = Operations(
            store.volume, store.namespace, self._durability, self, store.layout.root
        )
        self.answered = store.volume.table.underway.clear
        self._commands = Commands(store)
        self._keeper = Keeper(store, self.run_alone)
        self._checker = Checker(store, self.run_alone)
        self._watcher = Watcher(store, self.of_mount)
        self._publisher = Publisher(store, lambda: store.status() | self.of_mount())
        self._restarts = 0
        self._tasks = Tasks(store, self._durability, self.run_alone, self._save_lock.locked)
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

    def refreshing(self) -> Refreshing:
        """Return what has the kernel ask anew for what a restore changes."""
        mount_point = self.mount_point()
        return refreshing_nothing() if mount_point is None else Refresh(mount_point / CURRENT)

    def list_changed(self) -> None:
        """Have the kernel ask anew how many folders snapshots/ and clones/ have."""
        try:
            for folder in (SNAPSHOTS_DIR, CLONES_ROOT):
                forget_attributes(folder)
        except OSError as error:
            if self.mount_point() is not None:  # else the mount has just ended, and its cache
                log.warning("the kernel did not take a notice: %s", error)

    def space_changed(self) -> None:
        """Have space freed in the background."""
        self._tasks.space.ring()

    def scrub_now(self) -> None:
        """Begin a scrub, unless one runs."""
        self._tasks.scrubs.ring()

    def alone(self, operation: Steps[T]) -> T:
        """Run an operation while no other one changes the list of snapshots; from a thread."""
        return trio.from_thread.run(self.run_alone, operation)

    # What the session needs of it.

    def follow(self, fuse_fd: int, dead: tuple[int, ...]) -> None:
        """Settle what the kernel had asked an earlier process, before any other request.

        Args:
            fuse_fd: the connection; the kernel has been told to ask again.
            dead: earlier processes that the kernel may not have let go of.
        """
        threads = {thread for pid in dead for thread in threads_of(pid)}
        underway, database = self._store.volume.table.underway, self._store.database
        answered = Resent(fuse_fd, underway, database, self.operations, threads).settle()
        log.info("%d requests were applied already and are answered now", answered)

    # Operations.

    async def handle(self, op: str, args: dict[str, Any], call: Call) -> Any:
        """Do one operation of the control socket.

        Raises:
            UsageError: an unknown operation or wrong arguments. StatefsError: as the operation.
        """
        steps = self._commands.start(op, args, call)
        try:
            return await (self.run_alone(steps) if op in CHANGING else in_threads(steps))
        except PosixError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from error

    async def run_alone(self, steps: Steps[T]) -> T:
        """Run an operation while no other one changes the list of snapshots."""
        try:
            async with self._save_lock:
                return await in_threads(steps)
        finally:
            self._tasks.seals.ring()
            self._checker.news.ring()

    async def save_labelled(self, label: str) -> None:
        """Take a snapshot for mkdir(2) in snapshots/."""
        await self.run_alone(saving.save(self._store, "manual", "", {"name": label}))

    def require_space(self) -> None:
        """Refuse what takes space while a full disk has cost the reserve. Raises ENOSPC."""
        self._store.reserve.require()

    def damaged(self, damage: DamagedBytes) -> None:
        """Have it known that damaged bytes were asked for."""
        self._store.tell_damage(damage)

    def freeing(self, deletion: Callable[[], Any]) -> Any:
        """Run a deletion, on a full disk with the room that is reserved for it."""
        return self._store.freeing(deletion)

    def size(self) -> int:
        """Return how many bytes all files of current/ have."""
        return self._store.volume.table.bytes

    def log_format(self) -> str:
        """Return how the log is to be written, and write it so in this process."""
        try:
            form = self._store.settings.read().log_format
        except InvalidConfig:
            return TEXT  # the keeper complains
        choose_format(form)
        return form

    def tell_served(self, restarts: int) -> None:
        """Tell that this process serves the mount: programs are answered."""
        self._restarts = restarts
        if restarts:
            self._store.events.tell(
                WorkerRestarted, restarts=restarts, pid=os.getpid(), version=__version__
            )
        else:
            self._store.events.tell(StateLoaded, how="mount")

    def of_mount(self) -> dict[str, Any]:
        """Return what the status says of a mount that is served."""
        return {"mounted": True, "restarts": self._restarts}

    async def save_on_request(self) -> None:
        """Take a snapshot for SIGUSR1."""
        await self._keeper.save_on_request()

    async def delete_folder(self, name: str) -> None:
        """Delete a snapshot for rmdir(2) in snapshots/."""
        found = self._store.catalog.by_folder(name)
        if found is None:
            raise NoSuchSnapshot(f"no snapshot '{name}'")
        await self.run_alone(saving.delete(self._store, found[0]))

    async def clone(self, name: bytes) -> None:
        """Make a clone for mkdir(2) in clones/."""
        await self.run_alone(cloning.clone_by_name(self._store, name))

    async def delete_clone(self, name: bytes) -> None:
        """Delete a clone for rmdir(2) in clones/."""
        await self.run_alone(cloning.delete(self._store, name))

    async def run(self) -> None:
        """Do what is to be done beside the requests, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tasks.run)
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._checker.run)
            nursery.start_soon(self._watcher.run)
            nursery.start_soon(self._publisher.run)

    def close(self, *, clean: bool) -> None:
        """Save what autosave owes, if nothing went wrong, and close the store."""
        if clean:
            self._keeper.save_at_the_end()
        self._hooks.close()
        self._store.close(clean=clean)
