"""Requests that a dead process had read and not answered: what was applied is not applied twice.

The kernel sends them all again, before any other, and marks them. Of each, what is left of the dead
process tells whether its change was committed (volume/underway.py; for folders made and removed in
snapshots/ and clones/, that they are there or gone). Such a request is answered here, as the dead
process would have. Each other one is sent once more, and handled as if nobody had read it.

Source: linux/fuse.h for the form of requests and replies.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection
from typing import Final, NamedTuple, Protocol

import pyfuse3

from statefs.errors import PosixError
from statefs.fuse.handshake import REQUEST_BYTES, ask_again
from statefs.ids import CLONES_ROOT, SNAPSHOTS_DIR
from statefs.metadata.connection import Queries
from statefs.volume.underway import Kind, Underway, was_applied

FORGET: Final = 2
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
SETXATTR: Final = 21
REMOVEXATTR: Final = 24
CREATE: Final = 35
INTERRUPT: Final = 36
BATCH_FORGET: Final = 42
RENAME2: Final = 45

RESENT: Final = 1 << 63
"""The bit of a request's number that says that it was sent before."""
KEEP_CACHE: Final = 2
"""The bit of `open_flags` in fuse_open_out that pyfuse3 sets by itself."""
_HEADER: Final = struct.Struct("<IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, extension length, padding."""
_REPLY: Final = struct.Struct("<IiQ")
"""fuse_out_header: len, error, unique."""
_ENTRY: Final = struct.Struct("<QQQQIIQQQQQQIIIIIIIIII")
"""fuse_entry_out and the fuse_attr in it."""
_OPENED: Final = struct.Struct("<QII")
"""fuse_open_out: fh, open_flags, backing_id."""
_NODE: Final = struct.Struct("<Q")
_FLAGS: Final = struct.Struct("<I")
_XATTR: Final = struct.Struct("<II")
"""fuse_setxattr_in as libfuse has it: size, flags."""
_FORGETS: Final = struct.Struct("<II")
"""fuse_batch_forget_in: count, dummy; then a node and a count for each."""
_NAME_AT: Final = {
    SYMLINK: 0,
    MKNOD: 16,
    MKDIR: 8,
    UNLINK: 0,
    RMDIR: 0,
    RENAME: 8,
    LINK: 8,
    SETXATTR: 8,
    REMOVEXATTR: 0,
    CREATE: 16,
    RENAME2: 16,
}
"""Opcode -> where in the body of a request its name begins, which ends with a zero byte."""
_KINDS: Final = {
    SYMLINK: Kind.MAKE,
    MKNOD: Kind.MAKE,
    MKDIR: Kind.MAKE,
    LINK: Kind.MAKE,
    CREATE: Kind.MAKE,
    UNLINK: Kind.REMOVE,
    RMDIR: Kind.REMOVE,
    RENAME: Kind.MOVE,
    RENAME2: Kind.MOVE,
    SETXATTR: Kind.SET,
    REMOVEXATTR: Kind.UNSET,
}
_NS: Final = 1_000_000_000
_32_BITS: Final = (1 << 32) - 1
_64_BITS: Final = (1 << 64) - 1


class Tree(Protocol):
    """What the answers consist of (fuse/operations.py). Methods raise PosixError."""

    def found(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what the kernel is told of a name; `st_ino` is 0 where there is none."""

    def opened(self, parent: int, name: bytes, flags: int) -> int:
        """Count an open descriptor of a file and return its handle."""

    def dropped(self, node: int) -> None:
        """Note that the kernel dropped an inode."""

    def set_attribute(self, node: int, name: bytes, value: bytes, uid: int, gid: int) -> None:
        """Set an extended attribute."""


class Request(NamedTuple):
    """A request as the kernel sends it."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    thread: int
    body: bytes

    @property
    def name(self) -> bytes:
        """The first name in it."""
        return self.names()[0]

    def names(self) -> list[bytes]:
        """Return what zero bytes end, from its first name on."""
        return self.body[_NAME_AT[self.opcode] :].split(b"\0")


def parse(data: bytes) -> Request:
    """Return the request that was read from a connection."""
    _, opcode, unique, node, uid, gid, thread, _, _ = _HEADER.unpack_from(data)
    return Request(opcode, unique, node, uid, gid, thread, data[_HEADER.size :])


class Resent:
    """The requests that a successor finds.

    Args:
        fuse_fd: the connection; non-blocking. The kernel has been asked to send them again.
        underway: what the dead process noted.
        database: recovered.
        tree: gives the answers.
        dead_threads: of the dead process, those that the kernel has not let go of because they
            themselves wait for an answer.
    """

    def __init__(
        self,
        fuse_fd: int,
        underway: Underway,
        database: Queries,
        tree: Tree,
        dead_threads: Collection[int],
    ) -> None:
        self._fuse_fd = fuse_fd
        self._note = underway.read()
        self._underway = underway
        self._database = database
        self._tree = tree
        self._dead_threads = dead_threads

    def settle(self) -> int:
        """Answer what was applied already; have the rest sent once more.

        Returns:
            How many requests were answered.
        """
        answered, is_left = 0, False
        while (request := self._read()) is not None:
            if request.opcode in (FORGET, BATCH_FORGET):
                self._forget(request)
                continue
            if request.opcode == INTERRUPT:
                continue  # no reply is expected, and nothing here takes long
            if not request.unique & RESENT:
                is_left = True
                break
            reply = self._reply_to(request)
            if reply is None:
                is_left = True
            else:
                self._send(request, *reply)
                answered += 1
        self._underway.clear()
        if is_left:
            ask_again(self._fuse_fd)
        return answered

    def _read(self) -> Request | None:
        try:
            return parse(os.read(self._fuse_fd, REQUEST_BYTES))
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None  # unmounted meanwhile, as the session loop will see
            raise

    def _send(self, request: Request, error: int, body: bytes) -> None:
        head = _REPLY.pack(_REPLY.size + len(body), -error, request.unique)
        try:
            os.write(self._fuse_fd, head + body)
        except FileNotFoundError:
            pass  # nobody waits for it any more

    def _forget(self, request: Request) -> None:
        if request.opcode == FORGET:
            self._tree.dropped(request.node)
            return
        count, _ = _FORGETS.unpack_from(request.body)
        for place in range(count):
            (node,) = _NODE.unpack_from(request.body, _FORGETS.size + 16 * place)
            self._tree.dropped(node)

    def _reply_to(self, request: Request) -> tuple[int, bytes] | None:
        """Return error and body of the reply to an applied request, None for any other."""
        if request.thread in self._dead_threads:
            return errno.EINTR, b""
        if request.opcode not in _KINDS:
            return None
        try:
            return self._known_reply(request)
        except PosixError as error:
            return error.errno, b""

    def _known_reply(self, request: Request) -> tuple[int, bytes] | None:
        opcode, node, name = request.opcode, request.node, request.name
        if node in (SNAPSHOTS_DIR, CLONES_ROOT):
            return self._reply_outside(request)
        if not self._is_noted(request):
            return None
        if opcode == SETXATTR:
            size, _ = _XATTR.unpack_from(request.body)
            start = _XATTR.size + len(name) + 1
            value = request.body[start : start + size]
            self._tree.set_attribute(node, name, value, request.uid, request.gid)
            return 0, b""
        assert self._note is not None
        if not was_applied(self._note, self._database):
            return None
        if _KINDS[opcode] != Kind.MAKE:
            return 0, b""
        body = entry_reply(self._tree.found(node, name))
        if opcode == CREATE:
            (flags,) = _FLAGS.unpack_from(request.body)
            body += _OPENED.pack(self._tree.opened(node, name, flags), KEEP_CACHE, 0)
        return 0, body

    def _is_noted(self, request: Request) -> bool:
        note = self._note
        if note is None or note.kind != _KINDS[request.opcode]:
            return False
        if (note.node, note.name) != (request.node, request.name):
            return False
        if note.kind != Kind.MOVE:
            return True
        (new_node,) = _NODE.unpack_from(request.body)
        return (note.new_node, note.new_name) == (new_node, request.names()[1])

    def _reply_outside(self, request: Request) -> tuple[int, bytes] | None:
        """Return the reply for snapshots/ and clones/, where the kernel looks before it asks.

        It looks a name up anew each time, and asks for a folder to be made or removed only where
        there is none, or one: what is there, or gone, was made or removed by this request.
        """
        found = self._tree.found(request.node, request.name)
        if request.opcode == MKDIR and found.st_ino:
            return 0, entry_reply(found)
        if request.opcode == RMDIR and not found.st_ino:
            return 0, b""
        return None


def entry_reply(entry: pyfuse3.EntryAttributes) -> bytes:
    """Return a fuse_entry_out, as libfuse makes it of what a handler returns."""
    times = (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns)
    seconds = [time_ns // _NS & _64_BITS for time_ns in times]
    rests = [time_ns % _NS for time_ns in times]
    kept = [int(entry.entry_timeout), int(entry.attr_timeout)]
    kept_ns = [int((seconds % 1) * _NS) for seconds in (entry.entry_timeout, entry.attr_timeout)]
    numbers = (entry.st_ino, entry.st_size, entry.st_blocks, *seconds, *rests)
    owner = (entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid)
    rest = (entry.st_rdev & _32_BITS, entry.st_blksize, 0)
    return _ENTRY.pack(entry.st_ino, entry.generation, *kept, *kept_ns, *numbers, *owner, *rest)
