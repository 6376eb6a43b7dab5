"""Writing a snapshot as a tar archive into a pipe, whose other end whoever asked has.

The bytes come straight from the object files, so holes stay holes and no attribute is hidden from
it; what happens to the archive, its name and its compression, is the asker's business.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from statefs.archive import headers
from statefs.archive.headers import Member, Range
from statefs.content.checks import is_damage
from statefs.errors import CorruptStore, PosixError, StatefsError, UsageError
from statefs.ids import TREE_ROOT
from statefs.maintenance.steps import Steps
from statefs.metadata.connection import Reader
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.changes import xattrs_of
from statefs.snapshots.documents import encode
from statefs.snapshots.namespace import METADATA_NAME
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastInode, PastTree

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

READ_BYTES: Final = 1 << 20
"""Read from an object file at a time, and the room in the pipe: few system calls, little memory."""
PAGE: Final = 500
"""Entries of a folder read at a time."""
POLL_MS: Final = 1_000
"""How often it is asked whether somebody still wants the archive, while nobody reads it."""

Piece = tuple[int, int, int]
"""Bytes [start, end) of a file, and the object that holds them."""


class PipeWriter:
    """The writing end of a pipe; closed with the `with` block.

    Args:
        path: of a FIFO whose reader has it open already.
        call: who asked.

    Raises:
        UsageError: nobody reads there.
    """

    def __init__(self, path: str, call: Call) -> None:
        self._call = call
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise UsageError(f"nobody reads the archive: {error.strerror}") from error
        if not stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise UsageError("nobody reads the archive: it can be written into a pipe only")
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        with suppress(PermissionError):  # an ordinary user may have used up the room for pipes
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, READ_BYTES)

    def __enter__(self) -> PipeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            StatefsError: the reader has gone away.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                self._wait()
            except BrokenPipeError as error:
                raise StatefsError("the export was given up: nobody reads it any more") from error

    def _wait(self) -> None:
        while not self._poll.poll(POLL_MS):
            if not self._call.is_wanted:
                raise StatefsError("the export was given up: nobody waits for it any more")


def export(
    store: Store, call: Call, snapshot: Snapshot, pipe: str, paths: Collection[bytes] | None = None
) -> Steps[dict[str, Any]]:
    """Write a snapshot into the FIFO of that name in the store's folder; return what it was.

    Args:
        paths: leave out what is not at or below one of these, or a folder above; None for nothing.

    Raises:
        UsageError: nobody reads it, or a path is not there. StatefsError: the reader went away.
            CorruptStore: a file is damaged.
    """
    if "/" in pipe and not store.is_read_only:
        raise UsageError(f"'{pipe}' is no name of a pipe")
    path = str(store.layout.root / pipe)
    try:
        with store.objects.all_being_read():
            counts = yield lambda: _write(store, call, snapshot, path, paths)
    finally:
        store.host.space_changed()  # what was deleted meanwhile can be freed now
    found: dict[str, Any] = counts._asdict()
    return {"snapshot": snapshot.name} | found


def _is_on_the_way(path: bytes, wanted: bytes) -> bool:
    """Whether a path is a wanted one, lies below it, or is a folder above it."""
    one, other = path + b"/", wanted + b"/"
    return one.startswith(other) or other.startswith(one)


class Counts(NamedTuple):
    """What an archive holds: files of any kind, bytes of content; sockets it has to leave out."""

    members: int
    bytes: int
    sockets: int


def _write(
    store: Store, call: Call, snapshot: Snapshot, path: str, paths: Collection[bytes] | None
) -> Counts:
    with PipeWriter(path, call) as pipe, store.reader() as reader:
        counts = _Archive(store, reader, snapshot, pipe, call).write(paths)
        pipe.write(headers.END)
        return counts


class _Archive:
    """One archive being written, in one thread."""

    def __init__(
        self, store: Store, reader: Reader, snapshot: Snapshot, pipe: PipeWriter, call: Call
    ) -> None:
        self._objects = store.objects
        self._checks = store.checks
        self._owner = store.layout.root.stat()
        self._reader = reader
        self._tree = PastTree(reader, snapshot.epoch)
        self._snapshot = snapshot
        self._pipe = pipe
        self._call = call
        self._first_names: dict[int, bytes] = {}
        self._members = self._bytes = self._sockets = 0

    def write(self, paths: Collection[bytes] | None) -> Counts:
        """Write metadata.json and every file, or what `paths` name, folders before what they hold.

        Raises:
            UsageError: a path is not there.
        """
        for path in paths or ():
            self._require(path)
        self._write_document()
        root = self._tree.inode(TREE_ROOT)
        self._write_member(b".", root)
        for path, inode in self._walk(paths):
            if headers.can_hold(inode.mode):
                self._write_member(path, inode)
            else:
                self._sockets += 1
        self._report()
        return Counts(self._members, self._bytes, self._sockets)

    def _require(self, path: bytes) -> None:
        try:
            self._tree.find(path)
        except PosixError:
            name = self._snapshot.name
            raise UsageError(f"'{path_text(path)}' is not in the snapshot {name}") from None

    def _walk(self, paths: Collection[bytes] | None) -> Iterator[tuple[bytes, PastInode]]:
        """Yield path and inode of everything wanted, what a folder holds directly behind it.

        GNU tar sets a folder's times when it comes to a member outside it.
        """
        pending = [(b"", self._listing(TREE_ROOT))]
        while pending:
            prefix, entries = pending[-1]
            entry = next(entries, None)
            if entry is None:
                pending.pop()
                continue
            name, inode = entry
            path = prefix + name
            if path == METADATA_NAME:
                continue  # the snapshot's own stands in its place, as in snapshots/
            if paths is not None and not any(_is_on_the_way(path, wanted) for wanted in paths):
                continue
            yield path, inode
            if inode.is_dir:
                pending.append((path + b"/", self._listing(inode.ino)))

    def _listing(self, folder: int) -> Iterator[tuple[bytes, PastInode]]:
        after = 0
        while page := self._tree.listing(folder, after, PAGE):
            after = page[-1][0]
            for _, name, inode in page:
                yield name, inode

    def _write_document(self) -> None:
        made_ns = self._snapshot.created_ns
        owner = (self._owner.st_uid, self._owner.st_gid)
        member = Member(METADATA_NAME, stat.S_IFREG | 0o444, *owner, made_ns, made_ns)
        data = encode(self._snapshot.document())
        self._pipe.write(headers.encode_document(METADATA_NAME, data, member))

    def _write_member(self, path: bytes, inode: PastInode) -> None:
        member = Member(
            path, inode.mode, inode.uid, inode.gid, inode.mtime_ns, inode.atime_ns,
            xattrs=xattrs_of(self._reader, inode, self._tree.epoch),
        )  # fmt: skip
        self._members += 1
        first = self._first_names.get(inode.ino)
        if first is not None:
            self._pipe.write(headers.encode_member(member._replace(hard_link=first, xattrs={})))
            return
        if not inode.is_dir and inode.nlink > 1:
            self._first_names[inode.ino] = path
        if inode.is_file:
            self._write_file(member, inode)
            return
        if inode.is_symlink:
            member = member._replace(target=self._tree.target(inode.ino))
        elif inode.rdev:
            member = member._replace(rdev=(os.major(inode.rdev), os.minor(inode.rdev)))
        self._pipe.write(headers.encode_member(member))

    def _write_file(self, member: Member, inode: PastInode) -> None:
        planned = self._tree.plan_read(inode.ino, 0, inode.size)
        path = member.path
        member = member._replace(size=inode.size)
        if isinstance(planned, bytes):
            self._pipe.write(headers.encode_member(member) + planned + headers.padding(inode.size))
            self._advance(inode.size)
            return
        with self._naming(path):
            ranges = headers.aligned(self._stored(planned), inode.size)
        stored_bytes = sum(end - start for start, end in ranges)
        if stored_bytes < inode.size:
            member = member._replace(data=ranges)
        self._pipe.write(headers.encode_member(member))
        for start, end in ranges:
            for place in range(start, end, READ_BYTES):
                self._copy(path, inode.ino, place, min(READ_BYTES, end - place))
        self._pipe.write(headers.padding(stored_bytes))
        self._advance(inode.size - stored_bytes)

    def _copy(self, path: bytes, ino: int, start: int, size: int) -> None:
        planned = self._tree.plan_read(ino, start, size)
        assert not isinstance(planned, bytes)
        with self._naming(path):
            self._checks.check(self._checks.unchecked(self._reader, ino, self._tree.epoch, planned))
            data = self._objects.read(planned)
        self._pipe.write(data)
        self._advance(size)

    @contextmanager
    def _naming(self, path: bytes) -> Iterator[None]:
        """Tell of what cannot be read, inside the `with` block, as damage of a file."""
        try:
            yield
        except OSError as error:
            if not is_damage(error):
                raise
            raise CorruptStore(
                f"{path_text(path)} of {self._snapshot.name} is damaged: {error.strerror};"
                " 'statefs verify --read-data' names all damage"
            ) from error

    def _stored(self, planned: list[Piece]) -> Iterator[Range]:
        """Yield the ranges of a file that are no holes, in order."""
        for start, end, number in planned:
            if number:
                yield from self._objects.data_ranges(number, start, end)

    def _advance(self, count: int) -> None:
        self._bytes += count
        if count:
            self._report()

    def _report(self) -> None:
        self._call.report(
            {
                "what": "writing the archive",
                "done": self._bytes,
                "total": max(self._bytes, self._snapshot.bytes),
                "unit": "bytes",
            }
        )
