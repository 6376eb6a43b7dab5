"""Files and folders that survive a loss of power: the order of write, sync and rename."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


def open_plain(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file of a store, made for its owner alone where `flags` say so; follow no link.

    Nor is it waited for the other end of a pipe. What root makes is the store's owner's.

    Raises:
        OSError: it cannot be opened; EIO where a symbolic link is in its place.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.EIO, "a symbolic link, which is not followed", str(path)) from None
    if flags & os.O_CREAT:
        try:
            _give_to_owner(fd, path.parent)
        except BaseException:
            os.close(fd)
            raise
    return fd


def make_folder(path: Path) -> None:
    """Make a folder of a store, unless it is there; what root makes is the store's owner's."""
    path.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _give_to_owner(fd, path.parent)
    finally:
        os.close(fd)


def _give_to_owner(fd: int, parent: Path) -> None:
    """Give what root has made to the owner of the folder it lies in, who could not use it else.

    Only what is empty and has no other name: whoever owns the folder may have put something else of
    root's in its place.
    """
    if os.geteuid() != 0:
        return
    made, folder = os.fstat(fd), os.stat(parent)
    if made.st_uid != 0 or folder.st_uid == 0:
        return
    is_empty = not os.listdir(fd) if stat.S_ISDIR(made.st_mode) else made.st_size == 0
    if is_empty and (made.st_nlink == 1 or stat.S_ISDIR(made.st_mode)):
        os.fchown(fd, folder.st_uid, folder.st_gid)


class SyncFailed(OSError):
    """The disk refused a sync: what it was to make durable may be lost, whatever it says later."""


def sync_file(fd: int) -> None:
    """Make the bytes of an open file durable. Raises SyncFailed."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise SyncFailed(*error.args) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Source: fsync(2), NOTES.

    Raises:
        SyncFailed. OSError: it cannot be opened; nothing is lost by that.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncFailed(*error.args) from error
    finally:
        os.close(fd)


def sync_filesystem(folder: Path) -> None:
    """Make everything on the filesystem that holds `folder` durable. Source: syncfs(2)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:  # what Python's own calls repeat by themselves
                raise SyncFailed(code, os.strerror(code))
    finally:
        os.close(fd)


def is_on_read_only(path: Path) -> bool:
    """Return whether the filesystem that holds a file or folder can only be read."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def remove_now(path: Path) -> None:
    """Remove a file, there or not, so that its room can be used when this returns.

    Many filesystems give room back only with their next commit, which syncing brings about; and
    some refuse to truncate when they are full.
    """
    path.unlink(missing_ok=True)
    with suppress(OSError):
        sync_filesystem(path.parent)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` in place of a file, whole or not at all: temporary file, fsync, rename, fsync.

    Raises:
        OSError: the disk refused; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        fd = open_plain(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
