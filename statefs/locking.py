"""The lock that makes sure one process at a time has a store open, and who that is.

The lock is flock(2) on the file `lock` of the store: the kernel lets go of it when its process
ends, however it ends. What the file says about the owner is for messages only; it decides nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Self

from statefs.durable import open_plain, remove_now
from statefs.errors import AlreadyMounted, NoSuchStore, ReadOnlyStore, StoreLocked, typed
from statefs.layout import StoreLayout
from statefs.mounts import find_mount

Role = Literal["daemon", "command"]

POLL_SECONDS: Final = 0.02
GRACE_SECONDS: Final = 0.1
"""Every attempt lasts at least this long: whoever reads the owner holds the lock for an instant."""
OWNER_ATTEMPTS: Final = 3
"""On a full disk: room that was given up comes back with the disk's next commits only."""
COMMAND_WAIT_SECONDS: Final = 10.0
"""How long `with StoreLock(...)` waits for another command, or for a daemon that is ending."""
MOUNT_WAIT_SECONDS: Final = 10.0
"""How long a mount waits for the daemon of a mount that is gone already."""


@dataclass(frozen=True)
class LockOwner:
    """Who has, or had, a store open.

    Args:
        pid: of the process.
        start_time: of the process, in clock ticks since boot; tells it from a later one.
        boot_id: of the boot in which it ran.
        role: a daemon serves a mount; a command is over soon.
        mount_point: of a daemon; None before it has mounted.
        alive: whether the lock is held now.
    """

    pid: int
    start_time: int
    boot_id: str
    role: str
    mount_point: str | None = None
    alive: bool = False


class StoreLock:
    """The right to open one store, held from acquire() to release() or the end of the process.

    Args:
        layout: of the store.
        role: what this process is.
        mount_point: where a daemon mounts, or will mount.
    """

    def __init__(
        self, layout: StoreLayout, role: Role = "command", mount_point: Path | None = None
    ) -> None:
        self._layout = layout
        self._role: Role = role
        self._mount_point = mount_point
        self._fd: int | None = None
        self._is_shared = False

    @classmethod
    def held(cls, layout: StoreLayout, fd: int) -> Self:
        """Return the lock that an earlier program of this process has taken, as `fd`."""
        lock = cls(layout)
        lock._fd = fd
        return lock

    def acquire(self, timeout_seconds: float = 0.0) -> None:
        """Take the lock, waiting for its owner at most so long.

        On a read-only filesystem commands share it, and nobody is named as its owner.

        Raises:
            StoreLocked: another process holds it; the message names it.
            NoSuchStore: there is no folder to lock in.
            ReadOnlyStore: a daemon cannot serve what it cannot write to.
        """
        fd, kind = _open_lock_file(self._layout)
        if kind == fcntl.LOCK_SH and self._role == "daemon":
            os.close(fd)
            raise ReadOnlyStore(
                f"{self._layout.root} lies on a read-only filesystem: copy it to another disk "
                f"('{typed('cp', '-a', self._layout.root, 'DIR')}') and mount the copy"
            )
        give_up = time.monotonic() + max(timeout_seconds, GRACE_SECONDS)
        try:
            while not _try_lock(fd, kind):
                if time.monotonic() >= give_up:
                    raise StoreLocked(_locked_text(self._layout))
                time.sleep(POLL_SECONDS)
            if kind == fcntl.LOCK_EX:
                self._write_owner(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._is_shared = fd, kind == fcntl.LOCK_SH

    def _write_owner(self, fd: int) -> None:
        """Say who holds the lock; on a full disk with the room kept back (content/reserve.py)."""
        for _ in range(OWNER_ATTEMPTS):
            try:
                _write_owner(fd, self._role, self._mount_point)
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            remove_now(self._layout.reserve)
        _write_owner(fd, self._role, self._mount_point)

    def acquire_for_mount(self, timeout_seconds: float = MOUNT_WAIT_SECONDS) -> None:
        """Take the lock as acquire() does, but wait only for an owner that will soon be gone.

        That is a command, or a daemon whose mount is gone: umount(8) returns before it has ended.

        Raises:
            AlreadyMounted: a daemon shows the store somewhere.
            StoreLocked: another process holds the lock.
        """
        give_up = time.monotonic() + timeout_seconds
        while True:
            try:
                return self.acquire()
            except StoreLocked:
                owner = read_owner(self._layout)
                if owner is not None and _is_mounted(self._layout, owner):
                    raise AlreadyMounted(
                        f"{self._layout.root} is mounted at {owner.mount_point} by pid "
                        f"{owner.pid}; '{typed('statefs', 'umount', owner.mount_point)}' ends that"
                    ) from None
                if time.monotonic() < give_up:
                    continue
                if owner is not None and owner.role == "daemon":
                    raise StoreLocked(
                        f"{self._layout.root} is locked by pid {owner.pid}, the daemon of a mount "
                        "that is gone: end the programs that still have files open there"
                    ) from None
                raise

    def fileno(self) -> int:
        """Return the descriptor of the lock, which is held: whoever has a copy holds it, too."""
        assert self._fd is not None
        return self._fd

    def release(self) -> None:
        """Let go of the lock; harmless when it is not held."""
        if self._fd is None:
            return
        if not self._is_shared:
            os.ftruncate(self._fd, 0)
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # for whoever has a copy, too
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Self:
        self.acquire(COMMAND_WAIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def read_owner(layout: StoreLayout) -> LockOwner | None:
    """Return who has the store open (`alive`), or had it when it crashed; None if nobody did."""
    try:
        fd = open_plain(layout.lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        owner, is_free = _parsed_owner(fd), _try_lock(fd, fcntl.LOCK_SH)
        give_up = time.monotonic() + GRACE_SECONDS
        while not is_free and (owner is None or not _is_running(owner)):
            # Somebody has just taken the lock and has yet to write who it is.
            if time.monotonic() >= give_up:
                break
            time.sleep(POLL_SECONDS / 10)
            owner, is_free = _parsed_owner(fd), _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
    if owner is None:
        return None if is_free else LockOwner(0, 0, "", "command", alive=True)
    return LockOwner(**(asdict(owner) | {"alive": not is_free}))


def _open_lock_file(layout: StoreLayout) -> tuple[int, int]:
    """Return the lock file, or what stands for it, and the kind of lock to take on it."""
    try:
        return open_plain(layout.lock, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchStore(f"there is no store at {layout.root}: name it with --store DIR") from None
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    # Who can write there by another way, past a read-only bind mount, has made the file.
    path = layout.lock if layout.lock.exists() else layout.root
    return open_plain(path, os.O_RDONLY), fcntl.LOCK_SH


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_owner(fd: int, role: Role, mount_point: Path | None) -> None:
    pid = os.getpid()
    content = {
        "pid": pid,
        "start_time": _start_time(pid),
        "boot_id": boot_id(),
        "role": role,
        "mount_point": None if mount_point is None else str(mount_point),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(content).encode() + b"\n", 0)


def _parsed_owner(fd: int) -> LockOwner | None:
    try:
        content = json.loads(os.pread(fd, 65536, 0))
        return LockOwner(
            pid=int(content["pid"]),
            start_time=int(content["start_time"]),
            boot_id=str(content["boot_id"]),
            role=str(content["role"]),
            mount_point=content["mount_point"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def _is_running(owner: LockOwner) -> bool:
    return owner.boot_id == boot_id() and _start_time(owner.pid) == owner.start_time


def _start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the program's name in brackets and may hold anything, brackets too.
    return int(text.rpartition(")")[2].split()[19])


def boot_id() -> str:
    """Return what tells this run of the machine from every other. Source: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _is_mounted(layout: StoreLayout, owner: LockOwner) -> bool:
    if owner.role != "daemon" or owner.mount_point is None:
        return False
    mount = find_mount(Path(owner.mount_point))
    return mount is not None and mount.source == str(layout.root)


def _locked_text(layout: StoreLayout) -> str:
    owner = read_owner(layout)
    if owner is None or owner.pid == 0:
        return f"{layout.root} is locked by another process: try again when it has ended"
    where = f" for {owner.mount_point}" if owner.mount_point else ""
    return (
        f"{layout.root} is locked by pid {owner.pid} (a {owner.role}{where}): "
        "try again when it has ended"
    )
