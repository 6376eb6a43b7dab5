from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statefs import locking
from statefs.errors import AlreadyMounted, NoSuchStore, StoreLocked
from statefs.layout import StoreLayout
from statefs.locking import StoreLock, read_owner
from statefs.mounts import MountInfo

HOLD = """
import sys
from pathlib import Path
from statefs.layout import StoreLayout
from statefs.locking import StoreLock
root, role, mount_point = sys.argv[1:]
lock = StoreLock(StoreLayout(Path(root)), role, Path(mount_point) if mount_point else None)
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """The paths of a store that is only a folder."""
    return StoreLayout(tmp_path)


@contextmanager
def held_elsewhere(
    layout: StoreLayout, role: str = "command", mount_point: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process hold the lock of a store."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, layout.root, role, mount_point],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_nobody_owns_a_store_that_was_never_opened(layout: StoreLayout) -> None:
    """There is not even a lock file."""
    assert read_owner(layout) is None


def test_the_owner_is_known_while_it_holds_the_lock(layout: StoreLayout) -> None:
    """Pid, role and mount point are those of the holder; after release there is none."""
    lock = StoreLock(layout, role="daemon", mount_point=Path("/srv/state"))
    lock.acquire()
    owner = read_owner(layout)
    assert owner is not None and owner.alive
    assert (owner.pid, owner.role, owner.mount_point) == (os.getpid(), "daemon", "/srv/state")
    lock.release()
    lock.release()
    assert read_owner(layout) is None


def test_the_lock_file_is_for_its_owner_only(layout: StoreLayout) -> None:
    """Another user could otherwise lock everybody out."""
    with StoreLock(layout):
        assert layout.lock.stat().st_mode & 0o777 == 0o600


def test_a_second_process_is_refused_and_told_who_holds_it(layout: StoreLayout) -> None:
    """The message has the pid and the role."""
    with held_elsewhere(layout) as process, pytest.raises(StoreLocked) as caught:
        StoreLock(layout).acquire()
    assert f"locked by pid {process.pid} (a command)" in str(caught.value)


def test_two_locks_in_one_process_exclude_each_other(layout: StoreLayout) -> None:
    """The lock belongs to the open file, not to the process."""
    with StoreLock(layout), pytest.raises(StoreLocked):
        StoreLock(layout).acquire()


def test_a_lock_that_is_given_up_in_time_is_got(layout: StoreLayout) -> None:
    """The end of its owner is enough; nothing has to be cleared away."""
    with held_elsewhere(layout) as process:
        process.send_signal(signal.SIGKILL)
        lock = StoreLock(layout)
        lock.acquire(10)
        owner = read_owner(layout)
        assert owner is not None and owner.pid == os.getpid()
        lock.release()


def test_a_crashed_owner_is_known_but_not_alive(layout: StoreLayout) -> None:
    """What it wrote stays for messages, and hinders nobody."""
    with held_elsewhere(layout, "daemon", "/srv/state") as process:
        process.kill()
        process.wait()
    owner = read_owner(layout)
    assert owner is not None and not owner.alive and owner.pid == process.pid
    with StoreLock(layout):
        pass


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"pid": "x"}', "{}"])
def test_a_lock_file_of_any_content_can_be_locked(layout: StoreLayout, content: str) -> None:
    """Only the kernel's lock counts; a torn file is as good as an empty one."""
    layout.lock.write_text(content)
    assert read_owner(layout) is None
    with StoreLock(layout):
        owner = read_owner(layout)
        assert owner is not None and owner.alive


def test_a_held_lock_without_a_name_is_alive(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that has not written who it is yet is still a holder, and is never broken."""
    monkeypatch.setattr(locking, "GRACE_SECONDS", 0.01)
    with held_elsewhere(layout):
        layout.lock.write_text("")
        owner = read_owner(layout)
        assert owner is not None and owner.alive and owner.pid == 0
        with pytest.raises(StoreLocked, match="locked by another process"):
            StoreLock(layout).acquire()


def test_a_later_process_with_the_same_pid_is_not_the_owner(layout: StoreLayout) -> None:
    """The start time tells them apart when the lock is free, and the lock itself always does."""
    with held_elsewhere(layout) as process:
        content = json.loads(layout.lock.read_text())
        process.kill()
    layout.lock.write_text(json.dumps(content | {"pid": os.getpid()}))
    owner = read_owner(layout)
    assert owner is not None and not owner.alive


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    """There is nothing to lock where there is no folder."""
    with pytest.raises(NoSuchStore, match="missing"):
        StoreLock(StoreLayout(tmp_path / "missing")).acquire()


def test_a_child_process_does_not_inherit_the_lock(layout: StoreLayout) -> None:
    """Else a hook that outlives the daemon would keep the store locked."""
    with StoreLock(layout):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        StoreLock(layout).acquire()
    finally:
        child.kill()
        child.wait()


def pretend_mounted(monkeypatch: pytest.MonkeyPatch, source: Path | None) -> None:
    """Let the mount table show a store (or nothing) at every mount point."""

    def found(state: Path) -> MountInfo | None:
        return None if source is None else MountInfo(state, str(source), "fuse.statefs")

    monkeypatch.setattr(locking, "find_mount", found)


def test_a_mount_does_not_wait_for_a_daemon_that_serves(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever; the message says where the store is mounted."""
    pretend_mounted(monkeypatch, layout.root)
    lock = StoreLock(layout, "daemon", Path("/srv/state"))
    with (
        held_elsewhere(layout, "daemon", "/srv/state") as process,
        pytest.raises(AlreadyMounted) as caught,
    ):
        lock.acquire_for_mount(3600)
    assert f"mounted at /srv/state by pid {process.pid}" in str(caught.value)


def test_a_mount_waits_for_a_daemon_that_is_ending(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mount point is not mounted any more; when it is gone, the lock is got."""
    pretend_mounted(monkeypatch, None)
    lock = StoreLock(layout, "daemon", Path("/srv/state"))
    with held_elsewhere(layout, "daemon", "/srv/state") as process:
        real_read_owner = read_owner

        def end_it(layout: StoreLayout) -> locking.LockOwner | None:
            owner = real_read_owner(layout)
            process.kill()
            return owner

        monkeypatch.setattr(locking, "read_owner", end_it)
        lock.acquire_for_mount(60)
    lock.release()


def test_a_mount_gives_up_on_a_daemon_that_does_not_end(
    layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lazy unmount it lives until the last program lets go; the message says so."""
    pretend_mounted(monkeypatch, Path("/srv/another.store"))
    lock = StoreLock(layout, "daemon", Path("/srv/state"))
    with (
        held_elsewhere(layout, "daemon", "/srv/state") as process,
        pytest.raises(StoreLocked) as caught,
    ):
        lock.acquire_for_mount(0)
    assert f"pid {process.pid}, the daemon of a mount that is gone" in str(caught.value)
