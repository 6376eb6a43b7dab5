"""The handlers of a mount without a mount: random steps on a store, and what it should hold.

Each step is one request of the kernel, so that at most one transaction of it is acknowledged, and
a save, a deletion or what the daemon does in the background. The reference says whether a step
would succeed; only those are done.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import os
import random
import stat
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import pyfuse3
import trio

from statefs.daemon import service
from statefs.daemon.service import Service
from statefs.fuse.handles import WRITABLE
from statefs.ids import SNAPSHOTS_DIR, TREE_ROOT
from tests.harness.trees import Entry, Tree
from tests.model.reference import ReferenceTree
from tests.unit.engine_store import EngineStore, tree_of

NAMES: Final = (b"a", b"b", b"c", b"d", b"tmp")
SIZES: Final = (1, 700, 4_096, 9_000, 20_000, 40_000)
OFFSETS: Final = (0, 0, 100, 4_096, 10_000, 30_000)
SNAPSHOTS_MAX: Final = 3
OWNER: Final = SimpleNamespace(uid=os.getuid(), gid=os.getgid(), umask=0o022, pid=1)

Step = tuple[Any, ...]
"""Name of an operation, then its arguments; those of `ReferenceTree`, and some more."""


def apply(reference: ReferenceTree, step: Step) -> bool:
    """Do a step on the reference; return whether it may be done at all."""
    name, *arguments = step
    if name in ("save", "delete", "tick", "checkpoint", "collect"):
        return True
    try:
        if name == "close":
            reference.node(arguments[0]).must_be_file()
        elif name == "rename" and _is_one_inode(reference, *arguments[:2]):
            return False  # the kernel does not ask for that
        else:
            getattr(reference, name)(*arguments)
    except OSError:
        return False
    return True


def _is_one_inode(reference: ReferenceTree, old: bytes, new: bytes) -> bool:
    try:
        return reference.node(old) is reference.node(new)
    except OSError:
        return False


def new_reference() -> ReferenceTree:
    """Return what a new store holds."""
    reference = ReferenceTree(0o755, OWNER.uid, OWNER.gid, OWNER.umask)
    for name in (b"files", b"volumes", b"runtime"):
        reference.mkdir(name, 0o755)
    return reference


class StepMaker:
    """Thinks of steps.

    Args:
        rng: decides everything.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._saves = 0
        self.labels: list[bytes] = []

    def next(self, reference: ReferenceTree) -> Step:
        """Return a step that `apply` accepts, after it was applied to `reference`."""
        while True:
            step = self._any(reference)
            if apply(reference, step):
                return step

    def _any(self, reference: ReferenceTree) -> Step:
        rng = self._rng
        folders = [b"files"]
        folders += [path for path in reference.directories() if path.startswith(b"files/")]

        def path() -> bytes:
            return rng.choice(folders) + b"/" + rng.choice(NAMES)

        def data() -> bytes:
            return rng.randbytes(rng.choice(SIZES))

        makers: dict[str, tuple[int, Callable[[], tuple[Any, ...]]]] = {
            "create": (6, lambda: (path(), 0o644)),
            "mkdir": (1, lambda: (path(), 0o755)),
            "write": (10, lambda: (path(), rng.choice(OFFSETS), data())),
            "append": (4, lambda: (path(), data())),
            "truncate": (3, lambda: (path(), rng.choice((0, *SIZES)))),
            "rename": (5, lambda: (path(), path(), rng.choice((0, 0, 0, 1, 2)))),
            "unlink": (2, lambda: (path(),)),
            "rmdir": (1, lambda: (path(),)),
            "link": (1, lambda: (path(), path())),
            "close": (8, lambda: (path(),)),
            "setxattr": (1, lambda: (path(), "user.a", data()[:2000])),
            "tick": (1, tuple),
            "checkpoint": (1, tuple),
            "collect": (1, tuple),
            "save": (2 if len(self.labels) < SNAPSHOTS_MAX else 0, self._new_label),
            "delete": (1 if self.labels else 0, lambda: (rng.choice(self.labels),)),
        }
        name = rng.choices(list(makers), [weight for weight, _ in makers.values()])[0]
        return (name, *makers[name][1]())

    def _new_label(self) -> tuple[bytes]:
        self._saves += 1
        return (b"s%d" % self._saves,)


class Handlers:
    """A store, open as a daemon has it.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self.engine = EngineStore(root)
        self.store = self.engine.store
        self.service = Service(self.store, "close")
        self._operations = self.service.operations

    def do(self, step: Step) -> None:
        """Do a step. Raises pyfuse3.FUSEError."""
        name, *arguments = step

        async def doing() -> None:
            await getattr(self, f"_{name}")(*arguments)

        with patch.object(service, "forget_attributes", lambda _: None):
            trio.run(doing)

    def ino(self, path: bytes) -> int:
        """Return the inode at a path."""
        return ino_of(self.engine, path)

    def _place(self, path: bytes) -> tuple[int, bytes]:
        folder, _, name = path.rpartition(b"/")
        return self.ino(folder), name

    async def _create(self, path: bytes, mode: int) -> None:
        info, _ = await self._operations.create(
            *self._place(path), mode, os.O_EXCL | os.O_CREAT | os.O_WRONLY, OWNER
        )
        await self._operations.release(info.fh)

    async def _mkdir(self, path: bytes, mode: int) -> None:
        await self._operations.mkdir(*self._place(path), mode | stat.S_IFDIR, OWNER)

    async def _write(self, path: bytes, offset: int, data: bytes) -> None:
        await self._operations.write(self.ino(path) | WRITABLE, offset, data)

    async def _append(self, path: bytes, data: bytes) -> None:
        ino = self.ino(path)
        await self._operations.write(ino | WRITABLE, self.store.volume.table.node(ino).size, data)

    async def _truncate(self, path: bytes, size: int) -> None:
        fields = SimpleNamespace(
            update_size=True, update_mode=False, update_uid=False, update_gid=False,
            update_atime=False, update_mtime=False,
        )  # fmt: skip
        attributes = SimpleNamespace(st_size=size)
        await self._operations.setattr(self.ino(path), attributes, fields, None, OWNER)

    async def _rename(self, old: bytes, new: bytes, flags: int) -> None:
        await self._operations.rename(*self._place(old), *self._place(new), flags, OWNER)

    async def _unlink(self, path: bytes) -> None:
        await self._operations.unlink(*self._place(path), OWNER)

    async def _rmdir(self, path: bytes) -> None:
        await self._operations.rmdir(*self._place(path), OWNER)

    async def _link(self, old: bytes, new: bytes) -> None:
        await self._operations.link(self.ino(old), *self._place(new), OWNER)

    async def _close(self, path: bytes) -> None:
        await self._operations.flush(self.ino(path) | WRITABLE)

    async def _setxattr(self, path: bytes, name: str, value: bytes) -> None:
        await self._operations.setxattr(self.ino(path), name.encode(), value, OWNER)

    async def _save(self, label: bytes) -> None:
        await self._operations.mkdir(SNAPSHOTS_DIR, label, 0o755, OWNER)

    async def _delete(self, label: bytes) -> None:
        await self._operations.rmdir(SNAPSHOTS_DIR, label, OWNER)

    async def _tick(self) -> None:
        await self._told(self.service._durability.sync_everything)

    async def _checkpoint(self) -> None:
        await self._told(self.service._tasks.move_log)

    async def _collect(self) -> None:
        async def collecting() -> None:
            self.store.collect()

        await self._told(collecting)

    @staticmethod
    async def _told(action: Callable[[], Awaitable[None]]) -> None:
        """Do what the daemon does in the background, with an error as a handler has it."""
        try:
            await action()
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error


def ino_of(engine: EngineStore, path: bytes) -> int:
    """Return the inode at a path."""
    ino = int(TREE_ROOT)
    for name in path.split(b"/"):
        ino = int(engine.names.lookup(ino, name).ino)
    return ino


def copy_of(reference: ReferenceTree) -> ReferenceTree:
    """Return a reference that changes on its own."""
    return copy.deepcopy(reference)


def trees_of(engine: EngineStore) -> tuple[Tree, dict[bytes, Tree]]:
    """Return the living tree, less what init puts into runtime/, and snapshots' by label."""
    snapshots = {
        (snapshot.label or snapshot.name).encode(): _entries(tree_of(engine, snapshot.epoch))
        for snapshot in engine.store.catalog.snapshots
    }
    living = _entries(tree_of(engine))
    return {p: e for p, e in living.items() if not p.startswith(b"runtime/")}, snapshots


def _entries(found: dict[str, Any]) -> Tree:
    links: dict[int, list[bytes]] = defaultdict(list)
    for path, shown in found.items():
        links[shown["ino"]].append(os.fsencode(path))
    entries = {}
    for path, shown in found.items():
        mode = int(shown["mode"], 8)
        is_directory = stat.S_ISDIR(mode)
        entries[os.fsencode(path)] = Entry(
            kind=stat.filemode(mode)[0],
            mode=stat.S_IMODE(mode),
            uid=shown["uid"],
            gid=shown["gid"],
            size=None if is_directory else shown["size"],
            nlink=None if is_directory else shown["nlink"],
            device=0,
            mtime_ns=None,
            content=hashlib.sha256(shown["content"]).digest() if "content" in shown else b"",
            xattrs=tuple((name, bytes.fromhex(v)) for name, v in sorted(shown["xattrs"].items())),
            links=(os.fsencode(path),) if is_directory else tuple(sorted(links[shown["ino"]])),
        )
    return entries


def without_runtime(tree: Tree) -> Tree:
    """Return what a snapshot shows of a tree."""
    return {path: entry for path, entry in tree.items() if path.split(b"/")[0] != b"runtime"}
