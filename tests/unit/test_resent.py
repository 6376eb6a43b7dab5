from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from statefs.clock import SystemClock
from statefs.fuse.handles import WRITABLE
from statefs.fuse.resent import (
    CREATE,
    FORGET,
    INTERRUPT,
    KEEP_CACHE,
    LINK,
    MKDIR,
    REMOVEXATTR,
    RENAME2,
    SETXATTR,
    SYMLINK,
    UNLINK,
)
from statefs.ids import TREE_ROOT
from statefs.maintenance.store import Store, init_store, open_store
from statefs.volume.names import RENAME_EXCHANGE, Creator
from tests.unit.resent_requests import THREAD, request, settled

OWNER = Creator(7, 8)
FILE = stat.S_IFREG | 0o640
FSYNC = 20
XATTR_CREATE = 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with a file `old`."""
    init_store(tmp_path / "store")
    opened = open_store(tmp_path / "store", SystemClock())
    opened.volume.names.create(TREE_ROOT, b"old", FILE, OWNER)
    opened.volume.table.underway.clear()
    yield opened
    opened.close()


def ino_of(store: Store, name: bytes) -> int:
    """Return the number of what lies in current/."""
    return int(store.volume.names.lookup(TREE_ROOT, name).ino)


def test_a_file_that_was_created_is_answered_with_its_attributes(store: Store) -> None:
    """As libfuse would: entry, attributes, and the handle of the open file."""
    node = store.volume.names.create(TREE_ROOT, b"new", FILE, OWNER)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    body = struct.pack("<IIII", flags, FILE, 0, 0) + b"new\0"
    answers = settled(store, [request(CREATE, TREE_ROOT, body)])
    assert answers.asked_again == 0
    error, reply = answers.replies[6]
    assert error == 0 and len(reply) == 128 + 16
    nodeid, generation, entry_seconds, attr_seconds, *rests = struct.unpack_from("<QQQQII", reply)
    assert (nodeid, generation, rests) == (node.ino, 0, [0, 0])
    assert entry_seconds == attr_seconds > 1_000_000
    ino, size, blocks, _, mtime, _ = struct.unpack_from("<6Q", reply, 40)
    assert (ino, size, blocks, mtime) == (node.ino, 0, 0, node.mtime_ns // 10**9)
    _, mtime_ns, _, mode, links, uid, gid, _, _, _ = struct.unpack_from("<10I", reply, 88)
    assert (mtime_ns, mode, links) == (node.mtime_ns % 10**9, FILE, 1)
    assert (uid, gid) == (7, 8)
    assert struct.unpack_from("<QI", reply, 128) == (node.ino | WRITABLE, KEEP_CACHE)
    assert store.volume.table.opens == {node.ino: 1}


def test_what_was_not_applied_is_sent_once_more(store: Store) -> None:
    """The same request without a note, and one for another name than the note's."""
    body = struct.pack("<II", 0o755, 0) + b"old\0"
    answers = settled(store, [request(MKDIR, TREE_ROOT, body)])
    assert (answers.replies, answers.asked_again) == ({}, 1)
    store.volume.names.unlink(TREE_ROOT, b"old")
    answers = settled(store, [request(UNLINK, TREE_ROOT, b"other\0")])
    assert (answers.replies, answers.asked_again) == ({}, 1)


def test_an_exchange_does_not_undo_itself(store: Store) -> None:
    """Both names are there before and after; the note knows which file was to go where."""
    names = store.volume.names
    names.create(TREE_ROOT, b"other", FILE, OWNER)
    before = ino_of(store, b"old"), ino_of(store, b"other")
    names.rename(TREE_ROOT, b"old", TREE_ROOT, b"other", RENAME_EXCHANGE)
    body = struct.pack("<QII", TREE_ROOT, RENAME_EXCHANGE, 0) + b"old\0other\0"
    answers = settled(store, [request(RENAME2, TREE_ROOT, body)])
    assert (answers.replies, answers.asked_again) == ({6: (0, b"")}, 0)
    assert (ino_of(store, b"other"), ino_of(store, b"old")) == before


def test_links_and_symbolic_links_are_answered(store: Store) -> None:
    """With what they lead to."""
    names = store.volume.names
    old = ino_of(store, b"old")
    names.link(old, TREE_ROOT, b"hard")
    answers = settled(store, [request(LINK, TREE_ROOT, struct.pack("<Q", old) + b"hard\0")])
    assert struct.unpack_from("<Q", answers.replies[6][1])[0] == old
    soft = names.create(TREE_ROOT, b"soft", stat.S_IFLNK | 0o777, OWNER, target=b"old")
    answers = settled(store, [request(SYMLINK, TREE_ROOT, b"soft\0old\0")])
    assert struct.unpack_from("<Q", answers.replies[6][1])[0] == soft.ino


def test_an_attribute_is_set_and_removed_once(store: Store) -> None:
    """One that must not exist before is not refused because it was set; and one that is gone."""
    old, attributes = ino_of(store, b"old"), store.volume.attributes
    attributes.set_xattr(old, b"user.a", b"1")
    body = struct.pack("<II", 1, XATTR_CREATE) + b"user.a\0" + b"1"
    answers = settled(store, [request(SETXATTR, old, body)])
    assert (answers.replies, answers.asked_again) == ({6: (0, b"")}, 0)
    assert attributes.xattr(old, b"user.a") == b"1"
    attributes.remove_xattr(old, b"user.a")
    answers = settled(store, [request(REMOVEXATTR, old, b"user.a\0")])
    assert (answers.replies, answers.asked_again) == ({6: (0, b"")}, 0)


def test_an_attribute_that_was_allowed_but_not_set_is_set(store: Store) -> None:
    """The worker died before its commit; the request must not be lost with the note."""
    old = ino_of(store, b"old")
    store.volume.attributes.set_xattr(old, b"user.a", b"before")
    body = struct.pack("<II", 5, 0) + b"user.a\0" + b"after"
    settled(store, [request(SETXATTR, old, body)])
    assert store.volume.attributes.xattr(old, b"user.a") == b"after"


def test_a_dead_thread_is_let_go_of(store: Store) -> None:
    """A mkdir by which the dead worker had the kernel look at a name makes no folder."""
    body = struct.pack("<II", 0o755, 0) + b"seen\0"
    answers = settled(store, [request(MKDIR, TREE_ROOT, body)], (THREAD,))
    assert (answers.replies, answers.asked_again) == ({6: (errno.EINTR, b"")}, 0)


def test_what_comes_between_is_not_lost(store: Store) -> None:
    """A FORGET has no reply and is not sent again: it counts at once; an INTERRUPT never does."""
    store.volume.names.unlink(TREE_ROOT, b"old")
    forget = request(FORGET, 99, struct.pack("<Q", 1), unique=2)
    interrupt = request(INTERRUPT, 0, struct.pack("<Q", 6), unique=3)
    unlink = request(UNLINK, TREE_ROOT, b"old\0")
    other = request(FSYNC, 99, bytes(16), unique=8)
    answers = settled(store, [forget, interrupt, unlink, other])
    assert (answers.replies, answers.asked_again) == ({6: (0, b"")}, 1)


def test_reading_ends_with_the_first_new_request(store: Store) -> None:
    """Those sent again come first; what was read of the others is sent once more."""
    new = bytearray(request(FSYNC, 99, bytes(16), unique=8))
    new[8:16] = struct.pack("<Q", 8)
    store.volume.names.unlink(TREE_ROOT, b"old")
    answers = settled(store, [bytes(new), request(UNLINK, TREE_ROOT, b"old\0")])
    assert (answers.replies, answers.asked_again) == ({}, 1)
