"""The one door from the command line to a store: the daemon that has it, or the store itself.

Both sides give the same documents (docs/cli.md shows each). The engine is imported only on the
offline path, so a command that talks to a daemon starts fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from statefs.errors import DaemonUnreachable, StoreLocked

if TYPE_CHECKING:
    from statefs.cli.target import Target
    from statefs.control.client import ControlClient
    from statefs.maintenance.store import Store

Document = dict[str, Any]

ATTEMPTS: Final = 3
"""A daemon may come or go between the look and the lock; not that often in a row."""


class Backend(Protocol):
    """What a command can ask of a store, with or without a daemon."""

    def save(self, message: str, reason: str, labels: Mapping[str, str]) -> Document:
        """Take a snapshot and return its metadata."""

    def list_snapshots(self) -> list[Document]:
        """Return every snapshot's metadata, oldest first."""

    def show(self, snapshot: str) -> Document:
        """Return one snapshot's metadata."""

    def delete(self, snapshot: str) -> Document:
        """Delete one snapshot and return the metadata it had."""

    def status(self) -> Document:
        """Return what the store and its mount are doing."""

    def verify(self) -> list[Document]:
        """Check every rule of the store and return the problems found."""


class OnlineBackend:
    """A store that a daemon has open, reached over its control socket."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def save(self, message: str, reason: str, labels: Mapping[str, str]) -> Document:
        """Take a snapshot and return its metadata."""
        arguments = {"message": message, "reason": reason, "labels": dict(labels)}
        document: Document = self._client.call("save", arguments)
        return document

    def list_snapshots(self) -> list[Document]:
        """Return every snapshot's metadata, oldest first."""
        snapshots: list[Document] = self._client.call("list", {})["snapshots"]
        return snapshots

    def show(self, snapshot: str) -> Document:
        """Return one snapshot's metadata."""
        document: Document = self._client.call("show", {"snapshot": snapshot})
        return document

    def delete(self, snapshot: str) -> Document:
        """Delete one snapshot and return the metadata it had."""
        document: Document = self._client.call("delete", {"snapshot": snapshot})
        return document

    def status(self) -> Document:
        """Return what the store and its mount are doing."""
        document: Document = self._client.call("status", {})
        return document

    def verify(self) -> list[Document]:
        """Check every rule of the store and return the problems found."""
        problems: list[Document] = self._client.call("verify", {})
        return problems


class OfflineBackend:
    """A store that no daemon has open; the caller holds its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def save(self, message: str, reason: str, labels: Mapping[str, str]) -> Document:
        """Take a snapshot and return its metadata."""
        return self._store.save(message, reason, dict(labels))

    def list_snapshots(self) -> list[Document]:
        """Return every snapshot's metadata, oldest first."""
        return self._store.list_snapshots()

    def show(self, snapshot: str) -> Document:
        """Return one snapshot's metadata."""
        return self._store.show(snapshot)

    def delete(self, snapshot: str) -> Document:
        """Delete one snapshot and return the metadata it had."""
        return self._store.delete(snapshot)

    def status(self) -> Document:
        """Return what the store is doing; no mount, no daemon."""
        return self._store.status()

    def verify(self) -> list[Document]:
        """Check every rule of the store and return the problems found."""
        return self._store.verify()


@contextmanager
def open_backend(target: Target) -> Iterator[Backend]:
    """Open the target's store through the daemon that has it, or under its lock where none has.

    Raises:
        StoreLocked: another process has the store open and is no daemon.
        DaemonUnreachable: a daemon has it, and does not answer.
    """
    from statefs.locking import COMMAND_WAIT_SECONDS, StoreLock

    lock = StoreLock(target.layout, role="command")
    for attempt in range(ATTEMPTS):
        client = connected_client(target)
        if client is not None:
            with client:
                yield OnlineBackend(client)
            return
        try:
            lock.acquire(COMMAND_WAIT_SECONDS)
            break
        except StoreLocked:
            if attempt == ATTEMPTS - 1 or not daemon_has(target):
                raise
    try:
        with opened_store(target) as opened:
            yield opened
    finally:
        lock.release()


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


@contextmanager
def opened_store(target: Target) -> Iterator[OfflineBackend]:
    """Open the store itself, whose lock the caller holds."""
    from statefs.clock import SystemClock
    from statefs.maintenance.store import open_store

    store = open_store(target.store, clock=SystemClock())
    try:
        yield OfflineBackend(store)
    finally:
        store.close()
