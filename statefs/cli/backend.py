"""The one door from the command line to a store: the daemon that has it, or the store itself.

Both sides give the same documents (docs/cli.md shows each). The engine is imported only on the
offline path, so a command that talks to a daemon starts fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from statefs.errors import StoreLocked

if TYPE_CHECKING:
    from statefs.cli.target import Target
    from statefs.control.client import ControlClient
    from statefs.maintenance.store import Store

Document = dict[str, Any]

LOCK_WAIT_SECONDS: Final = 10.0
"""How long a command waits for another short one, or for a daemon that is just ending."""


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
    from statefs.locking import StoreLock

    if daemon_has(target):
        with _online(target) as online:
            yield online
        return
    lock = StoreLock(target.layout, role="command")
    try:
        lock.acquire(LOCK_WAIT_SECONDS)
    except StoreLocked:
        # A daemon may have started between the look and the lock.
        if not daemon_has(target):
            raise
        with _online(target) as online:
            yield online
        return
    try:
        with _offline(target) as offline:
            yield offline
    finally:
        lock.release()


def daemon_has(target: Target) -> bool:
    """Return whether a living daemon has the target's store open."""
    from statefs.locking import read_owner

    owner = read_owner(target.layout)
    return owner is not None and owner.alive and owner.role == "daemon"


@contextmanager
def _online(target: Target) -> Iterator[Backend]:
    from statefs.control.client import ControlClient

    with ControlClient(target.layout) as client:
        yield OnlineBackend(client)


@contextmanager
def _offline(target: Target) -> Iterator[Backend]:
    from statefs.clock import SystemClock
    from statefs.maintenance.store import open_store

    store = open_store(target.store, clock=SystemClock())
    try:
        yield OfflineBackend(store)
    finally:
        store.close()
