"""Putting a new tree in place of another one by renames: all of them, or none.

The new files are made in a hidden folder, what they take the place of goes there, and it is gone
with all it holds when that is done.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from statefs.archive.extraction import (
    FOLDER_FLAGS,
    PRIVATE_FOLDER,
    attributes_of,
    opened_folder,
    set_attributes,
)
from statefs.layout import RUNTIME

STAGING: Final = ".statefs-import-"
"""What the name of the hidden folder begins with."""
NEW: Final = b"new"
OLD: Final = b"old"
"""Inside it: what comes, and what it takes the place of."""
KEPT: Final = (b"files", b"volumes")
"""Folders whose content is moved, not they themselves."""
DURABILITY: Final = "user.statefs.durability"
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Installation:
    """Renames that take effect together: `undo` takes back those that were made."""

    def __init__(self, root: int, staging: int, new: int, folders: ExitStack) -> None:
        self._root = root
        self._staging = staging
        self._new = new
        self._folders = folders
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put everything back, the last change first."""
        while self._undo:
            self._undo.pop()()

    def place(self, into: bytes) -> None:
        """Give the new root the name `into`, where nothing or an empty folder is."""
        folder, _, name = into.rpartition(b"/")
        parent = self._opened(folder or b".", self._root)
        if _is_there(parent, name):
            old = self._made(OLD, self._staging)
            self._move(parent, name, old, name)
        self._move(self._staging, NEW, parent, name)

    def move_old_away(self) -> None:
        """Move what is in current/ out of sight."""
        old = self._made(OLD, self._staging)
        for name in names_in(self._root):
            if name in KEPT and is_folder(self._root, name):
                here, there = self._opened(name, self._root), self._made(name, old)
                self._change(here, None)
                for below in names_in(here):
                    self._move(here, below, there, below)
            elif name != RUNTIME:
                self._move(self._root, name, old, name)

    def move_in(self, has_root: bool) -> None:
        """Move the new files to where they belong, with the attributes of the folders kept."""
        root = attributes_of(self._new)  # now: what is moved out of a folder changes its times
        for name in names_in(self._new):
            if name in KEPT and is_folder(self._new, name) and is_folder(self._root, name):
                source, target = self._opened(name, self._new), self._opened(name, self._root)
                wanted = attributes_of(source)
                for below in names_in(source):
                    self._move(source, below, target, below)
                self._change(target, wanted)
            else:
                self._move(self._new, name, self._root, name)
        if has_root:
            self._change(self._root, root)

    def _opened(self, path: bytes, folder: int) -> int:
        return self._folders.enter_context(opened_folder(path, folder))

    def _made(self, name: bytes, folder: int) -> int:
        os.mkdir(name, PRIVATE_FOLDER, dir_fd=folder)
        return self._opened(name, folder)

    def _move(self, source: int, name: bytes, target: int, new_name: bytes) -> None:
        move(source, name, target, new_name)
        self._undo.append(lambda: move(target, new_name, source, name))

    def _change(self, folder: int, wanted: Any) -> None:
        """Give a folder other attributes; None only has `undo` bring back those it has."""
        before = attributes_of(folder)
        self._undo.append(lambda: set_attributes(folder, before))
        if wanted is not None:
            set_attributes(folder, wanted)


def move(
    source: int | None, name: bytes | Path, target: int | None, new_name: bytes | Path
) -> None:
    """Move a file or folder, also one that an ordinary user has taken away the rights of.

    Args:
        source, target: folders that the names are relative to; None for paths.
    """
    mode = os.lstat(name, dir_fd=source).st_mode
    is_closed = os.geteuid() != 0 and stat.S_ISDIR(mode) and not mode & stat.S_IWUSR
    if is_closed:  # to move a folder is to write its ".."
        os.chmod(name, stat.S_IMODE(mode) | stat.S_IWUSR, dir_fd=source)
    place = (source, name)
    try:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        place = (target, new_name)
    finally:
        if is_closed:
            os.chmod(place[1], stat.S_IMODE(mode), dir_fd=place[0])


@contextmanager
def staging_folder(current: Path, root: int) -> Iterator[int]:
    """Give a new hidden folder of current/ that is gone with all it holds after the block.

    Those that killed imports have left are removed, too.
    """
    for name in os.listdir(root):
        if name.startswith(STAGING) and is_folder(root, os.fsencode(name)):
            _remove_abandoned(current / name)
    before = attributes_of(root)
    path = current / f"{STAGING}{secrets.token_hex(8)}"
    path.mkdir(PRIVATE_FOLDER)
    try:
        fd = os.open(path, FOLDER_FLAGS)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _be_plain(fd)
            yield fd
        finally:
            os.close(fd)
    except BaseException:
        with uninterrupted():
            remove_tree(path)
            os.utime(root, ns=(before[0].st_atime_ns, before[0].st_mtime_ns))
        raise
    after = os.fstat(root)
    remove_tree(path)
    os.utime(root, ns=(after.st_atime_ns, after.st_mtime_ns))


def _be_plain(fd: int) -> None:
    """Take away what a folder has from the one above it, and sync at the end only."""
    for name in os.listxattr(fd):
        os.removexattr(fd, name)
    os.fchmod(fd, PRIVATE_FOLDER)
    os.setxattr(fd, DURABILITY, b"fsync")


def _remove_abandoned(path: Path) -> None:
    """Remove the folder of an import that is not running any more."""
    fd = os.open(path, FOLDER_FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds, whatever its modes say.

    Raises:
        OSError: the disk refused.
    """
    if os.geteuid() != 0:  # whom modes bind
        path.chmod(PRIVATE_FOLDER)
        for above, names, _ in os.walk(path):
            for name in names:
                folder = Path(above, name)
                if not folder.is_symlink():
                    folder.chmod(PRIVATE_FOLDER)
    shutil.rmtree(path)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and its like until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def names_in(folder: int) -> list[bytes]:
    """Return the names in a folder, but for those of imports."""
    names = (os.fsencode(name) for name in os.listdir(folder))
    return [name for name in names if not name.startswith(STAGING.encode())]


def is_folder(folder: int, name: bytes) -> bool:
    """Return whether a name in a folder is a folder's, not that of a link to one."""
    return stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)


def _is_there(folder: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
