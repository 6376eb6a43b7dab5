"""A sync that failed sticks: the store accepts nothing more, whatever the disk says later."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pyfuse3
import pytest

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
