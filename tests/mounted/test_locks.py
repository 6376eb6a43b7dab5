from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import Child
from tests.harness.system_calls import errno_of

Lock = Callable[[int, int], Any]


def holder(path: Path, lock: Lock, operation: int) -> dict[str, Callable[[], Any]]:
    """Return steps for another process: take a lock, release it, try it, close the file."""
    descriptors: list[int] = []

    def take() -> None:
        descriptors.append(os.open(path, os.O_RDWR))
        lock(descriptors[0], operation)

    def attempt() -> int:
        descriptor = os.open(path, os.O_RDWR)
        try:
            return errno_of(lambda: lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))
        finally:
            os.close(descriptor)

    return {
        "take": take,
        "release": lambda: lock(descriptors[0], fcntl.LOCK_UN),
        "close": lambda: os.close(descriptors.pop()),
        "attempt": attempt,
    }


@pytest.fixture(params=[fcntl.flock, fcntl.lockf], ids=["flock", "fcntl"])
def lock(request: pytest.FixtureRequest) -> Lock:
    """flock(2) and fcntl(2) locks, which programs use for the same purpose."""
    return request.param  # type: ignore[no-any-return]


def test_an_exclusive_lock_keeps_another_process_out(place: Path, lock: Lock) -> None:
    """While one process holds it the other's attempt fails; after the release it succeeds."""
    path = place / "f"
    path.touch()
    with Child(holder(path, lock, fcntl.LOCK_EX)) as child, open(path, "r+b") as file:
        child.do("take")
        wanted = fcntl.LOCK_EX | fcntl.LOCK_NB
        assert errno_of(lambda: lock(file.fileno(), wanted)) in (errno.EAGAIN, errno.EACCES)
        child.do("release")
        lock(file.fileno(), wanted)
        assert child.do("attempt") in (errno.EAGAIN, errno.EACCES)
        lock(file.fileno(), fcntl.LOCK_UN)
        assert child.do("attempt") == 0


def test_shared_locks_share(place: Path, lock: Lock) -> None:
    """Two readers hold the lock together; a writer is kept out until both are gone."""
    path = place / "f"
    path.touch()
    with Child(holder(path, lock, fcntl.LOCK_SH)) as child, open(path, "r+b") as file:
        child.do("take")
        lock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert errno_of(lambda: lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)) != 0
        child.do("close")
        lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_ends_with_its_process(place: Path, lock: Lock) -> None:
    """A killed holder leaves no lock behind."""
    path = place / "f"
    path.touch()
    with open(path, "r+b") as file:
        with Child(holder(path, lock, fcntl.LOCK_EX)) as child:
            child.do("take")
        lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_waiting_lock_is_granted(place: Path, lock: Lock) -> None:
    """A process that waits for a lock gets it when the other lets go."""
    path = place / "f"
    path.touch()
    with open(path, "r+b") as file:
        lock(file.fileno(), fcntl.LOCK_EX)
        with Child(holder(path, lock, fcntl.LOCK_EX)) as child:
            child.ask("take")
            lock(file.fileno(), fcntl.LOCK_UN)
            child.answer()
            assert errno_of(lambda: lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)) != 0


def test_fcntl_locks_are_ranges(place: Path) -> None:
    """Two processes lock different bytes of one file; the same bytes exclude each other."""
    path = place / "f"
    path.write_bytes(bytes(100))
    descriptors: list[int] = []

    def lock_range(start: int) -> int:
        if not descriptors:
            descriptors.append(os.open(path, os.O_RDWR))
        wanted = fcntl.LOCK_EX | fcntl.LOCK_NB
        return errno_of(lambda: fcntl.lockf(descriptors[0], wanted, 10, start))

    steps = {"first": lambda: lock_range(0), "second": lambda: lock_range(10)}
    with Child(steps) as child, open(path, "r+b") as file:
        fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        assert child.do("first") in (errno.EAGAIN, errno.EACCES)
        assert child.do("second") == 0
