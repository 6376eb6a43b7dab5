"""When an operation may be acknowledged: waiting for the disk, without holding others up.

Bytes before names: the object files of a file are synced before the commit that tells its new
size, and that before the log. Syncs run in threads; those who wait for the same thing share one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from statefs.durable import SyncFailed
from statefs.volume.table import Node
from statefs.volume.volume import Volume

FSYNC: Final = "fsync"
WRITE: Final = "write"


QUICK_SECONDS: Final = 300e-6
"""A sync expected to be over by then is done on the loop's thread: handing it to another costs
about 75 us, and as much again in processor time. A slower disk never holds the loop up twice."""


class Durability:
    """Makes files and names durable as the mount's mode and the tree's attributes ask.

    Args:
        volume: the living tree.
        mode: the mount's mode: "close", "fsync" or "write".
        freeing: runs what must not fail for lack of space with the room kept back for it.
    """

    def __init__(
        self, volume: Volume, mode: str, freeing: Callable[[Callable[[], None]], None]
    ) -> None:
        self._volume = volume
        self._table = volume.table
        self._database = volume.table.database
        self._freeing = freeing
        self.mode = mode

    def of(self, node: Node) -> str:
        """Return the mode in force for a file."""
        return self._volume.attributes.durability(node, self.mode)

    async def sync_bytes(self, node: Node) -> None:
        """Make the bytes of a file durable, and forget what they took the place of.

        What is written meanwhile, by others, is owed still.

        Raises:
            SyncFailed: from then on nothing is accepted. OSError: an object cannot be opened.
        """
        await self._sync_objects(node.ino)
        if node.ino in self._table.displaced and node.ino not in self._table.unsynced:
            self.settle([node])

    async def _sync_objects(self, ino: int) -> None:
        """Do that; what has no more owing than that is forgotten when it is settled."""
        noted = self._table.noted
        for number in list(self._table.unsynced.get(ino, ())):
            try:
                await trio.to_thread.run_sync(self._table.objects.sync, number)
            except FileNotFoundError:
                pass  # the object lost its last reference meanwhile: nothing is owed for it
            except SyncFailed as error:
                self._database.fail(error)
                raise
            if self._table.objects.is_synced(number):
                self._forget(ino, number)
        if ino in self._table.displaced and ino in self._table.unsynced:
            self._freeing(lambda: self._table.forget_displaced(ino, noted))

    def _forget(self, ino: int, number: int) -> None:
        waiting = self._table.unsynced.get(ino)
        if waiting is not None:
            waiting.discard(number)
            if not waiting:
                del self._table.unsynced[ino]

    async def sync_names(self) -> None:
        """Make every commit so far durable."""
        database = self._database
        if database.is_synced:
            return
        if database.sync_seconds < QUICK_SECONDS and not database.is_syncing:
            database.sync()
        else:
            await trio.to_thread.run_sync(database.sync)

    def settle(self, nodes: list[Node]) -> None:
        """Write sizes and times that are newer in memory into rows."""
        self._freeing(lambda: self._volume.data.settle(nodes))

    async def sync_file(self, node: Node) -> None:
        """Make a file's bytes, attributes and name durable, as fsync(2) promises."""
        if node.ino in self._table.unsynced:
            await self._sync_objects(node.ino)
        is_behind = node.is_stale or node.ino in self._table.displaced
        if is_behind and node.ino not in self._table.unsynced:
            self.settle([node])  # else it was written meanwhile: bytes before sizes, next time
        if not self._database.is_commit_synced(node.changed):
            await self.sync_names()

    async def sync_everything(self) -> None:
        """Make all that was acknowledged durable."""
        for ino in list(self._table.unsynced):
            await self._sync_objects(ino)
        unsynced = self._table.unsynced  # holds what was written while others were synced
        self.settle([node for node in self._table.unsettled_nodes() if node.ino not in unsynced])
        await self.sync_names()
