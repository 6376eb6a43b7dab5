"""The change under way, noted in memory that outlives the process: what a successor asks for it.

A process can be killed between the commit of a change and the reply to the program that asked for
it. The kernel then sends the request again, to the next process, which must not apply it twice: a
mkdir would find its own folder and say that it exists. So each change that cannot simply be
repeated is noted here before its commit, and the note is struck out before the next request is
read (`clear`). Commit and reply follow each other without a pause, so a note that a dead process
has left names the only change that may be committed and unanswered. Whether it is committed, the
rows tell (`was_applied`); the note says what to look for. The memory is a page of a file that
exists in memory only (memfd), held by the supervisor: a note costs no statement and no system call.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from statefs.ids import NOW
from statefs.metadata.connection import Queries
from statefs.metadata.entries import living_entry
from statefs.metadata.xattrs import xattr

PAGE_BYTES: Final = 4096
"""Two names and a few numbers need a quarter of it."""


class Kind(IntEnum):
    """What is done to a name; changes that may be repeated without harm have no kind."""

    MAKE = 1
    """A new name appears: create, mkdir, mknod, symlink, link."""
    REMOVE = 2
    """A name goes: unlink, rmdir."""
    MOVE = 3
    """A file gets a new name, or exchanges it with another: rename."""
    SET = 4
    """An extended attribute is set."""
    UNSET = 5
    """An extended attribute is removed."""


_HEAD: Final = struct.Struct("<BBHHQQQ")
"""Whether the note is whole, then as in `Note`: kind, lengths of both names, numbers."""
_NAMES: Final = _HEAD.size


class Note(NamedTuple):
    """A change that was about to be committed.

    Args:
        kind: what it does.
        node: the folder of the name; the inode of an extended attribute.
        name: of the entry that is made, removed or moved, or of the attribute.
        evidence: MAKE: the number from which on all numbers were unused; MOVE: the inode moved.
        new_node: MOVE: the folder of the new name.
        new_name: MOVE: the new name.
    """

    kind: Kind
    node: int
    name: bytes
    evidence: int = 0
    new_node: int = 0
    new_name: bytes = b""


class Underway:
    """The note of the change under way.

    Args:
        page: at least PAGE_BYTES of memory; None for some that ends with this process.
    """

    def __init__(self, page: mmap.mmap | bytearray | None = None) -> None:
        self._page = bytearray(PAGE_BYTES) if page is None else page

    @classmethod
    def in_file(cls, fd: int) -> Underway:
        """Return the note in a file of at least PAGE_BYTES, which every process that maps it sees.

        Raises:
            OSError: it cannot be mapped.
        """
        return cls(mmap.mmap(fd, PAGE_BYTES))

    def note(
        self,
        kind: Kind,
        node: int,
        name: bytes,
        evidence: int = 0,
        new_node: int = 0,
        new_name: bytes = b"",
    ) -> None:
        """Note a change before it is committed; the arguments are those of `Note`."""
        page = self._page
        page[0] = 0
        _HEAD.pack_into(page, 0, 0, kind, len(name), len(new_name), node, new_node, evidence)
        names = name + new_name
        page[_NAMES : _NAMES + len(names)] = names
        page[0] = 1  # the last: half a note counts for nothing

    def clear(self) -> None:
        """Strike the note out: the change is answered, or was not made."""
        self._page[0] = 0

    def read(self) -> Note | None:
        """Return the note, None where nothing is under way."""
        page = self._page
        is_whole, kind, length, new_length, node, new_node, evidence = _HEAD.unpack_from(page)
        if not is_whole:
            return None
        middle = _NAMES + length
        name, new_name = bytes(page[_NAMES:middle]), bytes(page[middle : middle + new_length])
        return Note(Kind(kind), node, name, evidence, new_node, new_name)


def was_applied(note: Note, database: Queries) -> bool:
    """Return whether a change was committed, from what the rows say.

    Nothing has been committed since, so each kind leaves a trace that was not there before it:
    names are made with new numbers; a name that goes was there, and one that is moved to led to
    another file or nowhere; an attribute that is removed was there. SET leaves none and is never
    said to be applied: to set an attribute again does no harm, once it has been allowed.
    """
    if note.kind == Kind.SET:
        return False
    if note.kind == Kind.UNSET:
        return xattr(database, note.node, note.name, NOW) is None
    if note.kind == Kind.MOVE:
        entry = living_entry(database, note.new_node, note.new_name)
        return entry is not None and entry.ino == note.evidence
    entry = living_entry(database, note.node, note.name)
    if note.kind == Kind.REMOVE:
        return entry is None
    return entry is not None and entry.cookie >= note.evidence
