"""What the random operations are driven against: a plain folder, or a state with its snapshots."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Protocol

from tests.harness.mounted_state import MountedState
from tests.harness.system_calls import renameat2
from tests.harness.trees import Tree, capture


class OpenFile(Protocol):
    """A file that was opened by its name and may have lost it since."""

    def write(self, offset: int, data: bytes) -> None:
        """Write at `offset`."""

    def truncate(self, size: int) -> None:
        """Change its length."""

    def content(self) -> bytes:
        """Return all its bytes."""

    def links(self) -> int:
        """Return how many names it has."""

    def close(self) -> None:
        """Let it go."""


class Target(Protocol):
    """A tree that can be changed and looked at; every failure is an OSError.

    It also has every operation of `ReferenceTree` that changes a tree, by the same name and with
    the same arguments: the test calls both sides by name.
    """

    def open(self, path: bytes) -> OpenFile:
        """Open a file for reading and writing."""

    def capture(self) -> Tree:
        """Return the tree as it is."""


class Keeper(Protocol):
    """What keeps snapshots of a target, and can be stopped and started again."""

    def save(self) -> str:
        """Take a snapshot and return its name."""

    def delete(self, name: str) -> None:
        """Delete a snapshot."""

    def capture(self, name: str) -> Tree:
        """Return the tree of a snapshot."""

    def remount(self) -> None:
        """Stop in the ordinary way and start again."""

    def crash(self) -> None:
        """Stop by SIGKILL and start again."""


class FolderFile:
    """A file of a folder, open for reading and writing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, offset: int, data: bytes) -> None:
        """Write at `offset`."""
        os.pwrite(self._descriptor, data, offset)

    def truncate(self, size: int) -> None:
        """Change its length."""
        os.ftruncate(self._descriptor, size)

    def content(self) -> bytes:
        """Return all its bytes, read past the end on purpose."""
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size + 1, 0)

    def links(self) -> int:
        """Return how many names it has."""
        return os.fstat(self._descriptor).st_nlink

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class FolderTarget:
    """A folder of any filesystem, changed by system calls."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def _full(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    def _opened(self, path: bytes, flags: int) -> int:
        return os.open(self._full(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    def create(self, path: bytes, mode: int) -> None:
        """Make an empty file."""
        os.close(os.open(self._full(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory."""
        os.mkdir(self._full(path), mode)

    def mkfifo(self, path: bytes, mode: int) -> None:
        """Make a named pipe."""
        os.mkfifo(self._full(path), mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link."""
        os.symlink(target, self._full(path))

    def link(self, old: bytes, new: bytes) -> None:
        """Give a file one more name."""
        os.link(self._full(old), self._full(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        """Remove a name."""
        os.unlink(self._full(path))

    def rmdir(self, path: bytes) -> None:
        """Remove a directory."""
        os.rmdir(self._full(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        """Move a name."""
        renameat2(Path(os.fsdecode(self._full(old))), Path(os.fsdecode(self._full(new))), flags)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        """Write into a file."""
        descriptor = self._opened(path, os.O_WRONLY)
        try:
            assert os.pwrite(descriptor, data, offset) == len(data)
        finally:
            os.close(descriptor)

    def append(self, path: bytes, data: bytes) -> None:
        """Write at the end of a file."""
        descriptor = self._opened(path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)

    def truncate(self, path: bytes, size: int) -> None:
        """Change the length of a file."""
        descriptor = self._opened(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def map_write(self, path: bytes, offset: int, data: bytes) -> None:
        """Store into a shared map and leave the writing back to the kernel."""
        # O_WRONLY first: a pipe opened for both directions would not fail.
        os.close(self._opened(path, os.O_WRONLY))
        descriptor = self._opened(path, os.O_RDWR)
        try:
            size = os.fstat(descriptor).st_size
            fitting = data[: max(0, size - offset)]
            if fitting:
                with mmap.mmap(descriptor, size) as view:
                    view[offset : offset + len(fitting)] = fitting
        finally:
            os.close(descriptor)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the permission bits."""
        os.chmod(self._full(path), mode)

    def setxattr(self, path: bytes, name: str, value: bytes) -> None:
        """Set an attribute."""
        os.setxattr(self._full(path), name, value)

    def removexattr(self, path: bytes, name: str) -> None:
        """Remove an attribute."""
        os.removexattr(self._full(path), name)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """Set both times of a name itself."""
        os.utime(self._full(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def open(self, path: bytes) -> FolderFile:
        """Open a file for reading and writing."""
        os.close(self._opened(path, os.O_WRONLY))
        return FolderFile(self._opened(path, os.O_RDWR))

    def capture(self) -> Tree:
        """Return the tree as it is."""
        return capture(Path(os.fsdecode(self._root)))


class MemoryKeeper:
    """Keeps trees of a plain folder in memory; it has nothing to stop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._kept: dict[str, Tree] = {}
        self._count = 0

    def save(self) -> str:
        """Remember the tree."""
        self._count += 1
        name = f"s{self._count}"
        self._kept[name] = self._target.capture()
        return name

    def delete(self, name: str) -> None:
        """Forget a tree."""
        del self._kept[name]

    def capture(self, name: str) -> Tree:
        """Return a tree remembered."""
        return self._kept[name]

    def remount(self) -> None:
        """Do nothing: a plain folder has no daemon."""

    def crash(self) -> None:
        """Do nothing: a plain folder has no daemon."""


class StateKeeper:
    """Takes snapshots of a mounted state by mkdir, and deletes them by rmdir.

    Args:
        state: the state.
        folder: the folder of the target below current/.
    """

    def __init__(self, state: MountedState, folder: Path) -> None:
        self._state = state
        self._inside = folder.relative_to(state.current)
        self._count = 0

    def save(self) -> str:
        """Take a snapshot."""
        self._count += 1
        name = f"{self._inside.name}-{self._count}"
        (self._state.snapshots / name).mkdir()
        return name

    def delete(self, name: str) -> None:
        """Delete a snapshot."""
        (self._state.snapshots / name).rmdir()

    def capture(self, name: str) -> Tree:
        """Return the tree of a snapshot."""
        return capture(self._state.snapshots / name / self._inside)

    def remount(self) -> None:
        """Unmount and mount the state."""
        self._state.remount()

    def crash(self) -> None:
        """Kill the daemon and mount the state again."""
        self._state.kill()
        self._state.mount()
