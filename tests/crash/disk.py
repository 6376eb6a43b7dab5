"""A disk that is watched, that fails when told to, and whose power can be cut.

`WatchedDisk` sees every change that the engine makes to the files of one store: those of SQLite
through a VFS, all others through the functions of `os` that the engine calls. Before each change it
asks `on_change`, which may raise; of a read or write only as many bytes happen as `taken` says. It
keeps what was changed and what was synced, so that `after_power_cut` can return a disk as it may be
after a loss of power: everything synced is there, of everything else any part (`Loss` names the
parts that are tried at each moment). Each sync is kept with the place in the engine that asked for
it, and can be taken for one that was left out.

Harsher than most disks: a name is lost unless its folder was synced, whatever else was; names of
one folder are lost independently. Not torn: a rename, and a sector of 512 bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import apsw

from statefs import durable
from statefs.content import objects
from statefs.metadata import connection
from tests.crash.callers import place_of_call
from tests.crash.sqlite_log import visible

SECTOR_BYTES: Final = 512
BLOCK_BYTES: Final = 4096
VFS_NAME: Final = "statefs-watched"
UNWATCHED: Final = ("reserve", "reserve.new")
"""Room without content; recovery takes it again."""


@dataclass(frozen=True)
class Change:
    """One change of the disk.

    Args:
        kind: "write", "truncate", "punch", "sync" of a file; "name", "unname", "rename" and
            "sync names" of a folder; "sync all".
        file: number of the file.
        folder: path of the folder, relative to the store.
        name: in the folder.
        old_name: of a rename, within the same folder.
        start: first byte.
        end: behind the last byte; of a truncate the new size.
        data: written.
        place: of a sync, where in the engine it was asked for (tests/crash/callers.py).
    """

    kind: str
    file: int = 0
    folder: str = ""
    name: str = ""
    old_name: str = ""
    start: int = 0
    end: int = 0
    data: bytes = b""
    place: str = ""

    @property
    def is_of_names(self) -> bool:
        """Whether it changes which names a folder has."""
        return self.kind in ("name", "unname", "rename")


class Loss(Enum):
    """What a power cut takes of what was not synced."""

    NOTHING = "nothing"
    EVERYTHING = "everything"
    BYTES = "bytes"
    """Of files; names are there, as on a disk that writes its journal first."""
    NAMES = "names"
    """Files made, renamed and removed; bytes are there."""
    OTHERS = "others"
    """Everything but SQLite's log, which the kernel has written back by itself."""
    SOME = "some"
    SECTORS = "sectors"
    """Of the last write, behind one at a multiple of 512 bytes."""
    BLOCKS = "blocks"
    """The same at a multiple of 4 KiB."""


Kept = tuple[tuple[int, int], ...]
"""Changes that are on a disk, by their places among all, each with the end of what is there."""


@dataclass
class Image:
    """Files and names of a store: contents by number, and numbers by folder and name."""

    contents: dict[int, bytes | bytearray] = field(default_factory=dict)
    names: dict[str, dict[str, int]] = field(default_factory=dict)

    def copy(self) -> Image:
        """Return an image that changes on its own; what both have is copied when it changes."""
        return Image(
            {number: bytes(data) for number, data in self.contents.items()},
            {folder: dict(names) for folder, names in self.names.items()},
        )

    def _content(self, number: int) -> bytearray:
        data = self.contents.get(number, b"")
        if not isinstance(data, bytearray):
            data = self.contents[number] = bytearray(data)
        return data

    def apply(self, change: Change) -> None:
        """Make a change; syncs change nothing."""
        if change.is_of_names:
            names = self.names.setdefault(change.folder, {})
            if change.kind == "name":
                names[change.name] = change.file
            else:
                names.pop(change.old_name or change.name, None)
            if change.kind == "rename":
                names[change.name] = change.file
        elif change.kind == "write":
            data = self._content(change.file)
            data.extend(bytes(max(0, change.start - len(data))))
            data[change.start : change.end] = change.data
        elif change.kind == "truncate":
            data = self._content(change.file)
            del data[change.end :]
            data.extend(bytes(change.end - len(data)))
        elif change.kind == "punch":
            data = self._content(change.file)
            end = min(change.end, len(data))
            data[change.start : end] = bytes(max(0, end - change.start))

    def digest(self) -> bytes:
        """Return what differs for images that differ, of a database in what SQLite finds in it."""
        found = hashlib.blake2b(digest_size=16)
        for folder, names in sorted(self.names.items()):
            for name, number in sorted(names.items()):
                if name.endswith("-wal"):
                    continue
                content = bytes(self.contents.get(number, b""))
                log = self.file(folder, f"{name}-wal")
                if log:
                    content = visible(content, log)
                found.update(f"{folder}/{name}\0".encode() + _digest_of(content))
        return found.digest()

    def file(self, folder: str, name: str) -> bytes | None:
        """Return the bytes of a file, None where there is none."""
        number = self.names.get(folder, {}).get(name)
        return None if number is None else bytes(self.contents.get(number, b""))

    def write_to(self, root: Path) -> None:
        """Make the files, and folders where they are missing."""
        for folder, names in self.names.items():
            if names:
                (root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, number in names.items():
                (root / folder / name).write_bytes(self.contents.get(number, b""))


class WatchedDisk:
    """What happens to the files of one store.

    Args:
        root: of the store, which is closed and synced.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers: dict[int, int] = {}
        self._last_number = 0
        self.start = Image()
        self.changes: list[Change] = []
        self.on_change: Callable[[Change], None] = lambda _: None
        self.taken: Callable[[int], int] = lambda size: size
        for folder, _, names in os.walk(root):
            inside = os.path.relpath(folder, root)
            for name in set(names) - {*UNWATCHED}:
                path = Path(folder, name)
                if stat.S_ISREG(path.lstat().st_mode):
                    number = self._new_number(path.stat().st_ino)
                    self.start.names.setdefault(inside, {})[name] = number
                    self.start.contents[number] = path.read_bytes()

    def _new_number(self, inode: int) -> int:
        self._last_number += 1
        self._numbers[inode] = self._last_number
        return self._last_number

    def move_to(self, root: Path) -> None:
        """Go on with a copy of the files, all of them: their process was killed."""
        self._root = root
        self._numbers = {}
        everything = self.after_loss(len(self.changes), Loss.NOTHING, random.Random())
        assert everything is not None
        for folder, names in everything.names.items():
            for name, number in names.items():
                self._numbers[os.stat(root / folder / name).st_ino] = number

    def _place(self, path: str | os.PathLike[str]) -> tuple[str, str] | None:
        """Return folder and name of a path in the store, None for one elsewhere."""
        full = os.path.abspath(os.fspath(path))
        if not full.startswith(f"{self._root}/") or os.path.basename(full) in UNWATCHED:
            return None
        folder, name = os.path.split(os.path.relpath(full, self._root))
        return folder or ".", name

    def note(self, change: Change) -> None:
        """Ask whether a change may be made; it is made right after."""
        if change.kind.startswith("sync"):
            change = replace(change, place=place_of_call())
        self.on_change(change)
        self.changes.append(change)

    def note_file(
        self,
        kind: str,
        path: str | os.PathLike[str],
        start: int = 0,
        data: bytes = b"",
        end: int = 0,
    ) -> None:
        """Note a change of a file, if it is watched."""
        number = self._numbers.get(os.stat(path).st_ino)
        if number is not None:
            self.note(Change(kind, number, start=start, end=end or start + len(data), data=data))

    def has(self, fd: int) -> bool:
        """Return whether a descriptor leads to a watched file."""
        return os.fstat(fd).st_ino in self._numbers

    def note_descriptor(
        self, kind: str, fd: int, start: int = 0, data: bytes = b"", end: int = 0
    ) -> None:
        """Note a change of an open file, if it is watched."""
        number = self._numbers.get(os.fstat(fd).st_ino)
        if number is not None:
            self.note(Change(kind, number, start=start, end=end or start + len(data), data=data))

    def note_sync(self, fd: int) -> None:
        """Note a sync of a file or folder."""
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            self.note_descriptor("sync", fd)
            return
        folder = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self._root)
        if not folder.startswith(".."):
            self.note(Change("sync names", folder=folder))

    @contextmanager
    def making(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Note a new file, which the block makes."""
        place = self._place(path)
        if place is None:
            yield
            return
        self.on_change(Change("name", 0, *place))
        yield
        number = self._new_number(os.stat(path).st_ino)
        self.changes.append(Change("name", number, *place))

    def note_removal(self, path: str | os.PathLike[str]) -> None:
        """Note that a name goes."""
        place = self._place(path)
        if place is not None and os.path.lexists(path):
            self.note(Change("unname", 0, *place))

    def note_rename(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
        """Note that a name changes within its folder."""
        place, old_place = self._place(new), self._place(old)
        if place is not None and old_place is not None:
            assert place[0] == old_place[0], "a rename between folders is not one of the engine's"
            number = self._numbers[os.stat(old).st_ino]
            self.note(Change("rename", number, *place, old_name=old_place[1]))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within the block; databases opened there are closed in it."""
        vfs = _Vfs(self, connection.VFS)
        real = _Calls(self)
        with ExitStack() as stack:
            stack.enter_context(patch.object(connection, "VFS", VFS_NAME))
            for name in _Calls.NAMES:
                stack.enter_context(patch.object(os, name, getattr(real, name)))
            stack.enter_context(patch.object(objects, "_libc", real))
            stack.enter_context(patch.object(durable, "_libc", real))
            yield
        vfs.unregister()

    def after_power_cut(self, length: int, rng: random.Random) -> Image:
        """Return the disk as it may be when the power is cut after `length` changes."""
        return self.image(self._some_kept(length, rng))

    def after_loss(
        self, length: int, loss: Loss, rng: random.Random, left_out: str = ""
    ) -> Image | None:
        """Return the disk after a certain loss, None where there is none. Args: as of `kept`."""
        kept = self.kept(length, loss, rng, left_out)
        return None if kept is None else self.image(kept)

    def kept(self, length: int, loss: Loss, rng: random.Random, left_out: str = "") -> Kept | None:
        """Return what is left of `length` changes after a certain loss, None where there is none.

        Args:
            rng: decides what `Loss.SOME` takes, and where the last write is torn.
            left_out: the place of syncs that are taken for not made.
        """
        if loss in (Loss.SECTORS, Loss.BLOCKS):
            unit = SECTOR_BYTES if loss is Loss.SECTORS else BLOCK_BYTES
            return self._kept_with_torn_end(length, unit, rng)
        if loss is Loss.SOME:
            return self._some_kept(length, rng)
        takes_names = loss in (Loss.EVERYTHING, Loss.NAMES, Loss.OTHERS)
        takes_bytes = loss in (Loss.EVERYTHING, Loss.BYTES, Loss.OTHERS)
        logs = self._logs(length) if loss is Loss.OTHERS else set()
        return tuple(
            (index, change.end)
            for index, (change, is_safe) in enumerate(self._with_safety(length, left_out))
            if is_safe
            or change.file in logs
            or not (takes_names if change.is_of_names else takes_bytes)
        )

    def _logs(self, length: int) -> set[int]:
        """Return the numbers of SQLite's logs."""
        made = [(each.name, each.file) for each in self.changes[:length] if each.kind == "name"]
        known = [pair for names in self.start.names.values() for pair in names.items()]
        return {number for name, number in (*known, *made) if name.endswith("-wal")}

    def _some_kept(self, length: int, rng: random.Random) -> Kept:
        kept_share = rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        names_share = rng.choice((0.0, 0.5, 1.0))
        kept = []
        for index, (change, is_safe) in enumerate(self._with_safety(length)):
            share = names_share if change.is_of_names else kept_share
            if is_safe or rng.random() < share:
                kept.append((index, change.end if is_safe else _torn_end(change, rng)))
        return tuple(kept)

    def _kept_with_torn_end(self, length: int, unit: int, rng: random.Random) -> Kept | None:
        last = self.changes[length - 1] if length else Change("sync")
        firsts = range(last.start // unit * unit + unit, last.end, unit)
        if last.kind != "write" or not firsts:
            return None
        whole = ((index, change.end) for index, change in enumerate(self.changes[: length - 1]))
        return (*whole, (length - 1, rng.choice(firsts)))

    def image(self, kept: Kept) -> Image:
        """Return the disk with some changes, and no others."""
        image = self.start.copy()
        for index, end in kept:
            change = self.changes[index]
            image.apply(change if end == change.end else _cut_off(change, end))
        return image

    def without_syncs(self, kept: Kept) -> Kept:
        """Return the changes that make a difference to an image."""
        return tuple(each for each in kept if not self.changes[each[0]].kind.startswith("sync"))

    def _with_safety(self, length: int, left_out: str = "") -> Iterator[tuple[Change, bool]]:
        """Yield each change, and whether a sync that came later keeps it."""
        changes: Sequence[Change] = self.changes[:length]
        synced: dict[int | str, int] = {}
        for index, change in enumerate(changes):
            if left_out and change.place == left_out:
                continue
            if change.kind == "sync":
                synced[change.file] = index
            elif change.kind == "sync names":
                synced[change.folder] = index
            elif change.kind == "sync all":
                synced[""] = index
        everything = synced.get("", -1)
        for index, change in enumerate(changes):
            key: int | str = change.folder if change.is_of_names else change.file
            yield change, index < max(synced.get(key, -1), everything)


def _torn_end(change: Change, rng: random.Random) -> int:
    """Return the end of a change, or of a write now and then that of its first sectors."""
    if change.kind != "write" or rng.random() < 0.9 or change.end - change.start <= SECTOR_BYTES:
        return change.end
    sectors = rng.randrange(change.start // SECTOR_BYTES + 1, change.end // SECTOR_BYTES + 1)
    return max(change.start, min(sectors * SECTOR_BYTES, change.end))


def _cut_off(change: Change, end: int) -> Change:
    """Return a write that went no further than `end`."""
    return Change(
        "write", change.file, start=change.start, end=end,
        data=change.data[: end - change.start],
    )  # fmt: skip


class _Calls:
    """The functions of `os` and libc that the engine changes files with, watched."""

    NAMES: Final = (
        "open", "pwrite", "pread", "write", "ftruncate", "fsync", "fdatasync", "rename", "unlink",
    )  # fmt: skip

    def __init__(self, disk: WatchedDisk) -> None:
        self._disk = disk
        self._real = {name: getattr(os, name) for name in self.NAMES}
        self._libc = objects._libc
        self._syncfs = durable._libc.syncfs

    def open(self, path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        """Open a file; a new name and O_TRUNC are changes."""
        if not flags & os.O_CREAT or not isinstance(path, str | os.PathLike):
            return int(self._real["open"](path, flags, mode, **named))
        if os.path.lexists(path):
            if flags & os.O_TRUNC:
                self._disk.note_file("truncate", path)
            return int(self._real["open"](path, flags, mode, **named))
        with self._disk.making(path):
            return int(self._real["open"](path, flags, mode, **named))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        """Write, or a part."""
        data = bytes(data)[: self._disk.taken(len(data))]
        self._disk.note_descriptor("write", fd, offset, data)
        return int(self._real["pwrite"](fd, data, offset))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read, or a part."""
        return bytes(self._real["pread"](fd, self._disk.taken(size), offset))

    def write(self, fd: int, data: Any) -> int:
        """Write at the descriptor's position, or a part."""
        if self._disk.has(fd):
            data = bytes(data)[: self._disk.taken(len(data))]
            position = os.lseek(fd, 0, os.SEEK_CUR)
            self._disk.note_descriptor("write", fd, position, bytes(data))
        return int(self._real["write"](fd, data))

    def ftruncate(self, fd: int, size: int) -> None:
        """Change a length."""
        self._disk.note_descriptor("truncate", fd, end=size)
        self._real["ftruncate"](fd, size)

    def fsync(self, fd: int) -> None:
        """Sync a file, or the names of a folder."""
        self._disk.note_sync(fd)
        self._real["fsync"](fd)

    def fdatasync(self, fd: int) -> None:
        """Sync a file."""
        self._disk.note_sync(fd)
        self._real["fdatasync"](fd)

    def rename(self, old: Any, new: Any, **named: Any) -> None:
        """Rename within a folder."""
        self._disk.note_rename(old, new)
        self._real["rename"](old, new, **named)

    def unlink(self, path: Any, **named: Any) -> None:
        """Remove a name."""
        self._disk.note_removal(path)
        self._real["unlink"](path, **named)

    def fallocate(self, fd: int, mode: int, start: int, size: int) -> int:
        """Punch a hole, which is all that the engine asks of fallocate."""
        self._disk.note_descriptor("punch", fd, start, end=start + size)
        return int(self._libc.fallocate(fd, mode, start, size))

    def syncfs(self, _: int) -> int:
        """Sync everything; the host's own disk need not."""
        self._disk.note(Change("sync all"))
        return 0


@lru_cache(maxsize=4096)
def _digest_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


@contextmanager
def _as_sqlite_error(code: int = 0) -> Iterator[None]:
    """Turn what a disk answers into what SQLite's own VFS makes of it, with its own code."""
    try:
        yield
    except OSError as error:
        kind = apsw.FullError if error.errno == errno.ENOSPC else apsw.IOError
        answer = kind(str(error))
        if code:
            setattr(answer, "extendedresult", code)  # noqa: B010 - apsw's types do not know it
        raise answer from error


class _Vfs(apsw.VFS):
    """SQLite's files, watched."""

    def __init__(self, disk: WatchedDisk, base: str) -> None:
        self._disk = disk
        self._base = base
        super().__init__(VFS_NAME, base)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        """Open a file; a new name is a change."""
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None or os.path.lexists(path):
            return _VfsFile(self._disk, self._base, name, flags)
        with _as_sqlite_error(), self._disk.making(path):
            return _VfsFile(self._disk, self._base, name, flags)

    def xDelete(self, name: str, sync_folder: bool) -> None:  # noqa: N802 - apsw's name
        """Remove a name."""
        self._disk.note_removal(name)
        super().xDelete(name, sync_folder)


class _VfsFile(apsw.VFSFile):
    """One of them."""

    def __init__(self, disk: WatchedDisk, base: str, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else name
        super().__init__(base, name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - apsw's name
        """Write."""
        with _as_sqlite_error():
            self._disk.note_file("write", self._path, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802 - apsw's name
        """Change the length."""
        with _as_sqlite_error():
            self._disk.note_file("truncate", self._path, end=size)
        super().xTruncate(size)

    def xSync(self, _: int) -> None:  # noqa: N802 - apsw's name
        """Sync, on this disk only: the host's own need not."""
        with _as_sqlite_error(apsw.SQLITE_IOERR_FSYNC):
            self._disk.note_file("sync", self._path)
