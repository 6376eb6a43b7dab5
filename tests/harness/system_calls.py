"""System calls that Python's `os` module does not offer. Each raises OSError as `os` does."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100

_libc = ctypes.CDLL(None, use_errno=True)
_DIRENT_HEADER: Final = struct.Struct("<QqHB")


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class RawEntry(NamedTuple):
    """One record of getdents64(2): the inode, the cookie of what follows, the kind and the name."""

    ino: int
    next_offset: int
    kind: int
    name: bytes


def _checked(result: int, path: bytes | None = None) -> int:
    """Return `result`, or raise the OSError that errno names when it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def errno_of(call: Callable[[], object]) -> int:
    """Return the errno with which `call` fails, 0 when it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def renameat2(old: os.PathLike[str], new: os.PathLike[str], flags: int) -> None:
    """Give a file another name; `flags` are those of the system call of this name."""
    source, target = os.fsencode(old), os.fsencode(new)
    _checked(
        _libc.renameat2(AT_FDCWD, source, AT_FDCWD, target, ctypes.c_uint(flags)),
        source,
    )


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Ask the filesystem itself for space or a hole; glibc emulates nothing here."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def utimensat(
    path: os.PathLike[str],
    atime: tuple[int, int],
    mtime: tuple[int, int],
    *,
    follow_symlinks: bool = True,
) -> None:
    """Set times as (seconds, nanoseconds), where UTIME_NOW and UTIME_OMIT may be nanoseconds."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    flags = 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def getdents(fd: int, size_bytes: int) -> list[RawEntry]:
    """Return the next entries of an open directory that fit a buffer of `size_bytes`.

    Returns:
        The entries in the kernel's order; an empty list at the end of the directory.

    Source: getdents64(2), struct linux_dirent64.
    """
    buffer = ctypes.create_string_buffer(size_bytes)
    got = _checked(_libc.getdents64(fd, buffer, ctypes.c_size_t(size_bytes)))
    return list(_entries(buffer.raw[:got]))


def _entries(data: bytes) -> Iterator[RawEntry]:
    at = 0
    while at < len(data):
        ino, next_offset, length, kind = _DIRENT_HEADER.unpack_from(data, at)
        name = data[at + _DIRENT_HEADER.size : at + length].split(b"\0", 1)[0]
        yield RawEntry(ino, next_offset, kind, name)
        at += length


def sync_filesystem(fd: int) -> None:
    """Write back the whole filesystem that holds `fd`. Source: syncfs(2)."""
    _checked(_libc.syncfs(fd))
