from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from statefs.clock import SystemClock
from statefs.errors import PosixError
from statefs.ids import TREE_ROOT
from statefs.maintenance.store import Store, init_store, open_store
from statefs.volume.names import RENAME_EXCHANGE, Creator
from statefs.volume.underway import PAGE_BYTES, Kind, Note, Underway, was_applied

OWNER = Creator(0, 0)
FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755


def note_of(store: Store) -> Note:
    """Return what the volume has noted last."""
    note = store.volume.table.underway.read()
    assert note is not None
    return note


def test_a_note_is_read_as_it_was_written() -> None:
    """Names of the greatest length, numbers of 64 bits; and nothing once it is struck out."""
    underway = Underway()
    assert underway.read() is None
    note = Note(Kind.MOVE, (1 << 64) - 1, b"a" * 255, 7, (1 << 63), b"b" * 255)
    underway.note(*note)
    assert underway.read() == note
    underway.clear()
    assert underway.read() is None


def test_another_process_reads_the_note() -> None:
    """It lies in memory that both map."""
    fd = os.memfd_create("note")
    os.ftruncate(fd, PAGE_BYTES)
    pid = os.fork()
    if pid == 0:
        Underway.in_file(fd).note(Kind.REMOVE, 5, b"x")
        os._exit(0)
    os.waitpid(pid, 0)
    assert Underway.in_file(fd).read() == Note(Kind.REMOVE, 5, b"x")
    os.close(fd)


def test_the_rows_tell_whether_a_change_was_committed(store: Store) -> None:
    """For each kind: after the change they say so."""
    names, attributes, database = store.volume.names, store.volume.attributes, store.database
    file = names.create(TREE_ROOT, b"file", FILE, OWNER)
    assert note_of(store)[:3] == (Kind.MAKE, TREE_ROOT, b"file")
    assert was_applied(note_of(store), database)
    names.link(file.ino, TREE_ROOT, b"link")
    assert was_applied(note_of(store), database)
    names.create(TREE_ROOT, b"other", FOLDER, OWNER)
    names.rename(TREE_ROOT, b"file", TREE_ROOT, b"moved")
    assert note_of(store).kind == Kind.MOVE
    assert was_applied(note_of(store), database)
    names.rename(TREE_ROOT, b"moved", TREE_ROOT, b"other", RENAME_EXCHANGE)
    assert was_applied(note_of(store), database)
    names.unlink(TREE_ROOT, b"link")
    assert note_of(store) == Note(Kind.REMOVE, TREE_ROOT, b"link")
    assert was_applied(note_of(store), database)
    names.rmdir(TREE_ROOT, b"moved")
    assert was_applied(note_of(store), database)
    attributes.set_xattr(file.ino, b"user.a", b"1")
    assert note_of(store) == Note(Kind.SET, file.ino, b"user.a")
    attributes.remove_xattr(file.ino, b"user.a")
    assert note_of(store) == Note(Kind.UNSET, file.ino, b"user.a")
    assert was_applied(note_of(store), database)


class Killed(BaseException):
    """Stands in for a SIGKILL just before the commit."""


@pytest.mark.parametrize("kind", ["create", "link", "unlink", "rmdir", "rename", "over", "unset"])
def test_the_rows_tell_that_a_change_was_not_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A process that is killed before its commit leaves a note, and nothing that it tells of."""
    names, attributes, database = store.volume.names, store.volume.attributes, store.database
    file = names.create(TREE_ROOT, b"file", FILE, OWNER)
    names.create(TREE_ROOT, b"other", FILE, OWNER)
    names.create(TREE_ROOT, b"folder", FOLDER, OWNER)
    attributes.set_xattr(file.ino, b"user.a", b"1")
    store.volume.table.underway.clear()
    steps: dict[str, Callable[[], object]] = {
        "create": lambda: names.create(TREE_ROOT, b"new", FILE, OWNER),
        "link": lambda: names.link(file.ino, TREE_ROOT, b"new"),
        "unlink": lambda: names.unlink(TREE_ROOT, b"file"),
        "rmdir": lambda: names.rmdir(TREE_ROOT, b"folder"),
        "rename": lambda: names.rename(TREE_ROOT, b"file", TREE_ROOT, b"new"),
        "over": lambda: names.rename(TREE_ROOT, b"file", TREE_ROOT, b"other"),
        "unset": lambda: attributes.remove_xattr(file.ino, b"user.a"),
    }

    def kill() -> None:
        raise Killed

    monkeypatch.setattr(database, "commit", kill)
    with pytest.raises(Killed):
        steps[kind]()
    monkeypatch.undo()
    assert not was_applied(note_of(store), database)


def test_what_is_refused_is_not_noted(store: Store) -> None:
    """A name that is there already is not taken for one that was just made."""
    names = store.volume.names
    names.create(TREE_ROOT, b"file", FILE, OWNER)
    store.volume.table.underway.clear()
    with pytest.raises(PosixError):
        names.create(TREE_ROOT, b"file", FILE, OWNER)
    with pytest.raises(PosixError):
        names.unlink(TREE_ROOT, b"nothing")
    assert store.volume.table.underway.read() is None


def test_files_of_an_earlier_process_count_as_open(tmp_path: Path) -> None:
    """Until the kernel drops them; those made later are known."""
    init_store(tmp_path / "store")
    with_old = open_store(tmp_path / "store", SystemClock())
    old = with_old.volume.names.create(TREE_ROOT, b"old", FILE, OWNER).ino
    removed = with_old.volume.names.create(TREE_ROOT, b"removed", FILE, OWNER).ino
    with_old.volume.table.opened(removed)
    with_old.volume.names.unlink(TREE_ROOT, b"removed")
    with_old.close(clean=False)
    successor = open_store(tmp_path / "store", SystemClock(), follows_another=True)
    table, names = successor.volume.table, successor.volume.names
    assert orphans(successor) == {removed}
    table.reap_closed()
    names.unlink(TREE_ROOT, b"old")
    new = names.create(TREE_ROOT, b"new", FILE, OWNER).ino
    names.unlink(TREE_ROOT, b"new")
    assert new not in orphans(successor)
    assert orphans(successor) == {removed, old}
    assert table.node(removed).nlink == 0
    table.forget(removed)
    assert orphans(successor) == {old}
    table.opened(old)
    table.forget(old)
    assert orphans(successor) == {old}
    successor.close()
    with_none = open_store(tmp_path / "store", SystemClock())
    assert orphans(with_none) == set()
    with_none.close()


def orphans(store: Store) -> set[int]:
    """Return the inodes that are kept without a name."""
    return {ino for (ino,) in store.database.rows("SELECT ino FROM orphans")}
