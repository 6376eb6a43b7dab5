"""The way to the operations of a store: through the daemon that has it, or into the store itself.

Both ways lead to the same operations (maintenance/commands.py). The engine is imported only for the
second one, so that a program that talks to a daemon starts fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from statefs.errors import DaemonUnreachable, StoreLocked
from statefs.target import Target

if TYPE_CHECKING:
    from statefs.control.client import ControlClient
    from statefs.locking import StoreLock
    from statefs.maintenance.store import Store

Document = dict[str, Any]
OnProgress = Callable[[Document], None]
"""Told how far an operation is, in its own words (docs/cli.md, "Progress")."""

ATTEMPTS: Final = 3
"""A daemon may come or go between the look and the lock; not that often in a row."""


class Door(Protocol):
    """A way to the operations of a store."""

    def call(self, op: str, arguments: Mapping[str, Any], on_progress: OnProgress | None) -> Any:
        """Do one operation and return its result."""

    def close(self) -> None:
        """Let go of the store."""


class OnlineDoor:
    """To a store that a daemon has open, over its control socket."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def call(self, op: str, arguments: Mapping[str, Any], on_progress: OnProgress | None) -> Any:
        """Have the daemon do one operation."""
        return self._client.call(op, arguments, on_progress)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class OfflineDoor:
    """To a store that no daemon has open.

    Args:
        store: opened here.
        lock: its lock, held; let go with the store.
    """

    def __init__(self, store: Store, lock: StoreLock) -> None:
        from statefs.maintenance.commands import Commands

        self._store = store
        self._lock = lock
        self._commands = Commands(store)

    def call(self, op: str, arguments: Mapping[str, Any], on_progress: OnProgress | None) -> Any:
        """Do one operation here, and what a daemon would do after it in the background."""
        from statefs.control.kinds import CHANGING, READING
        from statefs.maintenance import steps
        from statefs.maintenance.opening import refuse_change

        if op not in READING:
            refuse_change(self._store.layout)
        result = steps.run(self._commands.start(op, dict(arguments), Listener(on_progress)))
        if op in CHANGING:
            self._store.collect()
        return result

    def close(self) -> None:
        """Close the store and let go of its lock."""
        try:
            self._store.close()
        finally:
            self._lock.release()


class Listener:
    """Passes the progress of an operation in this process on."""

    is_wanted = True

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.pid = os.getpid()
        self._on_progress = on_progress

    def report(self, progress: Document) -> None:
        """Tell how far the work is."""
        if self._on_progress is not None:
            self._on_progress(progress)


def open_door(target: Target) -> Door:
    """Open the way to a store: its daemon, or itself under its lock where no daemon has it.

    Raises:
        StoreLocked: another process has it open and is no daemon. DaemonUnreachable: a daemon has
            it, and does not answer. NoSuchStore: it is none. OlderStore: only a mount migrates it.
    """
    from statefs.locking import COMMAND_WAIT_SECONDS, StoreLock

    lock = StoreLock(target.layout, role="command")
    for attempt in range(ATTEMPTS):
        client = connected_client(target)
        if client is not None:
            return OnlineDoor(client)
        try:
            lock.acquire(COMMAND_WAIT_SECONDS)
            break
        except StoreLocked:
            if attempt == ATTEMPTS - 1 or not daemon_has(target):
                raise
    try:
        return OfflineDoor(_opened_store(target), lock)
    except BaseException:
        lock.release()
        raise


def daemon_has(target: Target) -> bool:
    """Return whether a living daemon has the target's store open."""
    from statefs.locking import read_owner

    owner = read_owner(target.layout)
    return owner is not None and owner.alive and owner.role == "daemon"


def connected_client(target: Target) -> ControlClient | None:
    """Return a connection to the daemon that has the store, None where there is no such daemon.

    Raises:
        DaemonUnreachable: there is one and it does not answer.
    """
    if not daemon_has(target):
        return None
    from statefs.control.client import ControlClient

    client = ControlClient(target.layout)
    try:
        client.connect()
    except DaemonUnreachable:
        # One that was just ending when we looked is no daemon any more.
        if daemon_has(target):
            raise
        return None
    return client


def _opened_store(target: Target) -> Store:
    from statefs.clock import SystemClock
    from statefs.maintenance.opening import refuse_older
    from statefs.maintenance.store import open_store

    refuse_older(target.layout, target.state)
    return open_store(target.store, clock=SystemClock())
