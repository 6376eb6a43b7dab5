"""The system calls on the files of one store: each is counted, and any may be made to fail.

Python's calls are intercepted in `os`, those that the engine makes through ctypes in its modules,
SQLite's beneath it, in the table of calls that it keeps for tests: what it does about one that was
interrupted, or did a part, is its own. Its syncs are not in that table; they are watched where they
are asked for, in a VFS that changes nothing else.

A call that a signal interrupts is repeated by Python itself (PEP 475), so that nobody sees it.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import apsw

from statefs import durable
from statefs.content import objects
from statefs.metadata import connection

VFS_NAME: Final = "statefs-failing"
SHORT: Final = "short"
"""An answer: a part of what was asked for, half of it."""
FULL: Final = ("ENOSPC", "EDQUOT")
_WRITING: Final = ("EIO", *FULL)
ANSWERS: Final[dict[str, tuple[str, ...]]] = {
    "open": ("EIO", "EINTR"),
    "create": (*_WRITING, "EINTR"),
    "read": ("EIO", "EINTR", SHORT),
    "write": (*_WRITING, "EINTR", SHORT),
    "truncate": (*_WRITING, "EINTR"),
    "punch": (*_WRITING, "EINTR"),
    "allocate": (*_WRITING, "EINTR"),
    "sync": _WRITING,
    "sync all": (*_WRITING, "EINTR"),
    "rename": _WRITING,
    "unlink": _WRITING,
    "set attribute": _WRITING,
    "status": ("EIO",),
    "list": ("EIO",),
}
"""What a disk may answer, by the kind of call: what its manual names, and btrfs gives."""
SQLITE_SYNC: Final = "sync of SQLite"
"""The kind of call that the VFS watches; it may fail with EIO."""
SYNCS: Final = ("sync", "sync all", SQLITE_SYNC)
UNCHANGING: Final = ("open", "read", "status", "list", *SYNCS)
BLOCK_BYTES: Final = 512
"""The unit of st_blocks."""
FILE_BYTES: Final = 4096
"""What a new file, or an attribute, takes at least."""


@dataclass(frozen=True)
class Call:
    """One system call.

    Args:
        kind: a key of ANSWERS.
        path: relative to the store.
        is_repeated: by Python when it was interrupted.
        room: bytes that it takes of the disk, less than none where it gives some back.
    """

    kind: str
    path: str
    is_repeated: bool
    room: int = 0

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of what a disk may answer: of errnos, or SHORT."""
        found = ANSWERS[self.kind]
        return tuple(name for name in found if name != "EINTR" or not self.is_repeated)


class Calls:
    """What the process asks of the files of one store, while they are watched.

    `answer` is asked about each call and returns the name of an answer, "" to let it be made; while
    it is None, the disk is well.
    `changed` has the paths of files that were changed, made or removed, relative to the store.

    Args:
        root: of the store, which is closed.
    """

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._lstat = os.lstat
        self.answer: Callable[[Call], str] | None = None
        self.changed: set[str] = set()

    def place(self, target: Any) -> str | None:
        """Return where a file lies in the store, by its path or descriptor; None elsewhere."""
        if isinstance(target, int):
            path = os.readlink(f"/proc/self/fd/{target}")
        else:
            path = os.path.abspath(os.fsdecode(target))
        if not f"{path}/".startswith(self._root):
            return None
        return f"{path}/".removeprefix(self._root).rstrip("/") or "."

    def ask(
        self, kind: str, target: Any, *, is_repeated: bool = False, end: int = 0, size: int = 0
    ) -> str:
        """Return the answer to a call.

        Args:
            target: path or descriptor of the file.
            end: behind the last byte that is written.
            size: how many are.
        """
        is_change = kind not in UNCHANGING
        path = self.place(target) if is_change or self.answer else None
        if path is None:
            return ""
        if is_change:
            self.changed.add(path)
        if self.answer is None:
            return ""
        return self.answer(Call(kind, path, is_repeated, self._room(kind, path, end, size)))

    def _room(self, kind: str, path: str, end: int, size: int) -> int:
        if kind in ("create", "set attribute"):
            return FILE_BYTES
        if kind not in ("write", "allocate", "unlink") or not self.is_there(self._root + path):
            return 0
        allocated = self._lstat(self._root + path).st_blocks * BLOCK_BYTES
        return -allocated if kind == "unlink" else min(max(0, end - allocated), size)

    def is_there(self, path: Any) -> bool:
        """Whether a name exists; not counted."""
        try:
            self._lstat(path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within the block; databases opened there are closed in it."""
        vfs = _Vfs(self, connection.VFS)
        real = _Python(self)
        libc = _Libc(self)
        with ExitStack() as stack:
            for name, replacement in real.replacements():
                stack.enter_context(patch.object(os, name, replacement))
            stack.enter_context(patch.object(io, "open", real.open_buffered))
            stack.enter_context(patch.object(objects, "_libc", libc))
            stack.enter_context(patch.object(durable, "_libc", libc))
            stack.enter_context(_beneath_sqlite(self, vfs))
            yield
        vfs.unregister()


def with_sqlite_syncs() -> AbstractContextManager[object]:
    """Let SQLite's syncs be among the calls: of databases opened and closed within the block.

    Its other refusals are told in another way than without, as apsw raises those of a VFS itself.
    """
    return patch.object(connection, "VFS", VFS_NAME)


def _refusal(answer: str) -> OSError:
    code = getattr(errno, answer)
    return OSError(code, os.strerror(code))


def _half(size: int) -> int:
    return max(1, size // 2)


class _Python:
    """The functions of `os` with which the engine touches files."""

    PLAIN: Final = {
        "fsync": ("sync", True),
        "fdatasync": ("sync", True),
        "ftruncate": ("truncate", True),
        "posix_fallocate": ("allocate", True),
        "fstat": ("status", False),
        "stat": ("status", False),
        "lstat": ("status", False),
        "scandir": ("list", False),
        "listdir": ("list", False),
        "rename": ("rename", False),
        "unlink": ("unlink", False),
        "setxattr": ("set attribute", False),
    }
    """Name -> kind of call, and whether Python repeats it."""
    PARTIAL: Final = ("pread", "preadv", "pwrite", "write")

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        names = ("open", *self.PLAIN, *self.PARTIAL)
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names}
        self._open_buffered = io.open

    def replacements(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yield names in `os` and what stands in for them."""
        for name, (kind, is_repeated) in self.PLAIN.items():
            yield name, self._plain(name, kind, is_repeated)
        for name in ("open", *self.PARTIAL):
            yield name, getattr(self, name)

    def _ask(self, kind: str, target: Any, *, is_repeated: bool = True, **sizes: int) -> str:
        """Return SHORT or nothing. Raises OSError: any other answer."""
        answer = self._calls.ask(kind, target, is_repeated=is_repeated, **sizes)
        if answer not in ("", SHORT):
            raise _refusal(answer)
        return answer

    def _plain(self, name: str, kind: str, is_repeated: bool) -> Callable[..., Any]:
        real = self._real[name]

        def call(target: Any = ".", *arguments: Any, **named: Any) -> Any:
            sizes = {}
            if kind == "allocate":
                sizes = {"end": sum(arguments), "size": arguments[1]}
            self._ask(kind, target, is_repeated=is_repeated, **sizes)
            if name == "rename":
                self._calls.changed.add(self._calls.place(arguments[0]) or "")
            return real(target, *arguments, **named)

        return call

    def open(self, path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        """Open a file, or make it."""
        is_new = flags & os.O_CREAT and not self._calls.is_there(path)
        self._ask("create" if is_new else "open", path)
        return int(self._real["open"](path, flags, mode, **named))

    def open_buffered(self, path: Any, *arguments: Any, **named: Any) -> Any:
        """Open a file to read it, as pathlib does."""
        self._ask("open", path)
        return self._open_buffered(path, *arguments, **named)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read, or half of it."""
        answer = self._ask("read", fd)
        return bytes(self._real["pread"](fd, _half(size) if answer else size, offset))

    def preadv(self, fd: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        """Read what is at hand into one buffer, or half of it."""
        (buffer,) = buffers
        if self._ask("read", fd):
            buffer = memoryview(buffer)[: _half(len(buffer))]
        return int(self._real["preadv"](fd, [buffer], offset, flags))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        """Write, or half of it."""
        answer = self._ask("write", fd, end=offset + len(data), size=len(data))
        return int(self._real["pwrite"](fd, data[: _half(len(data))] if answer else data, offset))

    def write(self, fd: int, data: Any) -> int:
        """Write at the descriptor's position, or half of it."""
        answer = ""
        if stat.S_ISREG(self._real["fstat"](fd).st_mode):
            end = os.lseek(fd, 0, os.SEEK_CUR) + len(data)
            answer = self._ask("write", fd, end=end, size=len(data))
        return int(self._real["write"](fd, data[: _half(len(data))] if answer else data))


class _Libc:
    """The functions of libc that the engine calls by itself; nobody repeats them for it."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._fallocate = objects._libc.fallocate
        self._syncfs = durable._libc.syncfs

    def fallocate(self, fd: int, mode: int, start: int, size: int) -> int:
        """Punch a hole, which is all that the engine asks of fallocate."""
        return self._asked("punch", fd) or int(self._fallocate(fd, mode, start, size))

    def syncfs(self, fd: int) -> int:
        """Sync everything."""
        return self._asked("sync all", fd) or int(self._syncfs(fd))

    def _asked(self, kind: str, fd: int) -> int:
        answer = self._calls.ask(kind, fd)
        if not answer:
            return 0
        ctypes.set_errno(getattr(errno, answer))
        return -1


_FD: Final = ctypes.c_int
_SIZE: Final = ctypes.c_size_t
_BUFFER: Final = ctypes.c_void_p
_OFFSET: Final = ctypes.c_int64
_SQLITE: Final[dict[str, tuple[str, Any]]] = {
    "open": ("open", (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)),
    "read": ("read", (ctypes.c_ssize_t, _FD, _BUFFER, _SIZE)),
    "pread": ("read", (ctypes.c_ssize_t, _FD, _BUFFER, _SIZE, _OFFSET)),
    "pread64": ("read", (ctypes.c_ssize_t, _FD, _BUFFER, _SIZE, _OFFSET)),
    "write": ("write", (ctypes.c_ssize_t, _FD, _BUFFER, _SIZE)),
    "pwrite": ("write", (ctypes.c_ssize_t, _FD, _BUFFER, _SIZE, _OFFSET)),
    "pwrite64": ("write", (ctypes.c_ssize_t, _FD, _BUFFER, _SIZE, _OFFSET)),
    "ftruncate": ("truncate", (ctypes.c_int, _FD, _OFFSET)),
    "fstat": ("status", (ctypes.c_int, _FD, ctypes.c_void_p)),
    "unlink": ("unlink", (ctypes.c_int, ctypes.c_char_p)),
}
"""Of SQLite's table: kind of call, the type of its result and those of its arguments.

Source: https://sqlite.org/c3ref/vfs.html, xSetSystemCall; the table is in os_unix.c.
"""


@contextmanager
def _beneath_sqlite(calls: Calls, vfs: apsw.VFS) -> Iterator[None]:
    """Put calls that ask first into SQLite's table, which all its connections use."""
    real: dict[str, int] = {}
    kept: list[Any] = []  # nobody else holds what the table points to
    for name, (kind, types) in _SQLITE.items():
        pointer = vfs.xGetSystemCall(name)
        if pointer:
            real[name] = pointer
            prototype = ctypes.CFUNCTYPE(*types, use_errno=True)
            function = prototype(_asking(calls, kind, prototype(pointer)))
            kept.append(function)
            vfs.xSetSystemCall(name, _address(function))
    try:
        yield
    finally:
        for name, pointer in real.items():
            vfs.xSetSystemCall(name, pointer)
        kept.clear()


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _asking(calls: Calls, kind: str, real: Callable[..., int]) -> Callable[..., int]:
    def call(target: Any, *arguments: Any) -> int:
        asked, sizes = kind, {}
        if kind == "open" and arguments[0] & os.O_CREAT and not calls.is_there(target):
            asked = "create"
        elif kind == "write":
            size = arguments[1]
            start = arguments[2] if len(arguments) > 2 else os.lseek(target, 0, os.SEEK_CUR)
            sizes = {"end": start + size, "size": size}
        answer = calls.ask(asked, target, **sizes)
        if answer == SHORT:
            buffer, size, *offset = arguments
            return real(target, buffer, _half(size), *offset)
        if answer:
            ctypes.set_errno(getattr(errno, answer))
            return -1
        return real(target, *arguments)

    return call


class _Vfs(apsw.VFS):
    """SQLite's files, whose syncs can fail."""

    def __init__(self, calls: Calls, base: str) -> None:
        self._calls = calls
        self._base = base
        super().__init__(VFS_NAME, base)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        """Open a file."""
        return _VfsFile(self._calls, self._base, name, flags)


class _VfsFile(apsw.VFSFile):
    """One of them."""

    def __init__(self, calls: Calls, base: str, name: Any, flags: list[int]) -> None:
        self._calls = calls
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else name
        super().__init__(base, name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        """Sync."""
        if self._calls.ask(SQLITE_SYNC, self._path):
            error = apsw.IOError("a sync has failed")
            code = apsw.SQLITE_IOERR_FSYNC
            setattr(error, "extendedresult", code)  # noqa: B010 - apsw's types do not know it
            raise error
        super().xSync(flags)
