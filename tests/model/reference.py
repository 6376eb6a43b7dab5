"""A directory tree in memory that does what POSIX says, small enough to be read as a definition.

It knows names, inodes, bytes and attributes; no permissions (its user may do everything it does),
no epochs: a snapshot of it is the value that `capture` returned. Times that an operation sets to
"now" are None: they may be anything.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.harness.system_calls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.harness.trees import Entry

LETTERS: Final = {
    stat.S_IFREG: "-",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
}
LINK_MODE: Final = 0o777
"""What Linux shows for every symbolic link."""


@dataclass(eq=False)
class Node:
    """One inode.

    Args:
        kind: S_IFREG, S_IFDIR, S_IFLNK or S_IFIFO.
        mode: the twelve permission bits.
        content: of a file its bytes, of a symbolic link its target.
        children: of a directory its names.
        mtime_ns: None where it is whatever the clock said.
    """

    kind: int
    mode: int
    uid: int
    gid: int
    content: bytearray = field(default_factory=bytearray)
    children: dict[bytes, Node] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    mtime_ns: int | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it holds names."""
        return self.kind == stat.S_IFDIR

    def must_be_file(self) -> None:
        """Raise what open(2) for writing, without following and waiting, raises for this kind."""
        codes = {stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP, stat.S_IFIFO: errno.ENXIO}
        if self.kind in codes:
            raise failure(codes[self.kind])

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; a gap before it is zeros."""
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(data)] = data
        self.mtime_ns = None

    def truncate(self, size: int) -> None:
        """Cut the file, or lengthen it with zeros."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        self.mtime_ns = None


def failure(code: int) -> OSError:
    """Return the exception of a system call that failed."""
    return OSError(code, os.strerror(code))


class ReferenceTree:
    """A tree with the operations that a test drives.

    Paths are relative bytes, b"." is the root; symbolic links are never followed in a path, since
    the test makes only links that lead nowhere.

    Args:
        uid: the owner of what is made.
        gid: the group of what is made, but below a setgid directory.
        umask: taken from the modes of what is made.
    """

    def __init__(self, root_mode: int, uid: int, gid: int, umask: int) -> None:
        self._uid, self._gid, self._umask = uid, gid, umask
        self._root = Node(stat.S_IFDIR, root_mode, uid, gid)

    def directories(self) -> list[bytes]:
        """Return the paths of all directories, sorted."""
        return [path for path, node in self._walk() if node.is_directory]

    def node(self, path: bytes) -> Node:
        """Return the inode at `path`, the last name not followed. Raises ENOENT, ENOTDIR."""
        if path == b".":
            return self._root
        folder, name = self._place(path)
        if name not in folder.children:
            raise failure(errno.ENOENT)
        return folder.children[name]

    def _place(self, path: bytes) -> tuple[Node, bytes]:
        """Return the directory that holds, or would hold, the last name of a path."""
        *parents, name = path.split(b"/")
        node = self._root
        for parent in parents:
            if not node.is_directory:
                raise failure(errno.ENOTDIR)
            if parent not in node.children:
                raise failure(errno.ENOENT)
            node = node.children[parent]
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        return node, name

    def create(self, path: bytes, mode: int) -> None:
        """Make an empty file that must not exist: open with O_CREAT and O_EXCL."""
        self._add(path, Node(stat.S_IFREG, mode & ~self._umask, self._uid, self._gid))

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory."""
        self._add(path, Node(stat.S_IFDIR, mode & ~self._umask, self._uid, self._gid))

    def mkfifo(self, path: bytes, mode: int) -> None:
        """Make a named pipe."""
        self._add(path, Node(stat.S_IFIFO, mode & ~self._umask, self._uid, self._gid))

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link."""
        self._add(
            path, Node(stat.S_IFLNK, LINK_MODE, self._uid, self._gid, content=bytearray(target))
        )

    def _add(self, path: bytes, made: Node) -> None:
        folder, name = self._place(path)
        if name in folder.children:
            raise failure(errno.EEXIST)
        if folder.mode & stat.S_ISGID:
            made.gid = folder.gid
            if made.is_directory:
                made.mode |= stat.S_ISGID
        folder.children[name] = made
        folder.mtime_ns = None

    def link(self, old: bytes, new: bytes) -> None:
        """Give a file one more name."""
        node = self.node(old)
        folder, name = self._place(new)
        if name in folder.children:
            raise failure(errno.EEXIST)
        if node.is_directory:
            raise failure(errno.EPERM)
        folder.children[name] = node
        folder.mtime_ns = None

    def unlink(self, path: bytes) -> None:
        """Remove a name that is no directory's."""
        if self.node(path).is_directory:
            raise failure(errno.EISDIR)
        self._remove(path)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        node = self.node(path)
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        if node.children:
            raise failure(errno.ENOTEMPTY)
        self._remove(path)

    def _remove(self, path: bytes) -> None:
        folder, name = self._place(path)
        del folder.children[name]
        folder.mtime_ns = None

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        """Move a name, over another one or in exchange for it; checks in the kernel's order."""
        source, (folder, name) = self.node(old), self._place(new)
        target = folder.children.get(name)
        self._check_rename(old, new, source, target, flags)
        if source is target:
            return
        old_folder, old_name = self._place(old)
        if flags & RENAME_EXCHANGE and target is not None:
            old_folder.children[old_name] = target
        else:
            del old_folder.children[old_name]
        folder.children[name] = source
        old_folder.mtime_ns = folder.mtime_ns = None

    @staticmethod
    def _check_rename(
        old: bytes, new: bytes, source: Node, target: Node | None, flags: int
    ) -> None:
        exchange = bool(flags & RENAME_EXCHANGE)
        if flags & RENAME_NOREPLACE and target is not None:
            raise failure(errno.EEXIST)
        if exchange and target is None:
            raise failure(errno.ENOENT)
        if new.startswith(old + b"/"):
            raise failure(errno.EINVAL)
        if old.startswith(new + b"/"):
            raise failure(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if target is None or target is source or exchange:
            return
        if source.is_directory and not target.is_directory:
            raise failure(errno.ENOTDIR)
        if target.is_directory and not source.is_directory:
            raise failure(errno.EISDIR)
        if target.children:
            raise failure(errno.ENOTEMPTY)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        """Write into an existing file."""
        node = self.node(path)
        node.must_be_file()
        node.write(offset, data)

    def append(self, path: bytes, data: bytes) -> None:
        """Write at the end of an existing file."""
        node = self.node(path)
        node.must_be_file()
        node.write(len(node.content), data)

    def truncate(self, path: bytes, size: int) -> None:
        """Change the length of an existing file."""
        node = self.node(path)
        node.must_be_file()
        node.truncate(size)

    def map_write(self, path: bytes, offset: int, data: bytes) -> None:
        """Store into a shared map of a file; what does not fit inside the file is left out."""
        node = self.node(path)
        node.must_be_file()
        fitting = data[: max(0, len(node.content) - offset)]
        if fitting:
            node.write(offset, fitting)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the permission bits of a file or directory."""
        self._followed(path).mode = mode

    def setxattr(self, path: bytes, name: str, value: bytes) -> None:
        """Set a user attribute, which only files and directories have."""
        node = self._followed(path)
        if node.kind == stat.S_IFIFO:
            raise failure(errno.EPERM)
        node.xattrs[name] = value

    def removexattr(self, path: bytes, name: str) -> None:
        """Remove a user attribute."""
        node = self._followed(path)
        if node.kind == stat.S_IFIFO:
            raise failure(errno.EPERM)
        if name not in node.xattrs:
            raise failure(errno.ENODATA)
        del node.xattrs[name]

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """Set the time of change of a name itself."""
        self.node(path).mtime_ns = mtime_ns

    def _followed(self, path: bytes) -> Node:
        node = self.node(path)
        if node.kind == stat.S_IFLNK:
            raise failure(errno.ENOENT)
        return node

    def capture(self) -> dict[bytes, Entry]:
        """Return the tree as `tests.harness.trees.capture` returns a real one."""
        names: dict[int, list[bytes]] = defaultdict(list)
        for path, node in self._walk():
            names[id(node)].append(path)
        return {path: _entry(path, node, names[id(node)]) for path, node in self._walk()}

    def links(self, wanted: Node) -> int:
        """Return how many names an inode has."""
        return sum(1 for _, node in self._walk() if node is wanted)

    def _walk(self) -> Iterator[tuple[bytes, Node]]:
        yield b".", self._root
        pending = [(b"", self._root)]
        while pending:
            prefix, folder = pending.pop()
            for name, node in sorted(folder.children.items()):
                yield prefix + name, node
                if node.is_directory:
                    pending.append((prefix + name + b"/", node))


def _entry(path: bytes, node: Node, names: list[bytes]) -> Entry:
    content = {
        stat.S_IFREG: hashlib.sha256(node.content).digest(),
        stat.S_IFLNK: bytes(node.content),
    }
    return Entry(
        kind=LETTERS[node.kind],
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        size=None if node.is_directory else len(node.content),
        nlink=None if node.is_directory else len(names),
        device=0,
        mtime_ns=node.mtime_ns,
        content=content.get(node.kind, b""),
        xattrs=tuple(sorted(node.xattrs.items())),
        links=(path,) if node.is_directory else tuple(sorted(names)),
    )
