"""A sync that failed sticks: the store accepts nothing more, whatever the disk says later."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pyfuse3
import pytest

from statefs import durable
from statefs.errors import PosixError
from statefs.maintenance.store import init_store
from tests.crash.disk import Change, WatchedDisk
from tests.crash.engine import Handlers, Step, ino_of
from tests.unit.engine_store import EngineStore

FILE = b"files/f"
BIG = b"a" * 20_000


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """What a disk refuses is told in the log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def code_of(handlers: Handlers, step: Step) -> int:
    """Return the errno with which a step fails, 0 when it does not."""
    try:
        handlers.do(step)
    except (pyfuse3.FUSEError, PosixError) as error:
        return int(error.errno)
    return 0


def of_log(change: Change) -> bool:
    """Whether a change syncs the log, or the database it is moved into, by SQLite or statefs."""
    return change.kind == "sync" and change.place.startswith("metadata/connection.py:sync")


def of_checkpoint(change: Change) -> bool:
    """Whether SQLite syncs, to move the log."""
    return change.kind == "sync" and change.place.startswith("metadata/connection.py:checkpoint")


def of_object(change: Change) -> bool:
    """Whether a change syncs the bytes of an object file."""
    return change.kind == "sync" and change.place.startswith("content/objects.py")


def of_name(change: Change) -> bool:
    """Whether a change syncs the name of an object file."""
    return change.kind == "sync names" and "content/objects.py" in change.place


@pytest.mark.parametrize(
    ("fails", "step"),
    [
        (of_log, ("fsync", FILE)),
        (of_object, ("fsync", FILE)),
        (of_name, ("fsync", FILE)),
        (of_log, ("save", b"s")),
        (of_object, ("save", b"s")),
        (of_name, ("tick",)),
        (of_checkpoint, ("checkpoint",)),
    ],
)
def test_nothing_is_promised_after_a_sync_that_failed(
    tmp_path: Path, fails: Callable[[Change], bool], step: Step
) -> None:
    """It fails once: every later change and sync gets EIO; what was acknowledged is there."""
    init_store(tmp_path / "store")
    disk = WatchedDisk(tmp_path / "store")
    failed: list[Change] = []

    def fail_once(change: Change) -> None:
        if not failed and fails(change):
            failed.append(change)
            raise OSError(errno.EIO, "broken")

    with disk.watching():
        handlers = Handlers(tmp_path / "store")
        handlers.do(("create", FILE, 0o644))
        handlers.do(("write", FILE, 0, BIG))
        disk.on_change = fail_once
        assert code_of(handlers, step) == errno.EIO
        assert failed
        assert code_of(handlers, ("write", FILE, 0, b"b")) in (0, errno.EIO)
        for later in (("fsync", FILE), ("create", b"files/g", 0o644), ("save", b"t"), ("tick",)):
            assert code_of(handlers, later) == errno.EIO, later
        handlers.store.close()
    with EngineStore(tmp_path / "store") as after:
        assert not after.store.was_clean
        assert after.store.catalog.snapshots == []
        assert after.content(ino_of(after, FILE))[1:] == BIG[1:]
        assert after.problems() == []


def test_a_folder_that_cannot_be_opened_is_no_sync_that_failed(tmp_path: Path) -> None:
    """Nothing is lost by that: what is owed is paid when it can be opened again."""
    init_store(tmp_path / "store")
    handlers = Handlers(tmp_path / "store")
    handlers.do(("create", FILE, 0o644))
    handlers.do(("write", FILE, 0, BIG))
    real = os.open

    def without_folders(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, flags, *mode)

    with patch.object(os, "open", without_folders):
        assert code_of(handlers, ("fsync", FILE)) == errno.EMFILE
        assert code_of(handlers, ("save", b"s")) == errno.EMFILE
    assert handlers.store.database.failure is None
    assert code_of(handlers, ("fsync", FILE)) == 0
    assert code_of(handlers, ("save", b"s")) == 0
    handlers.store.close()


def test_a_sync_of_everything_that_is_interrupted_is_made_again(tmp_path: Path) -> None:
    """As Python does with calls of its own."""
    answers = [errno.EINTR, 0]

    class Interrupted:
        def syncfs(self, _: int) -> int:
            ctypes.set_errno(answers[0])
            return -1 if answers.pop(0) else 0

    with patch.object(durable, "_libc", Interrupted()):
        durable.sync_filesystem(tmp_path)
    assert answers == []
