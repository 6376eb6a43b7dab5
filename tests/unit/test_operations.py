"""Handlers of the mount, asked as the kernel asks them, without one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final

import pyfuse3
import pytest
import trio

from statefs.daemon.service import Service
from statefs.fuse.operations import Operations
from statefs.ids import CLONES_ROOT, MOUNT_ROOT, SNAPSHOTS_DIR, TREE_ROOT, node_id
from statefs.maintenance.store import Store
from statefs.volume.names import NAME_MAX
from tests.unit.engine_store import FILE, FOLDER, ME

PAGE_ENTRIES: Final = 10
"""Entries that one reply holds."""


class Page:
    """A reply to READDIRPLUS, with room for a few entries."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, int]] = []

    def take(self, name: bytes, _: pyfuse3.EntryAttributes, cookie: int) -> bool:
        """Add an entry, if there is room."""
        if len(self.entries) == PAGE_ENTRIES:
            return False
        self.entries.append((name, cookie))
        return True


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[[Operations, int, int], Any]:
    """What reads the next entries (name, cookie) of a listing by its handle and a cookie."""
    monkeypatch.setattr(pyfuse3, "readdir_reply", Page.take)

    def read(operations: Operations, handle: int, after: int) -> list[tuple[bytes, int]]:
        reply = Page()
        trio.run(operations.readdir, handle, after, reply)
        return reply.entries

    return read


def test_a_listing_ends_that_an_earlier_process_began(
    store: Store, page: Callable[[Operations, int, int], Any]
) -> None:
    """However many names are made meanwhile; those from before the next process are listed."""
    names = store.volume.names
    folder = names.create(TREE_ROOT, b"folder", FOLDER, ME).ino
    old = {b"old-%d" % number for number in range(100)}
    for name in old:
        names.create(folder, name, FILE, ME)
    first, second = (Service(store, "close").operations for _ in range(2))
    handle = trio.run(first.opendir, folder, None)
    entries = page(first, handle, 0)
    names.create(folder, b"between", FILE, ME)
    steps = 0
    while (more := page(second, handle, entries[-1][1])) and steps < len(old):
        entries += more
        names.create(folder, b"new-%d" % steps, FILE, ME)
        steps += 1
    assert more == []
    listed = [name for name, _ in entries if name not in (b".", b"..")]
    assert sorted(listed) == sorted(old | {b"between"})


def test_processes_tell_their_listings_apart(store: Store) -> None:
    """A new listing does not get the handle of one that an earlier process began."""
    services = [Service(store, "close").operations for _ in range(2)]
    handles = [trio.run(each.opendir, TREE_ROOT, None) for each in services for _ in range(3)]
    assert len(set(handles)) == len(handles)


def test_no_folder_has_a_name_that_is_too_long(store: Store) -> None:
    """Nor takes one, a folder of a snapshot neither. With a byte less it is just not there."""
    store.save("", "manual", {})
    past = node_id(store.catalog.snapshots[0].view, TREE_ROOT)
    operations = Service(store, "close").operations
    longest = b"x" * NAME_MAX
    for parent in (MOUNT_ROOT, SNAPSHOTS_DIR, TREE_ROOT, CLONES_ROOT, past):
        with pytest.raises(pyfuse3.FUSEError, match=os.strerror(errno.ENAMETOOLONG)):
            trio.run(operations.lookup, parent, longest + b"x", None)
        with pytest.raises(pyfuse3.FUSEError, match=os.strerror(errno.ENAMETOOLONG)):
            trio.run(operations.mkdir, parent, longest + b"x", 0o755, None)
        assert operations.found(parent, longest).st_ino == 0
