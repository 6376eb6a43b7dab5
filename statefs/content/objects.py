"""Object files: reading, writing, syncing and freeing them. Knows no names and no epochs.

Descriptors are shared by all who use an object and closed least recently used first, because a
program may have more files open than the daemon may have descriptors. Methods may be called from
several threads.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from statefs.durable import open_plain, sync_file, sync_folder
from statefs.ids import LIVING, ObjectId
from statefs.layout import StoreLayout

MAX_DESCRIPTORS: Final = 256
"""Open object files kept at hand; below the usual limit of 1024 with room for everything else."""
DISK_BLOCK_BYTES: Final = 512
"""The unit of st_blocks (stat(2))."""
FOLDERS: Final = 256
"""objects/00 to objects/ff."""
FOLDER_NAMES: Final = frozenset(f"{number:02x}" for number in range(FOLDERS))
_NAME: Final = re.compile(r"[1-9a-f][0-9a-f]{0,15}")
"""What `StoreLayout.object_path` calls an object."""

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def blocks_of(size: int) -> int:
    """Return how many blocks hold `size` bytes."""
    return -(-size // DISK_BLOCK_BYTES)


class _Descriptor:
    """An open object file, how many calls use it now, and whether the last one must close it."""

    __slots__ = ("fd", "is_removed", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.is_removed = False


class _Unsynced:
    """How many writes an object has had, how many are durable, and how many bytes are not."""

    __slots__ = ("bytes", "lock", "synced", "writes")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.writes = 0
        self.synced = 0
        self.bytes = 0


ORIGIN_ATTRIBUTE: Final = "user.statefs.origin"
"""The extended attribute of an object file that says what it was made for."""
ORIGIN_PATH_MAX: Final = 200
"""Bytes of a path kept there, the last ones: with the rest it fits into the host's inode."""


class Origin(NamedTuple):
    """What an object file was made for: a file, in an epoch, and its path below current/ then."""

    ino: int
    epoch: int
    path: bytes


def read_origin(path: Path) -> Origin | None:
    """Return what an object file says of itself, None where it says nothing."""
    try:
        ino, epoch, name = os.getxattr(path, ORIGIN_ATTRIBUTE).split(b" ", 2)
        return Origin(int(ino), int(epoch), name)
    except (OSError, ValueError):
        return None


def object_number(path: Path) -> int | None:
    """Return the object that a file in objects/ stands for, None when it stands for none."""
    try:
        number = int(path.name, 16)
    except ValueError:
        return None
    is_named_so = f"{number:x}" == path.name and f"{number & 0xFF:02x}" == path.parent.name
    return number if is_named_so and number <= LIVING else None


Piece = tuple[int, int, int]
"""Bytes [start, end) of a file, and the object that holds them at the same offsets."""


class ObjectFiles:
    """The folder objects/ of one store."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._readers: dict[int, int] = {}
        self._readers_of_all = 0
        self._unsynced: dict[int, _Unsynced] = {}
        self._unsynced_names: set[int] = set()
        self._shrunk_folders: set[Path] = set()
        self._has_xattrs = True

    @contextmanager
    def _descriptor(self, object_id: int, create: bool = False) -> Iterator[int]:
        entry = self._acquire(object_id, create)
        try:
            yield entry.fd
        finally:
            with self._lock:
                entry.users -= 1
                if entry.is_removed and entry.users == 0:
                    os.close(entry.fd)

    def _acquire(self, object_id: int, create: bool) -> _Descriptor:
        with self._lock:
            entry = self._open.get(object_id)
            if entry is not None:
                self._open.move_to_end(object_id)
            else:
                entry = _Descriptor(self._open_file(object_id, create))
                self._open[object_id] = entry
                self._close_surplus()
            entry.users += 1
            return entry

    def _open_file(self, object_id: int, create: bool) -> int:
        path = self._layout.object_path(ObjectId(object_id))
        if create:
            return open_plain(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            return open_plain(path, os.O_RDWR)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return open_plain(path, os.O_RDONLY)

    def _close_surplus(self) -> None:
        surplus = len(self._open) - MAX_DESCRIPTORS
        if surplus <= 0:
            return
        idle = [key for key, entry in self._open.items() if entry.users == 0][:surplus]
        for key in idle:
            os.close(self._open.pop(key).fd)

    def create(self, object_id: ObjectId, origin: Origin | None = None) -> None:
        """Make an empty object file; its name is durable after `sync`.

        Args:
            origin: kept with it, where the host can, for the day when the database is lost.

        Raises:
            FileExistsError. OSError: the disk refused; there is no such file.
        """
        try:
            with self._descriptor(object_id, create=True) as fd:
                if origin is not None:
                    self._note_origin(fd, origin)
                self._unsynced_names.add(object_id)
                self._unsynced[object_id] = _Unsynced()
        except FileExistsError:
            raise
        except BaseException:
            self.remove(object_id)
            raise

    def _note_origin(self, fd: int, origin: Origin) -> None:
        if not self._has_xattrs:
            return
        value = b"%d %d " % origin[:2] + origin.path[-ORIGIN_PATH_MAX:]
        try:
            os.setxattr(fd, ORIGIN_ATTRIBUTE, value)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._has_xattrs = False
            elif error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.EPERM):
                raise

    def write(self, object_id: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`.

        Raises:
            OSError: the disk refused; a part may have been written.
        """
        try:
            with self._descriptor(object_id) as fd:
                written = os.pwrite(fd, data, offset)
                while written < len(data):
                    written += os.pwrite(fd, memoryview(data)[written:], offset + written)
        finally:
            self._count_write(object_id, len(data))

    def read(self, pieces: Sequence[Piece]) -> bytes:
        """Return the bytes of pieces of a file; may wait for the disk.

        Args:
            pieces: (start, end, object) in order; object 0 stands for zeros.

        Raises:
            OSError: an object file is missing, or too short (EIO); or the disk refused.
        """
        return b"".join(self._read_piece(*piece) for piece in pieces)

    def _read_piece(self, start: int, end: int, object_id: int) -> bytes:
        if not object_id:
            return bytes(end - start)
        size = end - start
        with self._descriptor(object_id) as fd:
            data = os.pread(fd, size, start)
            while len(data) < size:
                more = os.pread(fd, size - len(data), start + len(data))
                if not more:  # zeros in its place would be damage served as good data
                    raise _too_short(object_id, start + len(data))
                data += more
            return data

    def read_cached(self, pieces: Sequence[Piece]) -> bytes | None:
        """Return the bytes of pieces if the host has them all in memory, else None at once."""
        parts = []
        for start, end, object_id in pieces:
            part = self._cached(start, end, object_id) if object_id else bytes(end - start)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _cached(self, start: int, end: int, object_id: int) -> bytes | None:
        """Return bytes without waiting for the disk. Source: preadv2(2), RWF_NOWAIT."""
        buffer = bytearray(end - start)
        with self._descriptor(object_id) as fd:
            try:
                count = os.preadv(fd, [buffer], start, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                    return None
                raise
        return bytes(buffer) if count == end - start else None

    @contextmanager
    def being_read(self, pieces: Sequence[Piece]) -> Iterator[None]:
        """Keep `is_being_read` true for the objects of pieces, from before a thread reads them."""
        for _, _, object_id in pieces:
            self._readers[object_id] = self._readers.get(object_id, 0) + 1
        try:
            yield
        finally:
            for _, _, object_id in pieces:
                self._readers[object_id] -= 1
                if not self._readers[object_id]:
                    del self._readers[object_id]

    def is_being_read(self, object_id: int) -> bool:
        """Whether a thread reads the object: none of its bytes may be freed now."""
        return self._readers_of_all > 0 or object_id in self._readers

    @contextmanager
    def all_being_read(self) -> Iterator[None]:
        """Keep `is_being_read` true for every object: a thread reads a whole tree."""
        self._readers_of_all += 1
        try:
            yield
        finally:
            self._readers_of_all -= 1

    def data_ranges(self, object_id: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of [start, end) that are no holes of the object file, in order.

        Raises:
            OSError: the object file is missing, or too short (EIO): what was cut off is no hole.

        Source: lseek(2), SEEK_DATA; a host without it says that all is data.
        """
        position = start
        while position < end:
            with self._descriptor(object_id) as fd:
                size = os.fstat(fd).st_size
                if size < end:
                    raise _too_short(object_id, size)
                try:
                    position = os.lseek(fd, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # there is none behind
                        raise
                    return
                until = min(os.lseek(fd, position, os.SEEK_HOLE), end)
            if position < until:
                yield position, until
            position = until

    def truncate(self, object_id: int, size: int) -> None:
        """Make the object file `size` bytes long."""
        try:
            with self._descriptor(object_id) as fd:
                os.ftruncate(fd, size)
        finally:
            self._count_write(object_id)

    def _count_write(self, object_id: int, size: int = 0) -> None:
        """Note a write that has been made: counted before it, a sync beside it might pass it by."""
        with self._lock:
            state = self._unsynced.get(object_id)
            if state is None:
                state = self._unsynced[object_id] = _Unsynced()
            state.writes += 1
            state.bytes += size

    def unsynced_bytes(self) -> int:
        """Return how many bytes have been written that are not durable yet."""
        with self._lock:
            return sum(state.bytes for state in self._unsynced.values())

    def is_synced(self, object_id: int) -> bool:
        """Whether every write to the object that has returned is durable."""
        return object_id not in self._unsynced

    def stat(self, object_id: int) -> os.stat_result:
        """Return the object file's attributes. Raises FileNotFoundError when it is missing."""
        with self._descriptor(object_id) as fd:
            return os.fstat(fd)

    def is_there(self, object_id: int) -> bool:
        """Whether the object file exists."""
        return self._layout.object_path(ObjectId(object_id)).exists()

    def blocks(self, object_id: int) -> int:
        """Return the space the object file takes, in blocks; none when it is lost."""
        try:
            return self.stat(object_id).st_blocks
        except FileNotFoundError:
            return 0

    def sync(self, object_id: int) -> None:
        """Make the object's bytes, and its name when it is new, durable. May be slow.

        Callers who wait for the same object share one sync.

        Raises:
            SyncFailed: the bytes may be lost even if a later call succeeds. OSError: the file
                cannot be opened.
        """
        state = self._unsynced.get(object_id)
        if state is None:
            return
        wanted = state.writes
        with state.lock:
            if state.synced >= wanted > 0:
                return
            reached, size = state.writes, state.bytes
            with self._descriptor(object_id) as fd:
                sync_file(fd)
            if object_id in self._unsynced_names:
                sync_folder(self._layout.object_path(ObjectId(object_id)).parent)
                self._unsynced_names.discard(object_id)
            state.synced = reached
            with self._lock:
                state.bytes -= size
                if state.writes == reached:
                    self._unsynced.pop(object_id, None)

    def punch(self, object_id: int, start: int, end: int) -> None:
        """Give the space of [start, end) back to the host; it reads as zeros afterwards.

        Where the host cannot punch holes (EOPNOTSUPP) the space stays taken.
        Source: fallocate(2), FALLOC_FL_PUNCH_HOLE.
        """
        with self._descriptor(object_id) as fd:
            mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
            while _libc.fallocate(fd, mode, start, end - start) != 0:
                code = ctypes.get_errno()
                if code == errno.EOPNOTSUPP:
                    return
                if code != errno.EINTR:  # what Python's own calls repeat by themselves
                    raise OSError(code, os.strerror(code))

    def remove(self, object_id: int) -> None:
        """Delete an object file; one that is gone already is fine."""
        with self._lock:
            entry = self._open.pop(object_id, None)
            if entry is not None and entry.users == 0:
                os.close(entry.fd)
            elif entry is not None:
                entry.is_removed = True
            self._unsynced.pop(object_id, None)
            self._unsynced_names.discard(object_id)
        path = self._layout.object_path(ObjectId(object_id))
        path.unlink(missing_ok=True)
        self._shrunk_folders.add(path.parent)

    def sync_removals(self) -> None:
        """Make removals durable: before a clean close, after which nobody looks for strays."""
        while self._shrunk_folders:
            sync_folder(self._shrunk_folders.pop())

    def present(self) -> set[int]:
        """Return the numbers of all object files, by listing the folders.

        What has another name than theirs is not statefs's.
        """
        objects = str(self._layout.objects)
        return {
            int(name, 16)
            for folder in FOLDER_NAMES
            for name in os.listdir(f"{objects}/{folder}")
            if _NAME.fullmatch(name)
        }

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            for entry in self._open.values():
                os.close(entry.fd)
            self._open.clear()


def _too_short(object_id: int, size: int) -> OSError:
    return OSError(errno.EIO, f"object {object_id:x} ends at byte {size}")
