"""What another program does while the first sync of a step is waited for.

In the daemon a thread syncs and the loop goes on. Here the other step is done at one of three
places: when the sync is handed to a thread; when that asks the disk, after it has looked what there
is to sync; and when it has been made, before who waits for it goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar
from unittest.mock import patch

from statefs import durable
from statefs.content import objects

T = TypeVar("T")

BEFORE: Final = "before"
WITHIN: Final = "within"
"""The sync of an object file; what syncs itself in turn cannot be done there."""
AFTER: Final = "after"
PLACES: Final = (BEFORE, WITHIN, AFTER)


class Meanwhile:
    """One step that lands during another one.

    Args:
        place: one of PLACES.
        land: does it.
    """

    def __init__(self, place: str, land: Callable[[], Awaitable[None]]) -> None:
        self._place = place
        self._land = land
        self.has_landed = False

    async def waited(self, call: Callable[..., T], *arguments: Any, **_: Any) -> T:
        """Do at once what another thread would do; the step lands with the first sync."""
        is_sync = (
            getattr(call.func if isinstance(call, partial) else call, "__name__", "") == "sync"
        )
        if self.has_landed or not is_sync:
            return call(*arguments)
        if self._place == WITHIN:
            return self._while_the_disk_is_asked(partial(call, *arguments))
        if self._place == BEFORE:
            await self._landing()
        result = call(*arguments)
        if self._place == AFTER:
            await self._landing()
        return result

    async def _landing(self) -> None:
        self.has_landed = True
        await self._land()

    def _while_the_disk_is_asked(self, call: Callable[[], T]) -> T:
        sync = durable.sync_file

        def syncing(fd: int) -> None:
            if not self.has_landed:
                _done(self._landing())
            sync(fd)

        with patch.object(objects, "sync_file", syncing):
            return call()


def _done(landing: Any) -> None:
    """Run what waits for nothing to its end."""
    try:
        landing.send(None)
    except StopIteration:
        return
    raise AssertionError("the step has waited for something")
