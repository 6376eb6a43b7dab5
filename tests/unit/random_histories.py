"""Random changes to a store's tree, of every kind, without a mount."""

from __future__ import annotations

import os
import random
import stat
from typing import Final, NamedTuple

from statefs.errors import PosixError
from statefs.ids import TREE_ROOT
from statefs.volume.attributes import AttributeChange
from statefs.volume.names import RENAME_EXCHANGE
from tests.unit.engine_store import FILE, FOLDER, ME, EngineStore

NAMES: Final = [b"a", b"b", b"c", b"d", b"\xff\xfe", b"runtime"]
"""Few, so that they meet; one is no UTF-8, one is left out of snapshots in the root alone."""
BIG_BYTES: Final = 20_000
"""More than is kept inline."""
OPERATIONS: Final = (
    "create", "create", "create", "mkdir", "mkdir", "symlink", "fifo", "unlink", "remove_all",
    "rename", "rename", "rename", "exchange", "link", "write", "write", "write_big", "rewrite",
    "truncate", "chmod", "chown", "set_xattr", "remove_xattr", "set_mtime", "replace", "twin",
)  # fmt: skip


class Named(NamedTuple):
    """A name in the living tree."""

    parent: int
    name: bytes
    ino: int
    is_dir: bool
    is_file: bool


class RandomHistory:
    """Changes a store's tree at random; what POSIX refuses is left undone.

    Args:
        engine: the store.
        seed: of the random numbers.
        root: where the tree begins: that of current/, or of a clone.
    """

    def __init__(self, engine: EngineStore, seed: int, root: int = TREE_ROOT) -> None:
        self.engine = engine
        self.root = root
        self.random = random.Random(seed)
        self.done: list[str] = []

    def go_on(self, steps: int) -> None:
        """Do `steps` operations."""
        for _ in range(steps):
            operation = self.random.choice(OPERATIONS)
            try:
                getattr(self, operation)()
            except PosixError as error:
                operation += f" ({os.strerror(error.errno)})"
            self.done.append(operation)

    def _all(self) -> list[Named]:
        found, waiting = [], [self.root]
        while waiting:
            parent = waiting.pop()
            for _, name, node in self.engine.names.listing(parent, 0, 1 << 30):
                found.append(Named(parent, name, int(node.ino), node.is_dir, node.is_file))
                if node.is_dir:
                    waiting.append(node.ino)
        return found

    def _folder(self) -> int:
        return self.random.choice([self.root, *(each.ino for each in self._all() if each.is_dir)])

    def _name(self) -> bytes:
        return self.random.choice(NAMES)

    def _one(self, *, files: bool = False, folders: bool = True) -> Named:
        fitting = [
            each
            for each in self._all()
            if (each.is_file or not files) and (folders or not each.is_dir)
        ]
        if not fitting:
            raise PosixError(2)
        return self.random.choice(fitting)

    def _is_above(self, ino: int, folder: int) -> bool:
        """Return whether `folder` is `ino` or lies below it."""
        while folder not in (self.root, ino):
            folder = self.engine.node(folder).parent
        return folder == ino

    def _create(self, mode: int, target: bytes | None = None) -> int:
        node = self.engine.names.create(self._folder(), self._name(), mode, ME, 0, target)
        return int(node.ino)

    def create(self) -> None:
        """Make a file with some content."""
        ino = self._create(FILE)
        self.engine.data.write(ino, 0, b"x" * self.random.choice([0, 5, 5, BIG_BYTES]))

    def mkdir(self) -> None:
        """Make a folder."""
        self._create(FOLDER)

    def symlink(self) -> None:
        """Make a symbolic link."""
        self._create(stat.S_IFLNK | 0o777, self.random.choice([b"here", b"there"]))

    def fifo(self) -> None:
        """Make a named pipe."""
        self._create(stat.S_IFIFO | 0o644)

    def unlink(self) -> None:
        """Remove a name that is not a folder's."""
        one = self._one(folders=False)
        self.engine.names.unlink(one.parent, one.name)

    def remove_all(self) -> None:
        """Remove a folder and all that is in it."""
        folders = [each for each in self._all() if each.is_dir]
        if folders:
            one = self.random.choice(folders)
            self._remove_inside(one.ino)
            self.engine.names.rmdir(one.parent, one.name)

    def _remove_inside(self, folder: int) -> None:
        for _, name, node in self.engine.names.listing(folder, 0, 1 << 30):
            if node.is_dir:
                self._remove_inside(node.ino)
                self.engine.names.rmdir(folder, name)
            else:
                self.engine.names.unlink(folder, name)

    def rename(self) -> None:
        """Move a name, over whatever has the new one."""
        one, folder, name = self._one(), self._folder(), self._name()
        if not self._is_above(one.ino, folder):
            self.engine.names.rename(one.parent, one.name, folder, name)

    def exchange(self) -> None:
        """Exchange two names."""
        one, other = self._one(), self._one()
        if one.ino == other.ino:
            return  # the kernel does nothing then, and asks nobody
        if not self._is_above(one.ino, other.parent) and not self._is_above(other.ino, one.parent):
            self.engine.names.rename(
                one.parent, one.name, other.parent, other.name, RENAME_EXCHANGE
            )

    def link(self) -> None:
        """Give a file one more name."""
        self.engine.names.link(self._one(folders=False).ino, self._folder(), self._name())

    def write(self) -> None:
        """Write a few bytes somewhere near the start."""
        self.engine.data.write(self._one(files=True).ino, self.random.randrange(9), b"new")

    def write_big(self) -> None:
        """Write so much that the bytes lie in an object file."""
        ino = self._one(files=True).ino
        self.engine.data.write(ino, self.random.choice([0, 4096, 50_000]), b"y" * BIG_BYTES)

    def rewrite(self) -> None:
        """Write a file's own bytes over themselves."""
        ino = self._one(files=True).ino
        self.engine.data.write(ino, 0, self.engine.content(ino))

    def truncate(self) -> None:
        """Change a file's length."""
        ino = self._one(files=True).ino
        self.engine.data.truncate(ino, self.random.choice([0, 3, 6000, 30_000]))

    def chmod(self) -> None:
        """Give something one of two modes."""
        self._set(mode=self.random.choice([0o600, 0o755]))

    def chown(self) -> None:
        """Give something one of two owners."""
        self._set(uid=self.random.choice([0, 1]))

    def set_mtime(self) -> None:
        """Give something one of two times."""
        self._set(mtime_ns=self.random.choice([1, 2]))

    def _set(self, **wanted: int) -> None:
        self.engine.attributes.set(self._one_or_root(), AttributeChange(**wanted))

    def _one_or_root(self) -> int:
        return self.root if self.random.random() < 0.05 else self._one().ino

    def set_xattr(self) -> None:
        """Give something an extended attribute."""
        value = self.random.choice([b"1", b"2"])
        self.engine.attributes.set_xattr(self._one_or_root(), b"user.a", value)

    def remove_xattr(self) -> None:
        """Take an extended attribute away."""
        marked = [each for each in self._all() if self.engine.attributes.xattr_names(each.ino)]
        if marked:
            self.engine.attributes.remove_xattr(self.random.choice(marked).ino, b"user.a")

    def replace(self) -> None:
        """Put a new file over an old one, as editors do; with the same bytes, at times."""
        one = self._one(files=True)
        content = self.engine.content(one.ino) if self.random.random() < 0.5 else b"edited"
        ino = int(self.engine.names.create(one.parent, b"edited", FILE, ME).ino)
        self.engine.data.write(ino, 0, content)
        if self.random.random() < 0.5:
            self._make_alike(one.ino, ino)
        self.engine.names.rename(one.parent, b"edited", one.parent, one.name)

    def twin(self) -> None:
        """Put a new folder in the place of an old one, with what was in that."""
        folders = [each for each in self._all() if each.is_dir]
        if not folders:
            return
        one = self.random.choice(folders)
        ino = int(self.engine.names.create(one.parent, b"twin", FOLDER, ME).ino)
        for _, name, _ in self.engine.names.listing(one.ino, 0, 1 << 30):
            self.engine.names.rename(one.ino, name, ino, name)
        self._make_alike(one.ino, ino)
        self.engine.names.rename(one.parent, b"twin", one.parent, one.name)

    def _make_alike(self, old: int, new: int) -> None:
        node, attributes = self.engine.node(old), self.engine.attributes
        for name in attributes.xattr_names(old):
            attributes.set_xattr(new, name, attributes.xattr(old, name))
        attributes.set(
            new,
            AttributeChange(
                mode=node.mode & 0o7777, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns
            ),
        )
